package store_test

import (
	"cmp"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"slotfetch/store"
)

// TestEnqueueTogether has many wait for the one connection that writes. One flush has to do for all of them, and the one
// whose key is taken fails alone.
func TestEnqueueTogether(t *testing.T) {
	t.Parallel()
	const callers = 16
	s, path := fresh(t)
	enqueue(t, s, "taken")
	busy := must[*sql.Conn](t)(s.Writer().Conn(t.Context()))
	before := walSize(t, path)
	var group sync.WaitGroup
	var errs [callers]error
	for i := range callers {
		group.Go(func() {
			key := fmt.Sprintf("k%02d", i)
			if i == callers/2 {
				key = "taken"
			}
			var f store.Fetch
			if f, errs[i] = s.Enqueue(store.Fetch{Key: key, URL: "https://h/x"}, admin); errs[i] == nil && f.Key != key {
				errs[i] = fmt.Errorf("got fetch %q, want %q", f.Key, key)
			}
		})
		for deadline := time.Now().Add(time.Minute); s.Waiting() <= i; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d wait for their turn, want %d", s.Waiting(), i+1)
			}
		}
	}
	busy.Close()
	group.Wait()
	want := []string{"taken"}
	for i, err := range errs {
		if i == callers/2 {
			if !errors.Is(err, store.ErrExists) {
				t.Errorf("a second one of a key gives %v", err)
			}
			continue
		}
		if err != nil {
			t.Errorf("caller %d: %v", i, err)
		}
		want = append(want, fmt.Sprintf("k%02d", i))
	}
	// One frame a page that changed: alone, each caller would write two at least.
	const frame = 24 + 4096
	if frames := (walSize(t, path) - before) / frame; frames == 0 || frames >= callers {
		t.Errorf("%d callers wrote %d frames", callers, frames)
	}
	ok(t, s.Close())
	s = open(t, path)
	rows := all(t, s)
	slices.SortFunc(rows, func(a, b store.Fetch) int { return cmp.Compare(a.Seq, b.Seq) })
	var got []string
	for _, f := range rows {
		got = append(got, f.Key)
	}
	equal(t, want, got) // in the order in which they came
	if n := len(must[[]store.Event](t)(s.Events(t.Context(), 99))); n != callers {
		t.Errorf("%d events, want %d", n, callers)
	}
}

func walSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
