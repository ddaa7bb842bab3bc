package slots

import (
	"errors"
	"fmt"
)

// This file makes room: which slot is emptied for a new image when none is empty, and what would be.

// evict empties the oldest slot that may be, in the durable order of Delete. Without one, the error is ErrNoEmpty. The
// caller has the turn.
func (s *Slots) evict() (id int, gone *Slot, err error) {
	sl, err := s.evictable()
	if err != nil {
		return 0, nil, err
	}
	if err := s.emptyLocked(sl.ID); err != nil {
		return 0, nil, fmt.Errorf("cannot evict slot %d: %w", sl.ID, err)
	}
	return sl.ID, sl, nil
}

// evictable is the oldest whole image that is neither pinned, nor runs, nor boots next. While it is not known which slot
// runs, none is: unlike a Delete, nobody has looked at it. The caller has the turn.
func (s *Slots) evictable() (*Slot, error) {
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
	var oldest *Slot
	for id := s.cfg.First; s.Known(id); id++ {
		sl, err := s.lookLocked(id)
		if err != nil {
			return nil, err
		}
		if sl.Manifest == nil || sl.Reserved || sl.Care.Pinned || b.protects(id) || s.isBusy(id) {
			continue
		}
		if oldest == nil || sl.Manifest.FetchedAt.Before(oldest.Manifest.FetchedAt) {
			oldest = &sl
		}
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
	var p Plan
	var err error
	p.Slot, err = s.choose(want)
	if errors.Is(err, ErrNoEmpty) {
		if p.Evicts, err = s.evictable(); err == nil {
			p.Slot = p.Evicts.ID
		}
	}
	if err == nil {
		err = s.writable()
	}
	if err != nil {
		return Plan{}, fmt.Errorf("cannot choose a slot: %w", err)
	}
	return p, nil
}

// Gain is how many bytes are free in addition once the plan's evictions are done.
func (p Plan) Gain() int64 {
	if p.Evicts == nil {
		return 0
	}
	return p.Evicts.Manifest.Size
}
