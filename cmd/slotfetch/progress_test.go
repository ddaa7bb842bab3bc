package main

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"slotfetch/api"
)

func TestLines(t *testing.T) {
	var stderr bytes.Buffer
	now := time.Unix(0, 0)
	l := &lines{app: &app{stderr: &stderr, now: func() time.Time { return now }}, seen: map[string]shown{}}
	at := func(seconds int, b api.FetchBody) {
		now = time.Unix(int64(seconds), 0)
		l.update(api.Fetch{Key: "k", Body: b})
	}
	at(0, api.FetchBody{Status: "queued"})
	at(1, downloading(1<<20, 4<<20))
	at(2, downloading(2<<20, 4<<20))
	at(6, downloading(3<<20, 4<<20))
	at(7, api.FetchBody{Status: "in-progress", Phase: ptr("verifying"), BytesDownloaded: 4 << 20, BytesTotal: 4 << 20})
	at(8, finished())
	at(99, finished())
	want := `k queued
k downloading, 25% of 4.0 MiB, 1.0 MiB/s, ETA 1m5s
k downloading, 75% of 4.0 MiB, 1.0 MiB/s, ETA 1m5s
k verifying, 100% of 4.0 MiB
k finished, 100% of 3.0 MiB
`
	if stderr.String() != want {
		t.Errorf("got:\n%s", stderr.String())
	}
}

// TestBars draws without a terminal: what counts is that nothing hangs and that bytes may fall.
func TestBars(t *testing.T) {
	var stderr bytes.Buffer
	b := newBars(&stderr, []string{testKey, otherKey})
	for _, body := range []api.FetchBody{downloading(2<<20, 3<<20), downloading(0, 3<<20), downloading(5, 0), finished()} {
		b.update(api.Fetch{Key: testKey, Body: body})
	}
	if got := b.byKey[testKey].text(); got != "100% 3.0 MiB / 3.0 MiB" {
		t.Errorf("text %q", got)
	}
	b.update(api.Fetch{Key: "unknown", Body: finished()})
	b.close()
}

func TestReporterChoice(t *testing.T) {
	for _, tt := range []struct {
		progress string
		quiet    bool
		want     reporter
	}{
		{"auto", false, &lines{}},
		{"auto", true, silent{}},
		{"bar", false, &lines{}}, // no terminal to draw on
		{"line", true, &lines{}},
		{"json", true, &documents{}},
		{"none", false, silent{}},
	} {
		a := &app{progress: tt.progress, quiet: tt.quiet, stderr: discard{}}
		got := a.newReporter(nil)
		if typeName(got) != typeName(tt.want) {
			t.Errorf("%+v: %T", tt, got)
		}
	}
}

func typeName(r reporter) string { return fmt.Sprintf("%T", r) }
