package fetchtest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

const blockSize = 64 << 10

// Image is a made-up image of any size: the same seed and size always give the same bytes, no two blocks of it are
// equal, and it occupies no memory. It is safe for concurrent use.
type Image struct {
	block  []byte
	size   int64
	digest func() string
}

// NewImage makes the image of size bytes that belongs to seed.
func NewImage(seed uint64, size int64) *Image {
	img := &Image{block: make([]byte, blockSize), size: size}
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(img.block) // never fails
	img.digest = sync.OnceValue(func() string {
		h := sha256.New()
		_, _ = io.Copy(h, img.Reader()) // neither side fails
		return hex.EncodeToString(h.Sum(nil))
	})
	return img
}

// Size is the length in bytes.
func (i *Image) Size() int64 { return i.size }

// SHA256 is the digest in lower-case hex.
func (i *Image) SHA256() string { return i.digest() }

// ReadAt implements [io.ReaderAt].
func (i *Image) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) && off < i.size {
		start := off % blockSize
		end := min(blockSize, start+i.size-off)
		var number [8]byte // the first bytes of each block are its number
		binary.BigEndian.PutUint64(number[:], uint64(off/blockSize))
		if start < int64(len(number)) {
			end = min(end, int64(len(number)))
			m := copy(p[n:], number[start:end])
			n, off = n+m, off+int64(m)
			continue
		}
		m := copy(p[n:], i.block[start:end])
		n, off = n+m, off+int64(m)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Reader reads the whole image.
func (i *Image) Reader() *io.SectionReader { return io.NewSectionReader(i, 0, i.size) }

// Bytes is the whole image; for small ones.
func (i *Image) Bytes() []byte {
	b := make([]byte, i.size)
	_, _ = i.ReadAt(b, 0) // EOF only past the end
	return b
}

// WriteFile writes the image to dir/name, dated modified, and gives the path. A file that is there is replaced by
// a new one.
func (i *Image) WriteFile(t testing.TB, dir, name string, modified time.Time) string {
	t.Helper()
	path := filepath.Join(dir, name)
	f, err := os.CreateTemp(dir, ".image")
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(f, i.Reader())
	for _, err := range []error{err, f.Chmod(0o644), f.Close(), os.Chtimes(f.Name(), modified, modified), os.Rename(f.Name(), path)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return path
}
