package slots

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// BufferSize is the length of each of the [Buffers], in bytes.
const BufferSize = 1 << 20

// Buffers returns n page-aligned buffers of [BufferSize] bytes, fit for O_DIRECT, and the function that gives
// them back to the kernel. They come from one anonymous mapping, so the collector neither sees nor scans them;
// nobody may touch them after release. Release may be called more than once.
func Buffers(n int) (buffers [][]byte, release func() error, err error) {
	if n < 1 || n > 1024 {
		return nil, nil, fmt.Errorf("cannot map %d buffers: want 1 to 1024", n)
	}
	mem, err := unix.Mmap(-1, 0, n*BufferSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot map %d buffers: %w", n, err)
	}
	// A wish: fewer page table walks. Kernels without huge pages say EINVAL.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	for i := range n {
		lo, hi := i*BufferSize, (i+1)*BufferSize
		buffers = append(buffers, mem[lo:hi:hi])
	}
	release = sync.OnceValue(func() error {
		if err := unix.Munmap(mem); err != nil {
			return fmt.Errorf("cannot unmap buffers: %w", err)
		}
		return nil
	})
	return buffers, release, nil
}
