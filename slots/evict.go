package slots

import (
	"errors"
	"fmt"
)

// This file makes room: which slot is emptied for a new image when none is empty, when, and what would be.
//
// A Writer that has to evict takes the slot at once and empties it when the image of the old one is in the way: as soon as the
// new bytes do not fit beside it, else when the new image is whole and about to take its place. So what never comes, or is not
// what it should be, costs nothing if there is room for both.

// makeRoom empties the slot of the Writer, if that is still to be done, in the durable order of Delete. If somebody needs that
// slot by now, it takes another; the error wraps ErrNoEmpty if there is none.
func (w *Writer) makeRoom() error {
	if !w.evicts {
		return nil
	}
	gone, err := w.evict()
	if gone != nil {
		w.s.cfg.Log.Warn("evicted an image to make room", "slot", gone.ID, "version", gone.Manifest.Version, "sha256", gone.Manifest.SHA256, "for", w.key)
		if w.s.cfg.Evicted != nil {
			w.s.cfg.Evicted(*gone)
		}
	}
	return err
}

func (w *Writer) evict() (gone *Slot, err error) {
	s := w.s
	s.turn.Lock()
	defer s.turn.Unlock()
	sl, err := s.evictable(w)
	if err != nil {
		return nil, fmt.Errorf("cannot evict: %w", err)
	}
	if sl.ID != w.slot {
		s.release(w.slot)
		w.slot = sl.ID
	}
	s.mu.Lock()
	s.held[w.slot] = w.key
	delete(s.spared, w.slot)
	s.mu.Unlock()
	w.evicts = false
	if err := s.unpublish(w.slot); err != nil {
		return nil, fmt.Errorf("cannot evict slot %d: %w", w.slot, err)
	}
	return sl, nil
}

// gain is how many bytes makeRoom would free.
func (w *Writer) gain() int64 {
	if !w.evicts {
		return 0
	}
	w.s.turn.Lock()
	defer w.s.turn.Unlock()
	sl, err := w.s.evictable(w)
	if err != nil {
		return 0
	}
	return sl.Manifest.Size
}

// evictable is the oldest whole image that is neither pinned, nor runs, nor boots next, and the way back only if there is no
// other. Those that Writers have taken do not count, but for that of w, which may be nil. While it is not known which slot
// runs, none is: unlike a Delete, nobody has looked at it. The caller has the turn.
func (s *Slots) evictable(w *Writer) (*Slot, error) {
	if !s.cfg.Evict {
		return nil, ErrNoEmpty
	}
	b, err := s.boot()
	if err != nil {
		return nil, err
	}
	if b.Current == nil {
		return nil, fmt.Errorf("%w, and none is evicted while it is not known which one runs", ErrNoEmpty)
	}
	back, known := 0, false
	if s.cfg.WayBack != nil {
		back, known = s.cfg.WayBack(*b.Current)
	}
	var oldest, way *Slot
	for id := s.cfg.First; s.Known(id); id++ {
		sl, err := s.lookLocked(id)
		if err != nil {
			return nil, err
		}
		if sl.Manifest == nil || sl.Reserved && (w == nil || id != w.slot) || sl.Care.Pinned || b.protects(id) || s.isBusy(id) {
			continue
		}
		if known && id == back {
			way = &sl
			continue
		}
		if oldest == nil || sl.Manifest.FetchedAt.Before(oldest.Manifest.FetchedAt) {
			oldest = &sl
		}
	}
	if oldest == nil {
		oldest = way
	}
	if oldest == nil {
		return nil, ErrNoEmpty
	}
	return oldest, nil
}

// Plan is what would happen to an image now.
type Plan struct {
	// Slot is where it would go.
	Slot int
	// Evicts is what would be emptied for it; nil if nothing.
	Evicts *Slot
}

// Plan tells which slot [Slots.Reserve] would take now and what it would evict, and changes nothing. Its errors are those
// of Reserve; one for which [ReadOnly] is true says that the directory cannot be written, as far as that shows without
// writing.
func (s *Slots) Plan(want *int) (Plan, error) {
	s.turn.Lock()
	defer s.turn.Unlock()
	p, err := s.planLocked(want)
	if err == nil {
		err = s.writable()
	}
	if err != nil {
		return Plan{}, fmt.Errorf("cannot choose a slot: %w", err)
	}
	return p, nil
}

func (s *Slots) planLocked(want *int) (p Plan, err error) {
	p.Slot, err = s.choose(want)
	if errors.Is(err, ErrNoEmpty) {
		if p.Evicts, err = s.evictable(nil); err == nil {
			p.Slot = p.Evicts.ID
		}
	}
	return p, err
}

// Gain is how many bytes are free in addition once the plan's evictions are done.
func (p Plan) Gain() int64 {
	if p.Evicts == nil {
		return 0
	}
	return p.Evicts.Manifest.Size
}
