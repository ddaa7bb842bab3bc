package slots

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Image is the image of a slot, open for reading, and what its manifest says.
type Image struct {
	Manifest Manifest
	// Path is where the image is, absolute if the directory of the slots was.
	Path string

	file   *os.File
	direct *os.File // the same past the page cache; nil where there is none
}

// OpenImage opens the image of slot id below dir, with no [Slots] between: the root side uses it. The error wraps
// [ErrEmpty] if nothing is there; any other means that the slot is damaged or the disk does not answer.
func OpenImage(dir string, id int) (*Image, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	img, err := openImage(root, id, true)
	if err = errors.Join(err, root.Close()); err != nil {
		return nil, fmt.Errorf("cannot open the image of slot %d: %w", id, err)
	}
	img.Path = filepath.Join(dir, slotName(id), imageFile)
	return img, nil
}

func openImage(root *os.Root, id int, direct bool) (img *Image, err error) {
	dir, err := openSub(root, slotName(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrEmpty
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	m, err := readManifest(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read manifest: %w", err)
	}
	f, err := openRegular(dir, imageFile, os.O_RDONLY)
	switch {
	case errors.Is(err, fs.ErrNotExist) && m == nil:
		return nil, ErrEmpty
	case errors.Is(err, fs.ErrNotExist):
		return nil, errors.New("manifest has no image")
	case err != nil:
		return nil, err
	case m == nil:
		return nil, errors.Join(errNoManifest, f.Close())
	}
	img = &Image{Manifest: *m, file: f}
	info, err := f.Stat()
	if err == nil && info.Size() != m.Size {
		err = fmt.Errorf("image has %d bytes, its manifest says %d", info.Size(), m.Size)
	}
	if err != nil {
		return nil, errors.Join(err, img.Close())
	}
	if !direct {
		return img, nil
	}
	if d, err := openRegular(dir, imageFile, os.O_RDONLY|unix.O_DIRECT); err == nil {
		if other, err := d.Stat(); err == nil && os.SameFile(info, other) {
			img.direct = d
		} else {
			_ = d.Close()
		}
	}
	return img, nil
}

// Close closes the image.
func (img *Image) Close() error {
	err := img.file.Close()
	if img.direct != nil {
		err = errors.Join(err, img.direct.Close())
	}
	return err
}

// Pace is asked before each piece of n bytes is read; it may take its time, and an error ends the reading.
type Pace = func(ctx context.Context, n int) error

// Digest reads the whole image from the disk, not from the page cache, and gives its SHA-256 in hex. Pace may be nil. It ends
// with the cause of ctx.
func (img *Image) Digest(ctx context.Context, pace Pace) (string, error) {
	buffers, release, err := Buffers(1)
	if err != nil {
		return "", err
	}
	defer release() //nolint:errcheck // there is nothing else to do with it
	// What is in the cache may be better, or worse, than what a reboot will find. This drops clean pages only, and pages
	// of a committed image are clean.
	_ = unix.Fadvise(int(img.file.Fd()), 0, 0, unix.FADV_DONTNEED)
	h, buf := sha256.New(), buffers[0]
	for off := int64(0); off < img.Manifest.Size; {
		if pace != nil {
			if err := pace(ctx, int(min(int64(len(buf)), img.Manifest.Size-off))); err != nil {
				return "", err
			}
		}
		if err := context.Cause(ctx); err != nil {
			return "", err
		}
		n, err := img.readAt(buf, off)
		n = int(min(int64(n), img.Manifest.Size-off))
		h.Write(buf[:n])
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("cannot read image: %w", err)
		}
		if n == 0 {
			return "", fmt.Errorf("cannot read image: %w", io.ErrUnexpectedEOF)
		}
		if img.direct == nil {
			_ = unix.Fadvise(int(img.file.Fd()), off, int64(n), unix.FADV_DONTNEED)
		}
		off += int64(n)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// readAt reads past the page cache as long as the file system lets it, which some do not though they opened the file.
func (img *Image) readAt(buf []byte, off int64) (int, error) {
	if img.direct != nil && off%align == 0 {
		n, err := img.direct.ReadAt(buf, off)
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
		_ = img.direct.Close()
		img.direct = nil
	}
	return img.file.ReadAt(buf, off)
}
