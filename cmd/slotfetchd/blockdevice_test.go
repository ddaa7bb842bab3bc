package main_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// recorder is a disk image in memory that remembers each write and each flush. The kernel sees it as a file, by FUSE;
// a loop device on that file carries a real file system.
type recorder struct {
	file string // where the image is seen
	fd   int    // of /dev/fuse

	mu     sync.Mutex
	image  []byte
	log    []diskEvent
	limit  int // writes after so many fail; 0: none do
	writes int
	slow   time.Duration // that each flush takes
}

// diskEvent is a write, or a flush if data is nil.
type diskEvent struct {
	at   int64
	data []byte
}

// newRecorder shows image as a file, until the test is over, or skips the test where that is not possible.
func newRecorder(t *testing.T, image []byte, limit int) *recorder {
	t.Helper()
	r := &recorder{file: filepath.Join(t.TempDir(), "disk"), image: image, limit: limit}
	check(t, os.WriteFile(r.file, nil, 0o600))
	var err error
	if r.fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		t.Skipf("SKIPPED %s: cannot open /dev/fuse: %v", t.Name(), err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=100600,user_id=%d,group_id=%d", r.fd, os.Getuid(), os.Getgid())
	if err := unix.Mount("slotfetch-test", r.file, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		unix.Close(r.fd)
		t.Skipf("SKIPPED %s: cannot mount FUSE: %v", t.Name(), err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.serve()
	}()
	t.Cleanup(func() {
		if err := unix.Unmount(r.file, 0); err != nil {
			t.Errorf("cannot unmount %s: %v", r.file, err)
			_ = unix.Unmount(r.file, unix.MNT_DETACH) // at least nothing stays behind
		}
		<-done
		unix.Close(r.fd)
	})
	return r
}

// all are the events so far, the image after them, and how many writes were asked for.
func (r *recorder) all() (log []diskEvent, image []byte, writes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.log), slices.Clone(r.image), r.writes
}

// position is how many events there were so far.
func (r *recorder) position() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.log)
}

const (
	fuseForget, fuseGetattr, fuseSetattr, fuseOpen, fuseRead, fuseWrite = 2, 3, 4, 14, 15, 16
	fuseRelease, fuseFsync, fuseFlush, fuseInit, fuseInterrupt          = 18, 20, 25, 26, 36
	fuseInHeader, fuseWriteIn                                           = 40, 40

	fuseDirect    = 1                   // of open: no page cache between us and the loop device
	fuseFlags     = 1<<0 | 1<<5 | 1<<22 // of init: reads at a time, large writes, more than 32 pages
	fuseMax       = 1 << 20             // bytes of a read or a write
	fuseMinor     = 31                  // what we speak is 7.31
	attrLength    = 16 + 88             // struct fuse_attr_out
	initOutLength = 64                  // struct fuse_init_out
	requestLength = fuseMax + fuseInHeader + 4096
)

// serve answers the kernel until the file is unmounted. See fuse(4) and linux/fuse.h.
func (r *recorder) serve() {
	buf := make([]byte, requestLength)
	le := binary.NativeEndian
	for {
		n, err := unix.Read(r.fd, buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil || n < fuseInHeader { // ENODEV: unmounted
			return
		}
		request := buf[fuseInHeader:n]
		var out []byte
		errno := unix.Errno(0)
		switch le.Uint32(buf[4:]) {
		case fuseForget, fuseInterrupt:
			continue // neither has an answer
		case fuseInit:
			out = make([]byte, initOutLength)
			le.PutUint32(out, 7)
			le.PutUint32(out[4:], fuseMinor)
			le.PutUint32(out[8:], le.Uint32(request[8:])) // read ahead
			le.PutUint32(out[12:], le.Uint32(request[12:])&fuseFlags)
			le.PutUint32(out[20:], fuseMax)
			le.PutUint32(out[24:], 1) // time in nanoseconds
			le.PutUint16(out[28:], fuseMax/4096)
		case fuseGetattr, fuseSetattr:
			out = make([]byte, attrLength)
			attr := out[16:]
			le.PutUint64(attr, 1)
			le.PutUint64(attr[8:], uint64(len(r.image)))
			le.PutUint64(attr[16:], uint64(len(r.image)/512))
			le.PutUint32(attr[60:], unix.S_IFREG|0o600)
			le.PutUint32(attr[64:], 1)
		case fuseOpen:
			out = make([]byte, 16)
			le.PutUint32(out[8:], fuseDirect)
		case fuseRead:
			out = r.read(int64(le.Uint64(request[8:])), int64(le.Uint32(request[16:])))
		case fuseWrite:
			out = make([]byte, 8)
			data := request[fuseWriteIn:][:le.Uint32(request[16:])]
			if !r.write(int64(le.Uint64(request[8:])), data) {
				out, errno = nil, unix.EIO
			}
			if out != nil {
				le.PutUint32(out, uint32(len(data)))
			}
		case fuseFsync:
			if !r.flush() {
				errno = unix.EIO
			}
		case fuseFlush, fuseRelease:
		default:
			errno = unix.ENOSYS
		}
		answer := make([]byte, 16, 16+len(out))
		le.PutUint32(answer, uint32(16+len(out)))
		le.PutUint32(answer[4:], uint32(-int32(errno)))
		copy(answer[8:16], buf[8:16])                   // which request
		_, _ = unix.Write(r.fd, append(answer, out...)) // fails if the request was interrupted
	}
}

func (r *recorder) read(at, n int64) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	end := int64(len(r.image))
	return slices.Clone(r.image[min(at, end):min(at+n, end)])
}

func (r *recorder) write(at int64, data []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.writes++; r.limit > 0 && r.writes > r.limit || at+int64(len(data)) > int64(len(r.image)) {
		return false
	}
	r.log = append(r.log, diskEvent{at, slices.Clone(data)})
	copy(r.image[at:], data)
	return true
}

// slowDown lets each flush from now on take so long.
func (r *recorder) slowDown(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slow = d
}

func (r *recorder) flush() bool {
	r.mu.Lock()
	slow := r.slow
	r.mu.Unlock()
	time.Sleep(slow) // as the disk would, which does nothing else meanwhile
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, diskEvent{})
	return r.limit == 0 || r.writes <= r.limit
}
