package slots

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	align      = 4096     // what O_DIRECT asks of offset, length and address, in bytes
	window     = 8 << 20  // buffered bytes in flight to the disk
	spaceEvery = 64 << 20 // how often a Writer that knows no total asks for free space, in bytes
)

// Writer writes the partial of one fetch and makes it the image of the reserved slot. It is for one goroutine,
// but Prefix's reader is only good until the next other call.
type Writer struct {
	s    *Slots
	slot int
	key  string
	// evicts says that the slot has an image yet, which makeRoom removes.
	evicts bool

	f      *os.File // buffered, for reading and for unaligned bytes
	direct *os.File // O_DIRECT; nil where there is none, or once the bytes are out of step
	off    int64    // bytes written so far
	total  int64    // preallocated up to here, 0 if not
	budget int64    // bytes that may be written before asking for free space again
	win    flushWindow

	err       error // poison: an I/O error after which nobody knows what is on the disk
	closed    bool  // committed, aborted or suspended
	renamed   bool  // the partial is the image of the slot
	filesDone bool  // both descriptors are closed
}

// begin resets the state of a file that was just opened at offset off.
func (w *Writer) begin(off int64) {
	w.off, w.total, w.budget, w.err = off, 0, 0, nil
	w.win = flushWindow{start: off, before: off}
	w.filesDone = false
}

func (w *Writer) name() string { return w.key + partSuffix }

// Slot is the number of the reserved slot. It may change while that has an image yet; after Commit it does not.
func (w *Writer) Slot() int { return w.slot }

// Offset is how many bytes the partial has, that is, the first byte still missing.
func (w *Writer) Offset() int64 { return w.off }

// Prefix reads the bytes before [Writer.Offset] again. It leaves nothing of them in the page cache.
func (w *Writer) Prefix() io.Reader {
	if w.filesDone {
		return &prefixReader{err: errClosed}
	}
	return &prefixReader{r: io.NewSectionReader(w.f, 0, w.off), f: w.f}
}

// Restart drops everything and goes on at byte 0 of a new file. It also heals a Writer whose Sync failed. What
// Expect was told is forgotten.
func (w *Writer) Restart() error {
	if w.closed || w.renamed {
		return fmt.Errorf("cannot restart %s: %w", w.key, errClosed)
	}
	err := w.closeFiles() // an error of the old file says nothing about the new one, but is not hidden
	if err == nil || w.err != nil {
		err = w.create()
	}
	if err != nil {
		w.err = fmt.Errorf("cannot restart %s: %w", w.key, w.s.inodes(err))
		return w.err
	}
	return nil
}

// Expect announces the length of the image in bytes. It returns a [*SpaceError] if the rest does not fit, and
// otherwise has the file system set it aside, where it can.
func (w *Writer) Expect(total int64) error {
	if err := w.usable(); err != nil {
		return err
	}
	if total < w.off {
		return fmt.Errorf("cannot expect %d bytes of %s: has %d already", total, w.key, w.off)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(w.f.Fd()), &st); err != nil {
		return fmt.Errorf("cannot stat partial of %s: %w", w.key, err)
	}
	needed := max(0, total-st.Blocks*512)
	free, err := w.s.Free()
	if err != nil {
		return err
	}
	if needed > free {
		if gain := w.gain(); needed > free+gain {
			return &SpaceError{Needed: needed, Free: free + gain}
		}
		if err := w.makeRoom(); err != nil {
			return err
		}
	}
	if total == w.off {
		return nil
	}
	for {
		err = unix.Fallocate(int(w.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, w.off, total-w.off)
		if w.evicts && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
			if err = w.makeRoom(); err == nil {
				continue
			}
			return err
		}
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case err == nil:
		w.total = total
		return nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		return nil // Write asks for space as it goes
	}
	return w.spaceOr(err, needed, "preallocate")
}

// usable tells why nothing more may be written.
func (w *Writer) usable() error {
	if w.closed || w.filesDone {
		return fmt.Errorf("cannot write %s: %w", w.key, errClosed)
	}
	return w.err
}

// spaceOr makes a *SpaceError of a full disk or quota, and wraps any other error.
func (w *Writer) spaceOr(err error, needed int64, verb string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		free, ferr := w.s.Free()
		if ferr != nil {
			free = 0
		}
		return &SpaceError{Needed: needed, Free: min(free, max(0, needed-1))} // a quota is not in statfs
	}
	return fmt.Errorf("cannot %s partial of %s: %w", verb, w.key, err)
}

// Write appends p. It is quick if p is a page-aligned piece of a multiple of 4096 bytes, best one of [Buffers]:
// then it goes past the page cache. Any other length works, but from then on bytes are written through the
// cache. It returns a [*SpaceError] when the disk is full; after any other error the Writer refuses to go on.
func (w *Writer) Write(p []byte) (int, error) {
	if err := w.usable(); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := w.askSpace(int64(len(p))); err != nil {
		return 0, err
	}
	n, err := w.writeDirect(p)
	if err == nil && n < len(p) {
		var m int
		m, err = w.writeBuffered(p[n:])
		n += m
	}
	w.budget -= int64(n)
	if err != nil {
		err = w.spaceOr(err, int64(len(p)-n), "write")
		var space *SpaceError
		if !errors.As(err, &space) {
			w.err = err
		}
	}
	return n, err
}

// askSpace keeps the reserve: preallocated bytes are paid for, others are asked for 64 MiB at a time.
func (w *Writer) askSpace(n int64) error {
	if w.off+n <= w.total || n <= w.budget {
		return nil
	}
	free, err := w.s.Free()
	if err != nil {
		return err
	}
	if n > free && w.evicts {
		if err := w.makeRoom(); err != nil {
			return err
		}
		return w.askSpace(n)
	}
	if n > free {
		return &SpaceError{Needed: n, Free: free}
	}
	w.budget = min(free, max(n, spaceEvery))
	return nil
}

// writeDirect writes the aligned part of p. What it leaves is for writeBuffered.
func (w *Writer) writeDirect(p []byte) (int, error) {
	if w.direct == nil {
		return 0, nil
	}
	whole := len(p) &^ (align - 1)
	aligned := w.off%align == 0 && uintptr(unsafe.Pointer(unsafe.SliceData(p)))%align == 0
	if !aligned || whole == 0 {
		return 0, nil
	}
	n, err := w.direct.WriteAt(p[:whole], w.off)
	w.off += int64(n)
	if errors.Is(err, unix.EINVAL) {
		// Some file systems refuse only now, or want a larger alignment.
		return n, nil
	}
	return n, err
}

// writeBuffered writes through the page cache, and from now on nothing else does.
func (w *Writer) writeBuffered(p []byte) (int, error) {
	if w.direct != nil {
		d := w.direct
		w.direct = nil
		w.win = flushWindow{start: w.off, before: w.off}
		if err := d.Close(); err != nil {
			return 0, err
		}
	}
	n, err := w.f.WriteAt(p, w.off)
	w.off += int64(n)
	if err != nil {
		return n, err
	}
	return n, w.win.advance(w.f, w.off)
}

// Sync makes all bytes up to [Writer.Offset] durable. If it fails, nobody knows which of them are; it is never
// tried again on the same file, and the Writer takes only Restart, Abort or Suspend.
func (w *Writer) Sync() error {
	if err := w.usable(); err != nil {
		return err
	}
	for {
		err := unix.Fdatasync(int(w.f.Fd()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			w.err = fmt.Errorf("cannot sync partial of %s: %w", w.key, err)
		}
		return w.err
	}
}

// closeFiles closes both descriptors. Calls after the first do nothing.
func (w *Writer) closeFiles() error {
	if w.filesDone {
		return nil
	}
	w.filesDone = true
	var errs []error
	if w.direct != nil {
		errs = append(errs, w.direct.Close())
		w.direct = nil
	}
	if w.f != nil {
		errs = append(errs, w.f.Close())
	}
	return errors.Join(errs...)
}
