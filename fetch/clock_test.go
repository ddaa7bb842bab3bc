package fetch_test

import (
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
	"slotfetch/slots"
	"slotfetch/store"
)

// jumpy is a clock as a box without a battery has it: it is set while fetches run, and nothing monotonic helps.
type jumpy struct {
	mu sync.Mutex
	at time.Time
}

func (c *jumpy) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(time.Millisecond)
	return c.at
}

func (c *jumpy) jump(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// clockedBox is a box by that clock.
func clockedBox(t *testing.T, clock *jumpy, change func(*fetch.Config)) *box {
	t.Helper()
	b := &box{t: t, dir: t.TempDir()}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	var err1, err2, err3, err4 error
	b.store, err1 = store.Open(filepath.Join(b.dir, "slotfetch.db"), store.Options{Now: clock.now})
	b.slots, err2 = slots.Open(slots.Config{Dir: filepath.Join(b.dir, "slots"), First: 1, Count: 5, Log: log, Now: clock.now})
	client, err3 := source.New(source.Config{Egress: fetchtest.Loopback()})
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	cfg := fetch.Config{Store: b.store, Slots: b.slots, Source: client, SealKey: make([]byte, fetch.SealKeySize), Log: log, Now: clock.now}
	if change != nil {
		change(&cfg)
	}
	if b.fetch, err4 = fetch.Open(cfg); err4 != nil {
		t.Fatal(err4)
	}
	t.Cleanup(b.close)
	return b
}

// TestClockJumps sets the clock back and forward during a transfer and between orders: no duration and no estimate is
// negative, and the order of the queue is that of the orders.
func TestClockJumps(t *testing.T) {
	for _, tt := range []struct {
		name  string
		jumps [3]time.Duration // during the transfer, and before each of two more orders
	}{
		{"back", [3]time.Duration{-time.Hour, -time.Hour, -time.Hour}},
		{"forward", [3]time.Duration{time.Hour, time.Hour, time.Hour}},
		{"back and forward", [3]time.Duration{-time.Hour, 2 * time.Hour, -24 * time.Hour}},
		{"to the epoch", [3]time.Duration{-time.Duration(1_790_000_000) * time.Second, 0, time.Hour}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			clock := &jumpy{at: time.UnixMilli(1_790_000_000_000)}
			b := clockedBox(t, clock, nil)

			img := fetchtest.NewImage(80, 4<<20)
			srv := fetchtest.NewHTTP(t, nil)
			stall := fetchtest.Whole(img)
			stall.Fault, stall.After = fetchtest.Stall, 2<<20
			keys := []string{b.enqueue(srv.Handle("/0.iso", stall.Serve), img.SHA256())}
			x := srv.Next(t)
			b.until(keys[0], func(f store.Fetch) bool { return f.Phase == store.Downloading })
			b.arrives(keys[0], stall.After)
			clock.jump(tt.jumps[0])
			b.sane(keys[0])
			for i, path := range []string{"/1.iso", "/2.iso"} {
				clock.jump(tt.jumps[i+1])
				keys = append(keys, b.enqueue(srv.Handle(path, fetchtest.Whole(img).Serve), img.SHA256()))
			}
			b.sane(keys[0])
			x.Release()
			for _, key := range keys {
				if f := b.until(key, final); f.Status != store.Finished {
					t.Errorf("got %+v", f)
				}
				b.sane(key)
			}
			for _, path := range []string{"/1.iso", "/2.iso"} {
				if got := srv.Next(t).URL.Path; got != path {
					t.Errorf("%s was fetched where %s was next", got, path)
				}
			}
			var listed []string
			if err := b.fetch.Each(t.Context(), func(f store.Fetch) error { listed = append(listed, f.Key); return nil }); err != nil || !slices.Equal(listed, keys) {
				t.Errorf("the list is %v, %v, ordered were %v", listed, err, keys)
			}
		})
	}
}

func (b *box) get(key string) store.Fetch {
	b.t.Helper()
	f, err := b.fetch.Get(b.t.Context(), key)
	if err != nil {
		b.t.Fatal(err)
	}
	return f
}

// sane wants no number of the fetch to be negative, and its moments in their order.
func (b *box) sane(key string) {
	b.t.Helper()
	f := b.get(key)
	if f.BytesPerSecond != nil && *f.BytesPerSecond < 0 || f.BytesDownloaded > f.BytesTotal {
		b.t.Errorf("%d of %d bytes at %d a second", f.BytesDownloaded, f.BytesTotal, *f.BytesPerSecond)
	}
	if f.StartTime.Before(f.CreatedAt) || f.Status.Final() && f.EndTime.Before(f.StartTime) {
		b.t.Errorf("made %s, started %s, ended %s", f.CreatedAt, f.StartTime, f.EndTime)
	}
}
