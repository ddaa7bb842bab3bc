package slots_test

import (
	"errors"
	"os/exec"
	"testing"
	"time"

	"slotfetch/slots"
)

// The oldest image makes room, and never one that is pinned, runs or boots next.
func TestEvict(t *testing.T) {
	dir, now := t.TempDir(), time.Date(2026, 5, 4, 8, 0, 0, 0, time.UTC)
	var gone []int
	open := func(evict bool) *slots.Slots {
		return openIn(t, dir, func(c *slots.Config) {
			c.Evict, c.Evicted = evict, func(sl slots.Slot) { gone = append(gone, sl.ID) }
			c.Now = func() time.Time { return now }
		})
	}
	s := open(true)
	for n, id := range []int{3, 1, 5, 2, 4} { // from the oldest to the newest
		now = now.Add(time.Hour)
		fill(t, s, n+1, ptr(id), []byte{byte(n)})
	}
	full := func(why string) {
		t.Helper()
		_, err := s.Plan(nil)
		wantErr(t, err, slots.ErrNoEmpty)
		if _, err := s.Reserve(key(9), nil, 0); err == nil {
			t.Errorf("reserved, though %s", why)
		}
	}
	full("nobody knows what runs")
	must(t, s.SetBoot(ptr(3), ptr(1)))
	_, err := s.ChangeCare(5, func(c *slots.Care) { c.Pinned = true })
	must(t, err)
	p, err := s.Plan(nil)
	must(t, err)
	if p.Slot != 2 || p.Evicts == nil || p.Evicts.ID != 2 || p.Gain() != 1 || get(t, s, 2).Manifest == nil {
		t.Errorf("got %+v", p)
	}
	_, err = s.Plan(ptr(2))
	wantErr(t, err, slots.ErrOccupied) // a slot that is asked for is not emptied for that
	must(t, s.Close())
	s = open(false)
	full("the configuration says never")
	must(t, s.Close())

	s = open(true)
	a, b := reserve(t, s, key(9), nil, 0), reserve(t, s, key(10), nil, 0)
	if a.Slot() != 2 || b.Slot() != 4 || len(gone) != 0 {
		t.Errorf("took %d and %d, evicted %v", a.Slot(), b.Slot(), gone)
	}
	full("what is left is taken, pinned, runs or boots next")
	wantErr(t, s.Delete(2), slots.ErrReserved)
	put(t, a, []byte("not what it should be"))
	must(t, a.Abort())
	if len(gone) != 0 || get(t, s, 2).Manifest == nil {
		t.Errorf("evicted %v for an image that was none", gone)
	}
	var space *slots.SpaceError
	if err := b.Expect(1 << 60); !errors.As(err, &space) || len(gone) != 0 {
		t.Errorf("evicted %v for what cannot fit: %v", gone, err)
	}
	put(t, b, []byte("whole"))
	release, err := s.Hold(4) // somebody tests it, to go back to it
	must(t, err)
	id, err := b.Commit(slots.Manifest{SHA256: sum([]byte("whole"))})
	release()
	if err != nil || id != 2 || b.Slot() != 2 || len(gone) != 1 || gone[0] != 2 || get(t, s, 4).Reserved || get(t, s, 2).Manifest.Key != key(10) {
		t.Errorf("committed to %d, evicted %v: %v", id, gone, err)
	}
	a = reserve(t, s, key(9), nil, 0)
	put(t, a, []byte("whole"))
	_, err = s.ChangeCare(4, func(c *slots.Care) { c.Pinned = true })
	must(t, err)
	_, err = s.ChangeCare(2, func(c *slots.Care) { c.Pinned = true })
	must(t, err)
	_, err = a.Commit(slots.Manifest{SHA256: sum([]byte("whole"))})
	wantErr(t, err, slots.ErrNoEmpty)
	must(t, a.Abort())
	if len(gone) != 1 || get(t, s, 4).Reserved {
		t.Errorf("evicted %v", gone)
	}
}

// The way back goes last.
func TestEvictWayBack(t *testing.T) {
	s := openIn(t, t.TempDir(), func(c *slots.Config) {
		c.Count, c.Evict = 3, true
		c.WayBack = func(current int) (int, bool) { return 1, current == 3 }
	})
	for id := 1; id <= 3; id++ {
		fill(t, s, id, ptr(id), []byte{byte(id)})
	}
	must(t, s.SetBoot(ptr(3), nil))
	for n, want := range []int{2, 1} {
		w := reserve(t, s, key(9+n), nil, 0)
		put(t, w, []byte("new"))
		id, err := w.Commit(slots.Manifest{SHA256: sum([]byte("new"))})
		if err != nil || id != want {
			t.Errorf("took %d, want %d: %v", id, want, err)
		}
		_, err = s.ChangeCare(want, func(c *slots.Care) { c.Pinned = true })
		must(t, err)
	}
}

// On a small disk the old image goes as soon as it is in the way, and not for one that does not fit even then.
func TestEvictForSpace(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: a small disk, for it cannot be mounted: %s", out)
	}
	t.Cleanup(func() { must(t, exec.Command("umount", dir).Run()) })
	gone := 0
	s := openIn(t, dir, func(c *slots.Config) {
		c.Count, c.Evict, c.Evicted = 2, true, func(slots.Slot) { gone++ }
	})
	old := make([]byte, 1<<20)
	fill(t, s, 1, ptr(1), old)
	fill(t, s, 2, ptr(2), old)
	must(t, s.SetBoot(ptr(2), nil))
	for n, tt := range []struct {
		size      int
		announced bool
		evicted   int // before Commit
		fits      bool
	}{{4 << 20, true, 0, false}, {1 << 20, true, 0, true}, {5 << 19, true, 1, true}, {1 << 20, false, 1, true}, {1 << 20, false, 0, true}, {5 << 19, false, 1, true}, {4 << 20, false, 1, false}} {
		gone = 0
		w := reserve(t, s, key(10+n), nil, 0)
		data := make([]byte, tt.size)
		var err error
		if tt.announced {
			err = w.Expect(int64(tt.size))
		}
		for at := 0; at < len(data) && err == nil; at += 1 << 18 {
			_, err = w.Write(data[at : at+1<<18])
		}
		if space := new(*slots.SpaceError); gone != tt.evicted || (err == nil) != tt.fits || err != nil && !errors.As(err, space) {
			t.Errorf("%+v: evicted %d, %v", tt, gone, err)
		}
		if !tt.fits {
			must(t, w.Abort())
			continue
		}
		if _, err := w.Commit(slots.Manifest{SHA256: sum(data)}); err != nil || gone != 1 {
			t.Errorf("%+v: evicted %d, %v", tt, gone, err)
		}
	}
}
