package fetch_test

import (
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/store"
)

// TestPanic has something panic in the middle of a transfer, and while installing: it costs one fetch each, and the same
// worker does the next.
func TestPanic(t *testing.T) {
	img := fetchtest.NewImage(70, 8<<20)
	srv := fetchtest.NewHTTP(t, nil)
	stall := fetchtest.Whole(img)
	stall.Fault, stall.After = fetchtest.Stall, 3<<20
	raw := srv.Handle("/a.iso", fetchtest.Sequence(stall.Serve, fetchtest.Whole(img).Serve))
	var clock, hook atomic.Bool
	seen := make(chan struct{}, 2)
	b := newBox(t, t.TempDir(), func(c *fetch.Config) {
		c.CheckpointBytes = 1 << 20
		c.Log = slog.New(&acting{Handler: c.Log.Handler(), message: "panic in a fetch", act: func() { seen <- struct{}{} }})
		c.Now = func() time.Time {
			if clock.CompareAndSwap(true, false) {
				panic("clock")
			}
			return time.Now()
		}
		*c = c.WithHooks(func(string) {
			if hook.CompareAndSwap(true, false) {
				panic("hook")
			}
		}, nil)
	})
	failed := func(key string) {
		t.Helper()
		fetchtest.Await(t, "the panic", seen)
		if f := b.until(key, final); f.Status != store.Failed || f.ErrorCode != "internal" {
			t.Errorf("got %+v", f)
		}
		b.noPartials()
	}
	key := b.enqueue(raw, img.SHA256())
	x := srv.Next(t)
	b.arrives(key, 3<<20)
	clock.Store(true)
	x.Release()
	failed(key)
	hook.Store(true)
	failed(b.enqueue(raw, img.SHA256()))
	if f := b.until(b.enqueue(raw, img.SHA256()), final); f.Status != store.Finished {
		t.Errorf("got %+v", f)
	} else {
		b.holds(*f.SlotID, img.SHA256())
	}
}
