package slots

import "fmt"

// Hold keeps the image of a slot where it is until release is called: meanwhile Delete answers [ErrBusy], and so does
// another Hold. Its errors wrap [ErrUnknown], [ErrEmpty] or [ErrBusy]; a damaged slot can be held.
func (s *Slots) Hold(id int) (release func(), err error) {
	if !s.Known(id) {
		return nil, fmt.Errorf("cannot hold slot %d: %w", id, ErrUnknown)
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	sl, err := s.lookLocked(id)
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot hold slot %d: %w", id, err)
	case sl.empty(), sl.Reserved && !s.isSpared(id):
		return nil, fmt.Errorf("cannot hold slot %d: %w", id, ErrEmpty)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[id] {
		return nil, fmt.Errorf("cannot hold slot %d: %w", id, ErrBusy)
	}
	s.busy[id] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.busy, id)
	}, nil
}

// isSpared tells whether a Writer will evict the slot, and has not yet: who holds the slot keeps it from that.
func (s *Slots) isSpared(id int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spared[id]
}

// isBusy tells whether somebody holds the slot.
func (s *Slots) isBusy(id int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy[id]
}
