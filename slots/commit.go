package slots

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Commit makes the partial the image of the slot and returns the slot's number. When it returns nil, all of it
// is durable and the reservation is over. The Writer fills in Key, Size and FetchedAt if they are zero, and
// refuses a Key or a Size that is not its own. After an error the caller calls Abort, which removes whatever
// there is by then.
func (w *Writer) Commit(m Manifest) (int, error) {
	id, err := w.commit(m)
	if err != nil {
		return 0, fmt.Errorf("cannot commit %s to slot %d: %w", w.key, w.slot, w.s.inodes(err))
	}
	return id, nil
}

func (w *Writer) commit(m Manifest) (int, error) {
	if err := w.usable(); err != nil {
		return 0, err
	}
	if m.Key == "" {
		m.Key = w.key
	}
	if m.Size == 0 {
		m.Size = w.off
	}
	if m.Key != w.key || m.Size != w.off {
		return 0, fmt.Errorf("manifest is for %s with %d bytes, written are %d", m.Key, m.Size, w.off)
	}
	if m.FetchedAt.IsZero() {
		m.FetchedAt = w.s.cfg.Now()
	}
	m.FetchedAt = m.FetchedAt.UTC()
	data, err := m.encode() // before the first step that cannot be taken back
	if err != nil {
		return 0, err
	}
	if err := w.seal(); err != nil {
		return 0, err
	}
	if err := w.makeRoom(); err != nil {
		return 0, err
	}
	dir, err := w.slotDir()
	if err != nil {
		return 0, err
	}
	err = w.publish(dir, data)
	if cerr := dir.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return 0, err
	}
	w.closed = true
	w.s.release(w.slot)
	return w.slot, nil
}

// seal gives the partial its last shape, makes it durable and closes it.
func (w *Writer) seal() error {
	// Truncating to the length that it has drops what was preallocated beyond.
	err := w.f.Truncate(w.off)
	if err == nil {
		err = w.f.Chmod(finalPerm)
	}
	if err == nil {
		err = w.f.Sync()
	}
	if err == nil {
		_ = unix.Fadvise(int(w.f.Fd()), 0, 0, unix.FADV_DONTNEED) // advice only
	}
	if cerr := w.closeFiles(); err == nil {
		err = cerr
	}
	if err != nil {
		w.err = err
	}
	return err
}

// slotDir opens the directory of the slot and makes it, durably, if need be.
func (w *Writer) slotDir() (*os.Root, error) {
	err := w.s.root.Mkdir(slotName(w.slot), dirPerm)
	if err == nil {
		err = syncDir(w.s.root)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return openSub(w.s.root, slotName(w.slot))
}

// publish puts the sealed partial in place, the manifest after it.
func (w *Writer) publish(dir *os.Root, manifest []byte) error {
	if err := w.moveInto(dir); err != nil {
		return err
	}
	w.renamed = true
	if err := errors.Join(syncDir(dir), syncDir(w.s.part)); err != nil {
		return err
	}
	if err := replaceFile(dir, manifestFile, manifest, finalPerm); err != nil {
		return err
	}
	return errors.Join(syncDir(dir), syncDir(w.s.root))
}

// moveInto renames the partial to the image, by descriptors of both directories, so that no link is followed,
// and never over another image.
func (w *Writer) moveInto(dir *os.Root) (err error) {
	for _, name := range []string{manifestFile, imageFile} {
		if _, err := dir.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(ErrOccupied, err)
		}
	}
	from, err := w.s.part.Open(".")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()

	fromFd, toFd := int(from.Fd()), int(to.Fd())
	err = unix.Renameat2(fromFd, w.name(), toFd, imageFile, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = unix.Renameat(fromFd, w.name(), toFd, imageFile) // NFS knows no flags; we looked above
	}
	if errors.Is(err, unix.EEXIST) {
		return ErrOccupied
	}
	if err != nil {
		return fmt.Errorf("cannot rename partial: %w", err)
	}
	return nil
}

// Abort drops the partial durably and gives the slot free. After a Commit that failed half way it also takes
// back what that had put into the slot. After an error the slot stays reserved, and Abort may be tried again, or Suspend
// leaves what there is. Calls after success, and after Commit or Suspend, do nothing.
func (w *Writer) Abort() error {
	if w.closed {
		return nil
	}
	_ = w.closeFiles() // the bytes are to be thrown away: how they fared does not matter
	var err error
	if w.renamed {
		err = w.s.unpublish(w.slot)
	}
	err = errors.Join(err, removeFile(w.s.part, w.name()), syncDir(w.s.part))
	if err != nil {
		return fmt.Errorf("cannot abort %s: %w", w.key, err)
	}
	w.closed = true
	w.s.release(w.slot)
	return nil
}

// Suspend closes the partial, keeps it for a later Reserve, and gives the slot free. It does not sync: only
// what a Sync before it made durable is sure to be there. Calls after the first, and after Commit or Abort, do
// nothing.
func (w *Writer) Suspend() error {
	if w.closed {
		return nil
	}
	w.closed = true
	defer w.s.release(w.slot)
	if err := w.closeFiles(); err != nil {
		return fmt.Errorf("cannot suspend %s: %w", w.key, err)
	}
	return nil
}
