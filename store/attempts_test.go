package store_test

import (
	"errors"
	"testing"
	"time"

	"slotfetch/store"
)

// TestAttempts: what is stored comes back, in order, also after the file was opened again.
func TestAttempts(t *testing.T) {
	t.Parallel()
	s, path := fresh(t)
	enqueue(t, s, "k")
	enqueue(t, s, "other")
	bare := store.Attempt{Number: 1, URL: "file:///x", Started: t0, Ended: t0}
	full := store.Attempt{
		Number: 2, URL: "https://h/x?…", RedirectedTo: "https://cdn/x", Proxy: "proxy:3128", Address: "192.0.2.7:443",
		Started: t0.Add(time.Second), Ended: t0.Add(time.Minute), DNS: ptr(int64(0)), Connect: ptr(int64(2)), TLS: ptr(int64(3)), FirstByte: ptr(int64(4)),
		ResumedFrom: ptr(int64(5)), BytesReceived: 6, Connections: 7, HTTPStatus: 503, ErrorCode: "http_503", ErrorClass: "temporary",
		Error: "The server answered 503.", Bottleneck: "limit", Network: 8, Hash: 9, Disk: 10, Limit: 11,
	}
	ok(t, s.AddAttempt("k", full))
	ok(t, s.AddAttempt("k", bare))
	ok(t, s.AddAttempt("other", bare))
	want := []store.Attempt{bare, full}
	equal(t, want, must[[]store.Attempt](t)(s.Attempts(t.Context(), "k")))
	ok(t, s.Close())
	s = open(t, path)
	equal(t, want, must[[]store.Attempt](t)(s.Attempts(t.Context(), "k")))
	if err := s.AddAttempt("none", bare); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an attempt of no fetch: %v", err)
	}
	equal(t, []store.Attempt(nil), must[[]store.Attempt](t)(s.Attempts(t.Context(), "none")))
}

// TestAttemptsAreBounded: the newest hundred stay, whichever are missing between them, and none when the entry is pruned.
func TestAttemptsAreBounded(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	for _, key := range []string{"k", "other"} {
		enqueue(t, s, key)
	}
	for n := 1; n <= 103; n++ {
		if n != 50 { // the agent was killed
			ok(t, s.AddAttempt("k", store.Attempt{Number: n, URL: "file:///x", Started: t0, Ended: t0}))
		}
	}
	ok(t, s.AddAttempt("other", store.Attempt{Number: 1, URL: "file:///x", Started: t0, Ended: t0}))
	kept := must[[]store.Attempt](t)(s.Attempts(t.Context(), "k"))
	if len(kept) != 100 || kept[0].Number != 3 || kept[99].Number != 103 {
		t.Errorf("%d attempts, from %d to %d", len(kept), kept[0].Number, kept[len(kept)-1].Number)
	}
	for _, want := range []store.Outcome{store.CancelledQueued, store.Pruned} {
		if out, _, err := s.Delete("k", admin); err != nil || out != want {
			t.Fatal(out, err)
		}
	}
	equal(t, []store.Attempt(nil), must[[]store.Attempt](t)(s.Attempts(t.Context(), "k")))
	if n := len(must[[]store.Attempt](t)(s.Attempts(t.Context(), "other"))); n != 1 {
		t.Errorf("the other fetch has %d attempts", n)
	}
}
