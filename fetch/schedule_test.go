package fetch_test

import (
	"context"
	"errors"
	"net/url"
	"testing"
	"time"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/store"
)

func (b *box) change(key string, c fetch.Change) store.Fetch {
	b.t.Helper()
	f, err := b.fetch.Change(b.t.Context(), key, c, admin)
	if err != nil {
		b.t.Fatalf("cannot change %s: %v", key, err)
	}
	return f
}

func ptr[T any](v T) *T { return &v }

// stalled is a server whose first answer stops after half of img; the others are whole.
func stalled(t *testing.T, img *fetchtest.Image) (*fetchtest.HTTP, string) {
	srv := fetchtest.NewHTTP(t, nil)
	half := fetchtest.Whole(img)
	half.Fault, half.After = fetchtest.Stall, img.Size()/2
	return srv, srv.Handle("/a.iso", fetchtest.Sequence(half.Serve, fetchtest.Whole(img).Serve))
}

// TestPause pauses a transfer: the connection goes away, the partial stays, another fetch may run, and later it goes on
// where it was.
func TestPause(t *testing.T) {
	t.Parallel()
	img, other := fetchtest.NewImage(120, 8<<20), fetchtest.NewImage(121, 1<<20)
	srv, raw := stalled(t, img)
	b := newBox(t, t.TempDir(), nil)
	key := b.enqueue(raw, img.SHA256())
	b.arrives(key, 4<<20)
	f := b.change(key, fetch.Change{Paused: ptr(true)})
	if f.Status != store.Queued || !f.Paused || f.BytesDownloaded != 4<<20 {
		t.Fatalf("got %+v", f)
	}
	if f := b.until(b.enqueue(srv.Handle("/b.iso", fetchtest.Whole(other).Serve), other.SHA256()), final); f.Status != store.Finished {
		t.Fatalf("got %+v", f)
	}
	b.close() // a pause outlives the agent
	b = newBox(t, b.dir, nil)
	if f := b.get(key); f.Status != store.Queued || !f.Paused {
		t.Fatalf("got %+v", f)
	}
	b.change(key, fetch.Change{Paused: ptr(false)})
	f = b.until(key, final)
	if f.Status != store.Finished || f.ResumedFrom != 4<<20 || f.Paused {
		t.Fatalf("got %+v", f)
	}
	b.holds(*f.SlotID, img.SHA256())
}

// TestPauseAgainstCancel has a DELETE while a pause is on its way, and the other way round.
func TestPauseAgainstCancel(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(122, 2<<20)
	b := newBox(t, t.TempDir(), nil)
	for range 100 {
		_, raw := stalled(t, img)
		key := b.enqueue(raw, img.SHA256())
		b.arrives(key, 1<<20)
		done := make(chan error, 1)
		go func() {
			_, err := b.fetch.Change(context.Background(), key, fetch.Change{Paused: ptr(true)}, admin)
			done <- err
		}()
		_, f, err := b.fetch.Delete(t.Context(), key, admin)
		if err != nil || f.Status != store.Cancelled {
			t.Fatalf("got %+v, %v", f, err)
		}
		if err := <-done; err != nil && !errors.Is(err, store.ErrConflict) {
			t.Fatal(err)
		}
		if f := b.get(key); f.Status != store.Cancelled || f.Paused {
			t.Fatalf("got %+v", f)
		}
		if left, err := b.slots.Partials(); err != nil || len(left) > 0 {
			t.Fatal(left, err)
		}
	}
}

// TestPauseAgainstFinish pauses at any moment of short fetches: each is either in a slot or in the queue, whole.
func TestPauseAgainstFinish(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(123, 256<<10)
	srv := fetchtest.NewHTTP(t, nil)
	raw := srv.Handle("/a.iso", fetchtest.Whole(img).Serve)
	b := newBox(t, t.TempDir(), nil)
	for i := range 200 {
		key := b.enqueue(raw, img.SHA256())
		switch i % 4 { // at once, or when it has got so far
		case 1:
			b.until(key, func(f store.Fetch) bool { return f.Status != store.Queued })
		case 2:
			b.until(key, func(f store.Fetch) bool { return f.BytesDownloaded > 0 || f.Status.Final() })
		case 3:
			b.until(key, func(f store.Fetch) bool {
				return f.Phase == store.Verifying || f.Phase == store.Installing || f.Status.Final()
			})
		}
		f, err := b.fetch.Change(t.Context(), key, fetch.Change{Paused: ptr(true)}, admin)
		switch {
		case errors.Is(err, store.ErrConflict):
		case err != nil:
			t.Fatal(err)
		case f.Status == store.Queued:
			b.change(key, fetch.Change{Paused: ptr(false)})
		}
		f = b.until(key, final)
		if f.Status != store.Finished {
			t.Fatalf("round %d: got %+v", i, f)
		}
		b.holds(*f.SlotID, img.SHA256())
		if err := b.slots.Delete(*f.SlotID); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNotBefore leaves a fetch in the queue until its time, though nothing else wakes the worker then.
func TestNotBefore(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(124, 64<<10)
	raw := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve)
	b := newBox(t, t.TempDir(), nil)
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(300 * time.Millisecond)
	f, err := b.fetch.Enqueue(fetch.Request{URL: u, SHA256: img.SHA256(), Schedule: store.Schedule{NotBefore: at}}, admin)
	if err != nil {
		t.Fatal(err)
	}
	if f = b.until(f.Key, final); f.Status != store.Finished || f.StartTime.Before(at.Truncate(time.Millisecond)) {
		t.Errorf("not before %v: %+v", at, f)
	}
}

// TestWindowCloses has a transfer that is not done when its window closes, and goes on in the next.
func TestWindowCloses(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(125, 8<<20)
	srv, raw := stalled(t, img)
	clock := &jumpy{at: time.Date(2026, 5, 4, 23, 0, 0, 0, time.Local)}
	b := clockedBox(t, clock, nil)
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	f, err := b.fetch.Enqueue(fetch.Request{URL: u, SHA256: img.SHA256(), Schedule: store.Schedule{Window: "22:00-24:00"}}, admin)
	if err != nil {
		t.Fatal(err)
	}
	b.arrives(f.Key, 4<<20)
	clock.jump(2 * time.Hour)
	b.change(f.Key, fetch.Change{Priority: ptr(0)}) // else it looks once a minute
	f = b.until(f.Key, func(f store.Fetch) bool { return f.Status == store.Queued })
	if want := time.Date(2026, 5, 5, 22, 0, 0, 0, time.Local); !f.EligibleAt.Equal(want) || f.BytesDownloaded != 4<<20 {
		t.Fatalf("it is to go on at %v: %+v", want, f)
	}
	if got := len(srv.Requests()); got != 1 {
		t.Fatalf("%d requests", got)
	}
	clock.jump(22 * time.Hour)
	b.change(f.Key, fetch.Change{Priority: ptr(1)}) // wakes the worker, which else looks once a minute
	if f = b.until(f.Key, final); f.Status != store.Finished || f.ResumedFrom != 4<<20 {
		t.Fatalf("got %+v", f)
	}
}

// TestWindowOfAll applies to fetches without one of their own, and anew at each start.
func TestWindowOfAll(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(126, 64<<10)
	raw := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve)
	clock := &jumpy{at: time.Date(2026, 5, 4, 12, 0, 0, 0, time.Local)}
	night, err := fetch.ParseWindow("22:00-04:00")
	if err != nil {
		t.Fatal(err)
	}
	b := clockedBox(t, clock, func(c *fetch.Config) { c.Window = night })
	key := b.enqueue(raw, img.SHA256())
	day := b.enqueue(raw, img.SHA256())
	noon, err := fetch.ParseWindow("11:00-13:00")
	if err != nil {
		t.Fatal(err)
	}
	b.change(day, fetch.Change{Window: &noon})
	if f := b.until(day, final); f.Status != store.Finished {
		t.Fatalf("got %+v", f)
	}
	if f := b.get(key); f.Status != store.Queued || f.EligibleAt.Hour() != 22 {
		t.Fatalf("got %+v", f)
	}
	b.close()
	b = newBox(t, b.dir, nil) // without the window
	if f := b.until(key, final); f.Status != store.Finished {
		t.Fatalf("got %+v", f)
	}
}

// TestRateLimit measures from outside: so many bytes take at least so long. Lifting the limit ends the wait.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(127, 4<<20)
	raw := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve)
	for name, tt := range map[string]struct{ own, all int64 }{"own": {own: 2 << 20}, "of all": {all: 2 << 20}, "both": {own: 64 << 20, all: 2 << 20}} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, t.TempDir(), func(c *fetch.Config) { c.RateLimit = tt.all })
			u, err := url.Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			f, err := b.fetch.Enqueue(fetch.Request{URL: u, SHA256: img.SHA256(), Schedule: store.Schedule{RateLimit: tt.own}}, admin)
			if err != nil {
				t.Fatal(err)
			}
			f = b.until(f.Key, final)
			// A tenth of a second's worth passes at once.
			if took, least := time.Since(began), 1800*time.Millisecond; f.Status != store.Finished || took < least {
				t.Errorf("%v, %+v", took, f)
			}
			if list, _, err := b.fetch.Attempts(t.Context(), f.Key); err != nil || len(list) != 1 || list[0].Limit < 1000 {
				t.Errorf("got %+v, %v", list, err)
			}
		})
	}
	b := newBox(t, t.TempDir(), nil)
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	f, err := b.fetch.Enqueue(fetch.Request{URL: u, SHA256: img.SHA256(), Schedule: store.Schedule{RateLimit: fetch.MinRate}}, admin) // an hour
	if err != nil {
		t.Fatal(err)
	}
	key := f.Key
	b.arrives(key, 1)
	b.change(key, fetch.Change{RateLimit: ptr(int64(0))})
	if f := b.until(key, final); f.Status != store.Finished {
		t.Errorf("got %+v", f)
	}
}

// TestDeadlineLeavesOutPauses has a deadline that is long over when the fetch is resumed.
func TestDeadlineLeavesOutPauses(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(128, 2<<20)
	_, raw := stalled(t, img)
	clock := &jumpy{at: time.UnixMilli(1_790_000_000_000)}
	b := clockedBox(t, clock, func(c *fetch.Config) { c.Deadline = time.Hour })
	key := b.enqueue(raw, img.SHA256())
	b.arrives(key, 1<<20)
	b.change(key, fetch.Change{Paused: ptr(true)})
	clock.jump(100 * time.Hour)
	b.change(key, fetch.Change{Paused: ptr(false)})
	if f := b.until(key, final); f.Status != store.Finished {
		t.Errorf("got %+v", f)
	}
}

// A change of something else does not begin the deadline anew, nor make it count from the first start again.
func TestDeadlineSurvivesOtherChanges(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(129, 2<<20)
	_, raw := stalled(t, img)
	clock := &jumpy{at: time.UnixMilli(1_790_000_000_000)}
	b := clockedBox(t, clock, func(c *fetch.Config) { c.Deadline = time.Hour })
	key := b.enqueue(raw, img.SHA256())
	b.arrives(key, 1<<20)
	b.change(key, fetch.Change{Paused: ptr(true)})
	_, busy := stalled(t, img) // keeps the only worker
	other := b.enqueue(busy, img.SHA256())
	b.arrives(other, 1<<20)
	clock.jump(100 * time.Hour)
	b.change(key, fetch.Change{Paused: ptr(false)})
	b.change(key, fetch.Change{RateLimit: ptr(int64(1 << 30))})
	b.change(key, fetch.Change{Place: &store.Place{First: true}})
	if _, _, err := b.fetch.Delete(t.Context(), other, admin); err != nil {
		t.Fatal(err)
	}
	if f := b.until(key, final); f.Status != store.Finished {
		t.Errorf("got %+v", f)
	}
}

// TestClockSetBack has a window close while the clock is years ahead: when it is right again, the fetch must not wait for
// years.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(135, 64<<10)
	raw := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve)
	clock := &jumpy{at: time.Date(2035, 5, 4, 12, 0, 0, 0, time.Local)}
	b := clockedBox(t, clock, nil)
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	f, err := b.fetch.Enqueue(fetch.Request{URL: u, SHA256: img.SHA256(), Schedule: store.Schedule{Window: "22:00-04:00"}}, admin)
	if err != nil {
		t.Fatal(err)
	}
	clock.jump(time.Date(2026, 5, 4, 23, 0, 0, 0, time.Local).Sub(time.Date(2035, 5, 4, 12, 0, 0, 0, time.Local)))
	// Whatever wakes the worker; else it looks once a minute.
	img2 := fetchtest.NewImage(136, 1000)
	b.enqueue(fetchtest.NewHTTP(t, nil).Handle("/b.iso", fetchtest.Whole(img2).Serve), img2.SHA256())
	if f = b.until(f.Key, final); f.Status != store.Finished {
		t.Errorf("got %+v", f)
	}
}

// TestWholeDay has a fetch with the window of the whole day run over midnight.
func TestWholeDay(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(137, 2<<20)
	srv, raw := stalled(t, img)
	clock := &jumpy{at: time.Date(2026, 5, 4, 23, 0, 0, 0, time.Local)}
	b := clockedBox(t, clock, nil)
	key := b.enqueue(raw, img.SHA256())
	day, err := fetch.ParseWindow("00:00-24:00")
	if err != nil {
		t.Fatal(err)
	}
	b.change(key, fetch.Change{Window: &day})
	x := srv.Next(t)
	b.arrives(key, 1<<20)
	clock.jump(2 * time.Hour)
	b.change(key, fetch.Change{Priority: ptr(1)})
	x.Release()
	if f := b.until(key, final); f.Status != store.Finished || f.Attempts != 1 {
		t.Errorf("got %+v", f)
	}
}

// TestPauseWithoutCheckpoint has a source that cannot prove anything: what came from it is not kept for the pause.
func TestPauseWithoutCheckpoint(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(138, 2<<20)
	half := fetchtest.File{Image: img, Fault: fetchtest.Stall, After: 1 << 20}
	srv := fetchtest.NewHTTP(t, nil)
	b := newBox(t, t.TempDir(), nil)
	key := b.enqueue(srv.Handle("/a.iso", fetchtest.Sequence(half.Serve, fetchtest.Whole(img).Serve)), img.SHA256())
	b.arrives(key, 1<<20)
	b.change(key, fetch.Change{Paused: ptr(true)})
	if left, err := b.slots.Partials(); err != nil || len(left) > 0 {
		t.Errorf("%q, %v", left, err)
	}
	b.change(key, fetch.Change{Paused: ptr(false)})
	if f := b.until(key, final); f.Status != store.Finished || f.ResumedFrom != 0 {
		t.Errorf("got %+v", f)
	}
}
