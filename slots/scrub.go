package slots

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// This file reads an image again, from the disk and not from the page cache, and compares its digest.

// Scrub reads the image of slot id as a whole and notes whether it still is what its manifest promises. pace, which may
// be nil, is asked before each piece of at most [BufferSize] bytes; its error ends the scrub without a result. The errors
// wrap [ErrUnknown], [ErrEmpty], also if the slot is emptied meanwhile, [ErrDamaged], or what ctx and pace say. An image
// that differs is no error: ask the slot.
func (s *Slots) Scrub(ctx context.Context, id int, pace Pace) (Slot, error) {
	began := time.Now()
	sl, err := s.Get(id)
	switch {
	case err != nil:
		return Slot{}, err
	case sl.Damaged:
		return Slot{}, fmt.Errorf("cannot scrub slot %d: %w", id, ErrDamaged)
	case sl.Manifest == nil:
		return Slot{}, fmt.Errorf("cannot scrub slot %d: %w", id, ErrEmpty)
	}
	m := sl.Manifest
	sum, err := s.hashImage(ctx, id, m.Size, pace)
	var bad *badImage
	if err != nil && !errors.As(err, &bad) {
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrEmpty
		}
		return Slot{}, fmt.Errorf("cannot scrub slot %d: %w", id, err)
	}
	degraded := err != nil || sum != m.SHA256
	if sl, err = s.noteScrub(id, m, degraded); err != nil {
		return Slot{}, err
	}
	switch took := time.Since(began).Round(time.Millisecond).String(); {
	case bad != nil:
		s.cfg.Log.Error("slot is degraded: its image cannot be read; fetch it again into another slot and check the disk", "slot", id, "key", m.Key, "err", bad)
	case degraded:
		s.cfg.Log.Error("slot is degraded: its image has changed; fetch it again into another slot and check the disk", "slot", id, "key", m.Key, "want", m.SHA256, "got", sum)
	default:
		s.cfg.Log.Info("slot scrubbed", "slot", id, "key", m.Key, "bytes", m.Size, "took", took)
	}
	return sl, nil
}

// badImage says that an image is not whole or not readable.
type badImage struct{ error }

func (e *badImage) Unwrap() error { return e.error }

// hashImage is the SHA-256, in hex, of the image of slot id, which should have size bytes; else the error is a *badImage.
func (s *Slots) hashImage(ctx context.Context, id int, size int64, pace Pace) (sum string, err error) {
	dir, err := openSub(s.root, slotName(id))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	f, direct, err := openCold(dir, s.cfg.Buffered)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if info.Size() != size {
		return "", &badImage{fmt.Errorf("image has %d bytes, not %d", info.Size(), size)}
	}
	bufs, release, err := Buffers(1)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, release()) }()
	h := sha256.New()
	for off := int64(0); off < size; {
		n := int(min(size-off, BufferSize))
		if pace != nil {
			if err := pace(ctx, n); err != nil {
				return "", err
			}
		}
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		got, err := f.ReadAt(bufs[0], off) // the whole buffer: O_DIRECT wants an aligned length
		if direct && off == 0 && errors.Is(err, unix.EINVAL) {
			// Some file systems refuse only now.
			plain, _, perr := openCold(dir, true)
			if perr != nil {
				return "", perr
			}
			_ = f.Close() // it was only read
			f, direct = plain, false
			got, err = f.ReadAt(bufs[0], off)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return "", &badImage{err}
		}
		if got < n {
			return "", &badImage{fmt.Errorf("image ends after %d bytes", off+int64(got))}
		}
		h.Write(bufs[0][:n])
		if !direct {
			_ = unix.Fadvise(int(f.Fd()), off, int64(n), unix.FADV_DONTNEED) // advice only
		}
		off += int64(n)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// openCold opens the image so that reading it asks the disk: with O_DIRECT, or with nothing of it in the page cache.
func openCold(dir *os.Root, buffered bool) (f *os.File, direct bool, err error) {
	if !buffered {
		f, err := openRegular(dir, imageFile, os.O_RDONLY|unix.O_DIRECT)
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return f, true, err
		}
	}
	if f, err = openRegular(dir, imageFile, os.O_RDONLY); err != nil {
		return nil, false, err
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM) // no reading ahead of the pace
	return f, false, nil
}

// quiet returns when no Writer is open, or with the cause of ctx.
func (s *Slots) quiet(ctx context.Context) error {
	for {
		busy := false
		s.mu.Lock()
		for _, key := range s.held {
			busy = busy || key != ""
		}
		freed := s.freed
		s.mu.Unlock()
		if !busy {
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
