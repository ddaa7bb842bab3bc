package slots_test

import (
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
	a := reserve(t, s, key(9), nil, 0)
	if a.Slot() != 2 || len(gone) != 1 || gone[0] != 2 || get(t, s, 2).Manifest != nil || exists(imageOf(dir, 2)) {
		t.Errorf("took %d, evicted %v", a.Slot(), gone)
	}
	if b := reserve(t, s, key(10), nil, 0); b.Slot() != 4 {
		t.Errorf("took %d", b.Slot())
	}
	full("what is left is pinned, runs or boots next")
	if len(gone) != 2 {
		t.Errorf("evicted %v", gone)
	}
}
