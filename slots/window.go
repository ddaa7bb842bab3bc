package slots

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// flushWindow keeps buffered writing from filling the page cache: each full window is started on its way to the
// disk, the one before it is waited for and dropped. So the last fsync is short, and the box keeps its cache.
// It is not durability; that is fdatasync.
type flushWindow struct {
	start  int64 // first byte of the window being filled
	before int64 // first byte of the window on its way; equal to start if there is none
}

// advance is told that bytes up to off are written. An error it returns is an error of writeback, which fsync
// may not report a second time, so it counts like one of fsync.
func (fw *flushWindow) advance(f *os.File, off int64) error {
	if off-fw.start < window {
		return nil
	}
	fd := int(f.Fd())
	if err := syncRange(fd, fw.start, off-fw.start, unix.SYNC_FILE_RANGE_WRITE); err != nil {
		return err
	}
	if n := fw.start - fw.before; n > 0 {
		const wait = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		if err := syncRange(fd, fw.before, n, wait); err != nil {
			return err
		}
		// Advice only: where it is not taken, the cache is fuller, and that is all.
		_ = unix.Fadvise(fd, fw.before, n, unix.FADV_DONTNEED)
	}
	fw.before, fw.start = fw.start, off
	return nil
}

func syncRange(fd int, off, n int64, flags int) error {
	for {
		err := unix.SyncFileRange(fd, off, n, flags)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ESPIPE):
			return nil // not there on this file system; the fsync then has more to do
		}
		return err
	}
}

// prefixReader reads a file from its start and drops behind it what it read.
type prefixReader struct {
	r       *io.SectionReader
	f       *os.File
	read    int64
	dropped int64
	err     error
}

// Read is for [io.Reader].
func (p *prefixReader) Read(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	n, err := p.r.Read(b)
	p.read += int64(n)
	if p.read-p.dropped >= window || errors.Is(err, io.EOF) {
		_ = unix.Fadvise(int(p.f.Fd()), p.dropped, p.read-p.dropped, unix.FADV_DONTNEED)
		p.dropped = p.read
	}
	return n, err
}
