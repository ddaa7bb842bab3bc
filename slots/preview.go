package slots

import (
	"golang.org/x/sys/unix"
)

// Preview tells which slot [Slots.Reserve] would take now, and changes nothing; see [Slots.Plan]. For the space beside it,
// ask [Slots.Free].
func (s *Slots) Preview(want *int) (int, error) {
	p, err := s.Plan(want)
	return p.Slot, err
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
