package slots

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The errors that callers branch on; they arrive wrapped, so compare with [errors.Is].
var (
	// ErrNoEmpty says that no slot is empty and unreserved.
	ErrNoEmpty = errors.New("no slot is empty")
	// ErrOccupied says that the slot asked for holds an image, is damaged, or is reserved by another fetch.
	ErrOccupied = errors.New("slot is occupied")
	// ErrUnknown says that there is no slot of this number.
	ErrUnknown = errors.New("no such slot")
	// ErrEmpty says that there is nothing in the slot to delete.
	ErrEmpty = errors.New("slot is empty")
	// ErrReserved says that a running fetch holds the slot or the partial.
	ErrReserved = errors.New("reserved by a running fetch")
	// ErrBusy says that the slot is being tested.
	ErrBusy = errors.New("slot is being tested")
	// ErrProtected says that the slot runs now or boots next.
	ErrProtected = errors.New("slot is current or chosen for the next boot")
	// ErrPinned says that somebody has pinned the image in the slot.
	ErrPinned = errors.New("slot is pinned")
	// ErrDamaged says that the slot is not whole, so that nothing can be done but empty it.
	ErrDamaged = errors.New("slot is damaged")
	// ErrBoot says that boot.json cannot be read, so that nobody knows which slots must stay as they are.
	ErrBoot = errors.New("cannot tell which slot boots")
	// ErrNotISO says that the bytes are no ISO 9660 image.
	ErrNotISO = errors.New("not an ISO 9660 image")
	// ErrNoInodes says that the file system cannot hold another file, however many bytes it has.
	ErrNoInodes = errors.New("the file system has no inode left")
	// ErrLocked says that another process, or another Open, owns the directory.
	ErrLocked = errors.New("directory is locked by another agent")
)

// ReadOnly tells whether err says that the directory cannot be written, whatever the reason: a read-only file system,
// another owner, an immutable file.
func ReadOnly(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)
}

// errClosed is what a Writer answers after Commit, Abort or Suspend.
var errClosed = errors.New("writer is closed")

// SpaceError says that the file system cannot take the image and still keep the configured reserve.
type SpaceError struct {
	// Needed is what had to be found, in bytes.
	Needed int64
	// Free is what there was beyond the reserve, in bytes.
	Free int64
}

// Error is a sentence for the user.
func (e *SpaceError) Error() string {
	return fmt.Sprintf("Not enough space: needs %d bytes, %d are free", e.Needed, e.Free)
}
