package slots

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Reserve takes an empty slot for the fetch of this key, the lowest one or *want, and opens its partial. If
// offset is positive and the partial has at least that many bytes, it is cut to offset and kept; otherwise it
// starts empty: ask [Writer.Offset]. The slots that run now or boot next are not taken even if they are empty: what came
// into them would be shown as what runs. Its errors wrap [ErrNoEmpty], [ErrOccupied] (the slot wanted is full, damaged or
// reserved), [ErrProtected], [ErrUnknown], [ErrBoot], or [ErrReserved] when this key has a Writer already.
//
// If the configuration says so, a slot that may be evicted is taken where else the error would be ErrNoEmpty. Its image stays
// until it is in the way; see evict.go.
//
// The reservation ends with Commit, Abort or Suspend, one of which must be called.
func (s *Slots) Reserve(key string, want *int, offset int64) (*Writer, error) {
	if !validKey(key) {
		return nil, fmt.Errorf("cannot reserve a slot: key %q is no canonical UUID", key)
	}
	if offset < 0 {
		return nil, fmt.Errorf("cannot reserve a slot for %s: offset %d is negative", key, offset)
	}
	s.turn.Lock()
	defer s.turn.Unlock()

	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("cannot reserve a slot for %s: %w", key, s.inodes(err))
	}
	if s.keyHeld(key) {
		return nil, fmt.Errorf("cannot reserve a slot for %s: %w", key, ErrReserved)
	}
	p, err := s.planLocked(want)
	if err != nil {
		return nil, fmt.Errorf("cannot reserve a slot for %s: %w", key, err)
	}
	w := &Writer{s: s, slot: p.Slot, key: key, evicts: p.Evicts != nil}
	if err := w.open(offset); err != nil {
		return nil, fmt.Errorf("cannot open partial of %s: %w", key, s.inodes(errors.Join(err, w.closeFiles())))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[p.Slot] = key
	if w.evicts {
		s.spared[p.Slot] = true
	}
	return w, nil
}

// choose finds the slot to reserve. The caller has the turn.
func (s *Slots) choose(want *int) (int, error) {
	if want != nil && !s.Known(*want) {
		return 0, fmt.Errorf("slot %d: %w", *want, ErrUnknown)
	}
	b, err := s.boot()
	if err != nil {
		return 0, err
	}
	if want != nil {
		sl, err := s.lookLocked(*want)
		if err != nil {
			return 0, err
		}
		if !sl.empty() || sl.Reserved {
			return 0, fmt.Errorf("slot %d: %w", *want, ErrOccupied)
		}
		if b.protects(*want) {
			return 0, fmt.Errorf("slot %d: %w", *want, ErrProtected)
		}
		return *want, nil
	}
	for id := s.cfg.First; s.Known(id); id++ {
		sl, err := s.lookLocked(id)
		if err != nil {
			return 0, err
		}
		if sl.empty() && !sl.Reserved && !b.protects(id) {
			return id, nil
		}
	}
	return 0, ErrNoEmpty
}

// keyHeld tells whether a Writer of this key is open.
func (s *Slots) keyHeld(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.held {
		if k == key {
			return true
		}
	}
	return false
}

// Partials returns the keys of the partials on disk, those being written too. Recovery removes the ones that
// no row owns.
func (s *Slots) Partials() ([]string, error) {
	part, err := openSub(s.root, partDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list partials: %w", err)
	}
	defer part.Close() //nolint:errcheck // it was only read
	d, err := part.Open(".")
	if err != nil {
		return nil, fmt.Errorf("cannot list partials: %w", err)
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return nil, fmt.Errorf("cannot list partials: %w", err)
	}
	var keys []string
	for _, name := range names {
		if key, ok := strings.CutSuffix(name, partSuffix); ok && validKey(key) {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// RemovePartial removes a partial durably; one that is not there is no error. The error wraps [ErrReserved]
// while a Writer has it open: abort that instead.
func (s *Slots) RemovePartial(key string) error {
	if !validKey(key) {
		return fmt.Errorf("cannot remove partial: key %q is no canonical UUID", key)
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	if err := s.prepare(); err != nil {
		if _, lerr := s.root.Lstat(filepath.Join(partDir, key+partSuffix)); errors.Is(lerr, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("cannot remove partial of %s: %w", key, err)
	}
	if s.keyHeld(key) {
		return fmt.Errorf("cannot remove partial of %s: %w", key, ErrReserved)
	}
	if err := errors.Join(removeFile(s.part, key+partSuffix), syncDir(s.part)); err != nil {
		return fmt.Errorf("cannot remove partial of %s: %w", key, err)
	}
	return nil
}

// open opens the partial at offset, or a new one at 0.
func (w *Writer) open(offset int64) error {
	info, err := w.s.part.Lstat(w.name())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return w.create()
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no regular file", w.name()) // somebody else's doing: not ours to repair
	case offset == 0 || info.Size() < offset:
		return w.create()
	}
	if info.Mode().Perm()&0o200 == 0 { // a Commit got as far as making it read-only
		if err := w.s.part.Chmod(w.name(), imagePerm); err != nil {
			return err
		}
	}
	if w.f, err = openRegular(w.s.part, w.name(), os.O_RDWR); err != nil {
		return err
	}
	if err := w.f.Truncate(offset); err != nil {
		return err
	}
	w.begin(offset)
	return w.openDirect()
}

// create starts with a new, empty file. A new inode also gets rid of a failed fsync: the old one is never
// synced again.
func (w *Writer) create() error {
	err := removeFile(w.s.part, w.name())
	if err != nil {
		return err
	}
	w.f, err = w.s.part.OpenFile(w.name(), os.O_RDWR|os.O_CREATE|os.O_EXCL, imagePerm)
	if err != nil {
		return err
	}
	w.begin(0) // from here on Abort and Suspend close it
	if err := syncDir(w.s.part); err != nil {
		return err
	}
	return w.openDirect()
}

// openDirect opens the second descriptor, for aligned bytes. A file system that has no O_DIRECT is no error.
func (w *Writer) openDirect() error {
	if w.s.cfg.Buffered {
		return nil
	}
	d, err := openRegular(w.s.part, w.name(), os.O_WRONLY|unix.O_DIRECT)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	a, err := w.f.Stat()
	if err != nil {
		return errors.Join(err, d.Close())
	}
	b, err := d.Stat()
	if err == nil && !os.SameFile(a, b) {
		err = fmt.Errorf("%s changed under our hands", w.name())
	}
	if err != nil {
		return errors.Join(err, d.Close())
	}
	w.direct = d
	return nil
}
