// Package slots keeps firmware images in numbered places on disk.
//
// A slot N is the directory Dir/N with an image and a manifest.json. The manifest is written last and removed
// first, so it is the record that promises the bytes: an image without one is swept by [Open], a manifest
// without its image is a damaged slot, which stays occupied until somebody deletes it. Nothing about slots is
// kept in memory or in SQL; each question is answered from the disk.
//
// Unverified bytes live in Dir/.part/<key>.partial. [Slots.Reserve] hands out the one [Writer] that may touch
// them and that turns them into a slot.
//
// Everything is opened below an [os.Root], and never through a symbolic link.
package slots

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	partDir      = ".part"
	lockFile     = ".lock"
	imageFile    = "image"
	manifestFile = "manifest.json"
	tempSuffix   = ".tmp"
	partSuffix   = ".partial"

	dirPerm   = 0o700
	imagePerm = 0o640 // while it is written
	finalPerm = 0o440 // once it is committed
)

// Config says where the slots are and how they behave.
type Config struct {
	// Dir holds the slots and the partials; it is made if absent. All of it must be one file system.
	Dir string
	// First is the number of the lowest slot, 0 or above, and Count how many there are, 1 or more.
	First, Count int
	// Reserve is kept free on the file system, in bytes.
	Reserve int64
	// RequireISO makes [Writer.Inspect] refuse an image that is no ISO 9660 file system.
	RequireISO bool
	// VersionFile is the path, inside the ISO, of the file whose first line is the version; empty for none.
	VersionFile string
	// ManifestFile is the path, inside the ISO, of the JSON file in which the vendor says what the image is; empty for none.
	ManifestFile string
	// Evict empties the oldest slot that may be emptied for a Reserve that finds none; see evict.go. Evicted is told of each.
	Evict   bool
	Evicted func(Slot)
	// WayBack tells which slot the box would go back to from the current one; it is evicted only if there is no other. Nil: none.
	WayBack func(current int) (slot int, known bool)
	// Buffered switches O_DIRECT off, for tests.
	Buffered bool
	// Now is the clock for manifests; nil means [time.Now].
	Now func() time.Time
	// Log gets what an admin must know about the disk; nil means [slog.Default].
	Log *slog.Logger
}

// Slots owns a directory of slots. All its methods may be called concurrently.
type Slots struct {
	cfg  Config
	root *os.Root // Dir

	// turn lets one of Reserve, Delete, SetBoot and RemovePartial look at the disk and act on what it saw. It is
	// held over their few small file operations on purpose: without it, what was seen may be gone.
	turn  sync.Mutex
	part  *os.Root // Dir/.part; nil if it is not there yet. Set before there is a Writer, and not changed after
	lock  *os.File // flock'ed as long as the Slots is open; nil if it could not be yet
	swept bool

	mu        sync.Mutex
	held      map[int]string      // slot → key of its Writer, or "" while the slot is being deleted
	spared    map[int]bool        // slots in held whose image is still there, for it has not been in the way yet
	freed     chan struct{}       // closed and replaced when a slot is no longer held
	unwritten map[int]careOnDisk  // what the disk did not take, by slot
	busy      map[int]bool        // slots that Hold holds
	runs      atomic.Pointer[int] // the slot that runs, if somebody said so
	bootless  bool                // boot.json could not be read the last time
	closed    bool
}

// Open makes the directories, locks Dir against other agents, and brings the disk in order after a crash.
// It returns an error that wraps [ErrLocked] if Dir is open already. If Dir cannot be written, see [ReadOnly], all of
// this but the opening waits until it can: slots are read, and each change tries again. The owner calls Close after the
// last Writer is committed, aborted or suspended.
func Open(cfg Config) (*Slots, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Dir == "" || cfg.First < 0 || cfg.Count < 1 || cfg.Reserve < 0 {
		return nil, fmt.Errorf("cannot open slots: bad configuration (dir %q, first %d, count %d, reserve %d)",
			cfg.Dir, cfg.First, cfg.Count, cfg.Reserve)
	}
	s := &Slots{cfg: cfg, held: make(map[int]string), spared: make(map[int]bool), freed: make(chan struct{}), busy: make(map[int]bool), unwritten: make(map[int]careOnDisk)}
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open slots in %s: %w", cfg.Dir, err), s.Close())
	}
	return s, nil
}

func (s *Slots) open() error {
	if err := s.makeDir(); err != nil {
		return err
	}
	var err error
	if s.root, err = os.OpenRoot(s.cfg.Dir); err != nil {
		return err
	}
	if err = s.prepare(); ReadOnly(err) {
		s.cfg.Log.Error("the slots directory cannot be written; until it can, nothing is fetched or deleted", "err", err)
		return nil
	}
	return err
}

// prepare does what has to come before any change, as far as it is not done yet. The caller has the turn.
func (s *Slots) prepare() error {
	if s.swept {
		return nil
	}
	if err := s.takeLock(); err != nil {
		return err
	}
	if err := s.makePart(); err != nil {
		return err
	}
	if err := s.sweep(); err != nil {
		return err
	}
	s.swept = true
	return nil
}

func (s *Slots) takeLock() error {
	if s.lock != nil {
		return nil
	}
	// For reading, which is enough to lock: an idle agent is no reason why the file system cannot be remounted.
	f, err := s.root.OpenFile(lockFile, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		f, err = openRegular(s.root, lockFile, os.O_RDONLY)
	}
	if err != nil {
		return err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errors.Join(ErrLocked, f.Close())
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cannot lock: %w", err), f.Close())
	}
	s.lock = f
	return nil
}

func (s *Slots) makePart() error {
	if s.part != nil {
		return nil
	}
	if err := s.root.Mkdir(partDir, dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	part, err := openSub(s.root, partDir)
	if err != nil {
		return err
	}
	if err := syncDir(s.root); err != nil {
		return errors.Join(err, part.Close())
	}
	s.part = part
	return nil
}

// makeDir makes Dir, and its name durable if it is new.
func (s *Slots) makeDir() error {
	if _, err := os.Stat(s.cfg.Dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(s.cfg.Dir, dirPerm); err != nil {
		return err
	}
	parent, err := os.OpenRoot(filepath.Dir(filepath.Clean(s.cfg.Dir)))
	if errors.Is(err, fs.ErrPermission) {
		return nil // we may make an entry there, but not read it, so there is nothing to sync through
	}
	if err != nil {
		return err
	}
	return errors.Join(syncDir(parent), parent.Close())
}

// Close gives the directory free. Every Writer must be finished before. Calls after the first do nothing.
func (s *Slots) Close() error {
	s.mu.Lock()
	done := s.closed
	s.closed = true
	s.mu.Unlock()
	if done {
		return nil
	}
	// Reverse order of open: the lock goes last but for the root it was opened in.
	var errs []error
	if s.part != nil {
		errs = append(errs, s.part.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	if s.root != nil {
		errs = append(errs, s.root.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot close slots: %w", err)
	}
	return nil
}

// Free is how many bytes may still be written: what the file system has for us, less the reserve, at least 0.
func (s *Slots) Free() (int64, error) {
	st, err := s.statfs()
	if err != nil {
		return 0, err
	}
	unit := st.Frsize // the unit of the block counts, as in statvfs; 0 on file systems that do not fill it in
	if unit == 0 {
		unit = st.Bsize
	}
	return max(0, int64(st.Bavail)*unit-s.cfg.Reserve), nil
}

// inodes adds [ErrNoInodes] to err where it comes of that. A file system that counts no inodes has no such error.
func (s *Slots) inodes(err error) error {
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	st, serr := s.statfs()
	if serr != nil || st.Files == 0 || st.Ffree > 0 {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoInodes, err)
}

func (s *Slots) statfs() (st unix.Statfs_t, err error) {
	dir, err := s.root.Open(".")
	if err != nil {
		return st, fmt.Errorf("cannot ask for free space in %s: %w", s.cfg.Dir, err)
	}
	defer dir.Close() //nolint:errcheck // it was only asked
	for {
		err := unix.Fstatfs(int(dir.Fd()), &st)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return st, fmt.Errorf("cannot ask for free space in %s: %w", s.cfg.Dir, err)
		}
		return st, nil
	}
}

// Count is how many slots there are.
func (s *Slots) Count() int { return s.cfg.Count }

// Known tells whether id is one of our slots.
func (s *Slots) Known(id int) bool {
	return id >= s.cfg.First && id < s.cfg.First+s.cfg.Count
}

// slotName is the directory of a slot.
func slotName(id int) string { return strconv.Itoa(id) }

// openSub opens a real directory of root. [os.Root] alone would follow a symbolic link that stays inside.
func openSub(root *os.Root, name string) (*os.Root, error) {
	before, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !before.IsDir() {
		return nil, fmt.Errorf("cannot open %s: %w", name, syscall.ENOTDIR)
	}
	sub, err := root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	after, err := sub.Stat(".")
	if err == nil && !os.SameFile(before, after) {
		err = fmt.Errorf("cannot open %s: changed under our hands", name)
	}
	if err != nil {
		return nil, errors.Join(err, sub.Close())
	}
	return sub, nil
}

// openRegular opens a regular file of dir that exists. Like openSub it follows no link ([os.Root] follows those
// that stay inside, whatever the flags), and a FIFO does not block it.
func openRegular(dir *os.Root, name string, flag int) (*os.File, error) {
	before, err := dir.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("cannot open %s: no regular file", name)
	}
	f, err := dir.OpenFile(name, flag, 0)
	if err != nil {
		return nil, err
	}
	after, err := f.Stat()
	if err == nil && !os.SameFile(before, after) {
		err = fmt.Errorf("cannot open %s: changed under our hands", name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// syncDir makes the names in dir durable.
func syncDir(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return fmt.Errorf("cannot open directory: %w", err)
	}
	if err := d.Sync(); err != nil {
		return errors.Join(fmt.Errorf("cannot sync directory %s: %w", dir.Name(), err), d.Close())
	}
	return d.Close()
}

// removeFile removes a name of dir; a name that is not there is no error.
func removeFile(dir *os.Root, name string) error {
	err := dir.Remove(name)
	if err != nil {
		if _, lerr := dir.Lstat(name); errors.Is(lerr, fs.ErrNotExist) {
			return nil // a read-only file system does not look
		}
	}
	return err
}

// replaceFile writes a small file atomically: temporary file, fsync, rename. The caller syncs dir.
func replaceFile(dir *os.Root, name string, data []byte, perm os.FileMode) error {
	temp := name + tempSuffix
	if err := removeFile(dir, temp); err != nil { // a leftover of a crash, or a link somebody planted
		return err
	}
	f, err := dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = dir.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cannot write %s: %w", name, err), removeFile(dir, temp))
	}
	return nil
}
