package fetch

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"slotfetch/slots"
)

const (
	// buffers is how many a pipeline has: one being filled, one hashed, one written, one between. More buy nothing.
	buffers = 4
	// block is what a checkpoint's offset is a multiple of, so that direct I/O can go on there.
	block = 4096
)

// digests hashes an image with SHA-256 and, where asked for, SHA-512.
type digests struct {
	sha256, sha512 hash.Hash // sha512 may be nil
}

func newDigests(want512 bool) *digests {
	d := &digests{sha256: sha256.New()}
	if want512 {
		d.sha512 = sha512.New()
	}
	return d
}

func (d *digests) Write(p []byte) (int, error) {
	if d.sha512 != nil {
		d.sha512.Write(p)
	}
	return d.sha256.Write(p)
}

// got are the digests so far, in hex; sha512 is empty if it was not asked for.
func (d *digests) got() (sum256, sum512 string) {
	sum256 = fmt.Sprintf("%x", d.sha256.Sum(nil))
	if d.sha512 != nil {
		sum512 = fmt.Sprintf("%x", d.sha512.Sum(nil))
	}
	return sum256, sum512
}

// hashState is the marshalled form of digests, for a checkpoint. What is inside is the Go library's business.
type hashState struct {
	SHA256 []byte `json:"sha256"`
	SHA512 []byte `json:"sha512,omitempty"`
}

func (d *digests) state() ([]byte, error) {
	var s hashState
	var err error
	if s.SHA256, err = d.sha256.(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
		return nil, err
	}
	if d.sha512 != nil {
		if s.SHA512, err = d.sha512.(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
			return nil, err
		}
	}
	return json.Marshal(s)
}

func (d *digests) restore(state []byte) error {
	var s hashState
	if err := json.Unmarshal(state, &s); err != nil {
		return err
	}
	if err := d.sha256.(encoding.BinaryUnmarshaler).UnmarshalBinary(s.SHA256); err != nil {
		return err
	}
	if d.sha512 != nil {
		return d.sha512.(encoding.BinaryUnmarshaler).UnmarshalBinary(s.SHA512)
	}
	return nil
}

// buffer is one piece on its way; hasher and writer both release it.
type buffer struct {
	mem  []byte
	n    int
	refs atomic.Int32
}

// pipeline moves a stream through the hasher and the writer, which work at the same time. Each worker has one; its
// memory is mapped once and never seen by the collector.
type pipeline struct {
	all     [buffers]*buffer
	free    chan *buffer
	release func() error
	stages  *stages // of the attempt that runs
}

func newPipeline() (*pipeline, error) {
	mem, release, err := slots.Buffers(buffers)
	if err != nil {
		return nil, fmt.Errorf("cannot map buffers: %w", err)
	}
	p := &pipeline{free: make(chan *buffer, buffers), release: release, stages: new(stages)}
	for i, m := range mem {
		p.all[i] = &buffer{mem: m}
		p.free <- p.all[i]
	}
	return p, nil
}

// gather makes all buffers free again, also one that a panic took along. Nobody may be at work.
func (p *pipeline) gather() {
	for len(p.free) > 0 {
		<-p.free
	}
	for _, b := range p.all {
		p.free <- b
	}
}

func (p *pipeline) close() error { return p.release() }

// errWrite marks errors of the disk, as against those of the source.
type errWrite struct{ error }

func (e errWrite) Unwrap() error { return e.error }

// run moves src to its end through d and w. progress is told of every read, due of every piece handed on; when due says
// so, idle is called with hasher and writer at rest. Nobody else may touch d and w meanwhile. On an error of the source, what arrived is hashed and written up to
// a multiple of block, so that a checkpoint can be taken there. The error is the source's, or an errWrite.
func (p *pipeline) run(ctx context.Context, src io.Reader, d *digests, w *slots.Writer, progress func(int), due func(n int) bool, idle func() error) error {
	hashes, writes := make(chan *buffer, buffers), make(chan *buffer, buffers)
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	wg.Go(func() {
		for b := range hashes {
			p.stages.hash.begin()
			d.Write(b.mem[:b.n])
			p.stages.hash.end()
			p.done(b)
		}
	})
	wg.Go(func() {
		for b := range writes {
			if failed.Load() == nil {
				p.stages.disk.begin()
				if err := write(w, b.mem[:b.n]); err != nil {
					failed.Store(&err)
				}
				p.stages.disk.end()
			}
			p.done(b)
		}
	})
	end := sync.OnceFunc(func() {
		close(hashes)
		close(writes)
		wg.Wait()
		p.gather()
	})
	defer end() // after a panic
	err := p.feed(ctx, src, hashes, writes, &failed, progress, due, idle)
	end()
	if e := failed.Load(); e != nil {
		return *e
	}
	return err
}

// write writes b. Its goroutine has nobody else to catch a panic.
func write(w *slots.Writer, b []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errWrite{fmt.Errorf("panic: %v\n%s", p, debug.Stack())}
		}
	}()
	if _, err := w.Write(b); err != nil {
		return errWrite{err}
	}
	return nil
}

func (p *pipeline) done(b *buffer) {
	if b.refs.Add(-1) == 0 {
		p.free <- b
	}
}

func (p *pipeline) feed(ctx context.Context, src io.Reader, hashes, writes chan<- *buffer, failed *atomic.Pointer[error],
	progress func(int), due func(n int) bool, idle func() error) error {
	for {
		b := <-p.free
		p.stages.network.begin()
		n, err := fill(src, b.mem, progress)
		p.stages.network.end()
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil && err != io.EOF {
			n &^= block - 1
		}
		if n == 0 {
			p.free <- b
		} else {
			b.n = n
			b.refs.Store(2)
			hashes <- b
			writes <- b
		}
		switch {
		case failed.Load() != nil:
			return nil
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		if due(n) {
			if err := p.rest(failed, idle); err != nil {
				return err
			}
		}
	}
}

// rest takes all buffers, which means that hasher and writer have nothing in hand, and calls idle.
func (p *pipeline) rest(failed *atomic.Pointer[error], idle func() error) error {
	var taken [buffers]*buffer
	for i := range taken {
		taken[i] = <-p.free
	}
	defer func() {
		for _, b := range taken {
			p.free <- b
		}
	}()
	if failed.Load() != nil {
		return nil
	}
	p.stages.disk.begin()
	defer p.stages.disk.end()
	return idle()
}

// fill reads until mem is full or the stream ends.
func fill(src io.Reader, mem []byte, progress func(int)) (n int, err error) {
	for n < len(mem) && err == nil {
		var k int
		k, err = src.Read(mem[n:])
		n += k
		if k > 0 {
			progress(k)
		}
	}
	return n, err
}

// isWrite tells whether err came from the disk.
func isWrite(err error) bool {
	var e errWrite
	return errors.As(err, &e)
}
