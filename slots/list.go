package slots

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Slot is what there was to see of a slot when it was asked for.
type Slot struct {
	ID int
	// Manifest describes the image; nil when the slot is empty or damaged.
	Manifest *Manifest
	// Care is what was noted about the image; see care.go.
	Care Care
	// Damaged says that the disk holds something that is no finished slot; it is occupied until deleted.
	Damaged bool
	// Reserved says that a running fetch will fill the slot.
	Reserved bool
	// Current says that the box runs this slot, AfterReboot that it boots it next.
	Current, AfterReboot bool
}

// empty tells whether an image could be committed here.
func (sl Slot) empty() bool { return sl.Manifest == nil && !sl.Damaged }

// errNoManifest marks the one damage that Open repairs: an image that nobody promised.
var errNoManifest = errors.New("image has no manifest")

// read looks at the disk. A slot that is neither empty nor whole has a problem; err is for a disk that does
// not answer.
func (s *Slots) read(id int) (m *Manifest, problem, err error) {
	dir, err := openSub(s.root, slotName(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, err, nil
	}
	defer func() { err = errors.Join(err, dir.Close()) }()

	m, problem = readManifest(dir)
	if problem != nil {
		return nil, fmt.Errorf("cannot read manifest: %w", problem), nil
	}
	info, err := dir.Lstat(imageFile)
	switch {
	case errors.Is(err, fs.ErrNotExist) && m == nil:
		return nil, nil, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, errors.New("manifest has no image"), nil
	case err != nil:
		return nil, nil, err
	case m == nil:
		return nil, errNoManifest, nil
	case !info.Mode().IsRegular():
		return nil, errors.New("image is no regular file"), nil
	case info.Size() != m.Size:
		return nil, fmt.Errorf("image has %d bytes, its manifest says %d", info.Size(), m.Size), nil
	}
	return m, nil, nil
}

// lookLocked is look for a caller that has the turn, so that nobody reserves or deletes meanwhile.
func (s *Slots) lookLocked(id int) (Slot, error) {
	// First who holds it, then the disk: a hold can only be dropped now, and that after its work is whole.
	s.mu.Lock()
	key, held := s.held[id]
	s.mu.Unlock()
	m, problem, err := s.read(id)
	if err != nil {
		return Slot{}, fmt.Errorf("cannot read slot %d: %w", id, err)
	}
	if held && errors.Is(problem, errNoManifest) {
		problem = nil // its Writer is between the image and the manifest
	}
	return Slot{ID: id, Manifest: m, Care: s.careOf(id, m), Damaged: problem != nil, Reserved: held && key != ""}, nil
}

// look reads one slot, without boot.json.
func (s *Slots) look(id int) (Slot, error) {
	s.mu.Lock()
	key, held := s.held[id]
	s.mu.Unlock()
	m, problem, err := s.read(id)
	if err == nil && problem == nil {
		return Slot{ID: id, Manifest: m, Care: s.careOf(id, m), Reserved: held && key != ""}, nil
	}
	// It may only look so because a commit or a delete is half way. Look again when nobody is.
	s.turn.Lock()
	defer s.turn.Unlock()
	return s.lookLocked(id)
}

// Get returns one slot. The error wraps [ErrUnknown] if there is none of this number. While boot.json cannot be read, no
// slot is known to be current or to boot next.
func (s *Slots) Get(id int) (Slot, error) {
	if !s.Known(id) {
		return Slot{}, fmt.Errorf("cannot get slot %d: %w", id, ErrUnknown)
	}
	sl, err := s.look(id)
	if err != nil {
		return Slot{}, err
	}
	return s.bootIfKnown().mark(sl), nil
}

// List returns all slots in number order, the empty ones too. Of boot.json the same holds as for Get.
func (s *Slots) List() ([]Slot, error) {
	b := s.bootIfKnown()
	list := make([]Slot, 0, s.cfg.Count)
	for id := s.cfg.First; s.Known(id); id++ {
		sl, err := s.look(id)
		if err != nil {
			return nil, err
		}
		list = append(list, b.mark(sl))
	}
	return list, nil
}

// mark adds what boot.json says of the slot.
func (b bootChoice) mark(sl Slot) Slot {
	sl.Current = b.Current != nil && *b.Current == sl.ID
	sl.AfterReboot = b.AfterReboot != nil && *b.AfterReboot == sl.ID
	return sl
}

// Valid tells whether the slot holds a whole image. It compares lengths, not digests.
func (s *Slots) Valid(id int) bool {
	if !s.Known(id) {
		return false
	}
	sl, err := s.look(id)
	return err == nil && sl.Manifest != nil
}

// FindKey returns the slot that the fetch of this key filled, for recovery: the disk knows it even if the
// row could not be written any more.
func (s *Slots) FindKey(key string) (Slot, bool) {
	for id := s.cfg.First; s.Known(id); id++ {
		sl, err := s.look(id)
		if err != nil || sl.Manifest == nil || sl.Manifest.Key != key {
			continue
		}
		return s.bootIfKnown().mark(sl), true
	}
	return Slot{}, false
}

// sweep brings the disk in order at the start. It may be cut short and run again.
func (s *Slots) sweep() error {
	b, bootErr := s.boot()
	if bootErr != nil {
		s.cfg.Log.Error("cannot tell which slot boots, so nothing is swept", "err", bootErr)
	}
	if err := removeFile(s.root, bootFile+tempSuffix); err != nil {
		return err
	}
	for id := s.cfg.First; s.Known(id); id++ {
		if err := s.sweepTemp(id); err != nil {
			return fmt.Errorf("cannot sweep slot %d: %w", id, err)
		}
		m, problem, err := s.read(id)
		if err != nil {
			return fmt.Errorf("cannot read slot %d: %w", id, err)
		}
		switch {
		case problem == nil && m == nil:
			if err := s.sweepCare(id); err != nil {
				return fmt.Errorf("cannot sweep slot %d: %w", id, err)
			}
		case problem == nil:
		case errors.Is(problem, errNoManifest) && bootErr == nil && !b.protects(id):
			s.cfg.Log.Warn("sweep image without a manifest", "slot", id)
			if err := s.unpublish(id); err != nil {
				return fmt.Errorf("cannot sweep slot %d: %w", id, err)
			}
		default:
			s.cfg.Log.Error("slot is damaged; it stays occupied until it is deleted", "slot", id, "err", problem)
		}
	}
	return nil
}

// sweepTemp removes what was never renamed. It also looks whether the rest of what is small can be read.
func (s *Slots) sweepTemp(id int) error {
	dir, err := openSub(s.root, slotName(id))
	if err != nil {
		return nil //nolint:nilerr // not there, or no directory: read will tell
	}
	if _, err := readCare(dir, ""); err != nil {
		s.cfg.Log.Error("what was noted about a slot cannot be read; it counts as pinned until it is pinned or unpinned again", "slot", id, "err", err)
	}
	return errors.Join(removeFile(dir, manifestFile+tempSuffix), removeFile(dir, careFile+tempSuffix), dir.Close())
}

// sweepCare removes what a Delete that was cut off has left beside an image.
func (s *Slots) sweepCare(id int) error {
	dir, err := openSub(s.root, slotName(id))
	if err != nil {
		return nil //nolint:nilerr // not there: read has looked
	}
	return errors.Join(removeFile(dir, careFile), dir.Close())
}

// Delete empties a slot, also a damaged one. Its errors wrap [ErrUnknown], [ErrEmpty], [ErrReserved],
// [ErrProtected], [ErrPinned] or [ErrBusy]. After any other error the slot is either whole or has no manifest any more, and then the
// next Open sweeps it.
func (s *Slots) Delete(id int) error { return s.delete(id, "") }

func (s *Slots) delete(id int, sha256 string) error {
	if !s.Known(id) {
		return fmt.Errorf("cannot delete slot %d: %w", id, ErrUnknown)
	}
	s.turn.Lock()
	defer s.turn.Unlock()

	if err := s.prepare(); err != nil {
		return fmt.Errorf("cannot delete slot %d: %w", id, err)
	}
	b, err := s.boot()
	if err != nil {
		return fmt.Errorf("cannot delete slot %d: %w", id, err) // not knowing what boots, delete nothing
	}
	sl, err := s.lookLocked(id)
	switch {
	case err != nil:
		return fmt.Errorf("cannot delete slot %d: %w", id, err)
	case sl.Reserved:
		return fmt.Errorf("cannot delete slot %d: %w", id, ErrReserved)
	case sl.empty(), sha256 != "" && (sl.Manifest == nil || sl.Manifest.SHA256 != sha256):
		return fmt.Errorf("cannot delete slot %d: %w", id, ErrEmpty)
	case b.protects(id):
		return fmt.Errorf("cannot delete slot %d: %w", id, ErrProtected)
	case s.isBusy(id):
		return fmt.Errorf("cannot delete slot %d: %w", id, ErrBusy)
	case sl.Care.Pinned:
		return fmt.Errorf("cannot delete slot %d: %w", id, ErrPinned)
	}
	if err := s.emptyLocked(id); err != nil {
		return fmt.Errorf("cannot delete slot %d: %w", id, err)
	}
	return nil
}

// emptyLocked empties a slot of which the caller, who has the turn, knows that it may be.
func (s *Slots) emptyLocked(id int) error {
	s.mu.Lock()
	s.held[id] = ""
	s.mu.Unlock()
	defer s.release(id)
	return s.unpublish(id)
}

// release gives a slot free again.
func (s *Slots) release(id int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.held, id)
	delete(s.spared, id)
	close(s.freed)
	s.freed = make(chan struct{})
}

// unpublish takes the promise back before the bytes: manifest, directory fsync, image. The caller sees to it
// that nobody else is at the slot.
func (s *Slots) unpublish(id int) error {
	dir, err := openSub(s.root, slotName(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		if info, lerr := s.root.Lstat(slotName(id)); lerr == nil && !info.IsDir() {
			// Somebody put a link or a file in place of the slot: remove that, not what it points to.
			return errors.Join(s.root.Remove(slotName(id)), syncDir(s.root))
		}
		return err
	}
	err = unpublishIn(dir)
	if err == nil {
		// What may come back of it after a power cut names the image that is gone.
		err = errors.Join(removeFile(dir, careFile+tempSuffix), removeFile(dir, careFile))
	}
	return errors.Join(err, dir.Close())
}

func unpublishIn(dir *os.Root) error {
	for _, name := range []string{manifestFile + tempSuffix, manifestFile} {
		if err := removeFile(dir, name); err != nil {
			return err
		}
	}
	if err := syncDir(dir); err != nil {
		return err // the manifest may come back after a power cut; then its image must still be there
	}
	if err := removeFile(dir, imageFile); err != nil {
		return err
	}
	return syncDir(dir)
}
