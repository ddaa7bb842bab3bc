package slots

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Preview tells which slot [Slots.Reserve] would take now, and changes nothing. Its errors are those of Reserve; one for
// which [ReadOnly] is true says that the directory cannot be written, as far as that shows without writing. For the
// space beside it, ask [Slots.Free].
func (s *Slots) Preview(want *int) (int, error) {
	s.turn.Lock()
	defer s.turn.Unlock()
	id, err := s.choose(want)
	if err == nil {
		err = s.writable()
	}
	if err != nil {
		return 0, fmt.Errorf("cannot choose a slot: %w", err)
	}
	return id, nil
}

// writable asks whether the agent may make files in Dir.
func (s *Slots) writable() error {
	dir, err := s.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // it was only asked
	return unix.Faccessat(int(dir.Fd()), ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS)
}
