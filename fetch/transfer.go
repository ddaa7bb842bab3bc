package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/time/rate"

	"slotfetch/fetch/source"
	"slotfetch/slots"
	"slotfetch/store"
)

// This file is one attempt: bytes from a source into the partial, checkpoints on the way, and the digest at the end.

// attempt is one connection's worth of trying, up to the comparison of the digests. It is done when the image is there; what
// is no image but a Metalink leads to others.
func (d *download) attempt(ctx context.Context, c *candidate) (done bool, err error) {
	var f store.Fetch
	err = d.insist(ctx, "beginning an attempt", func() (err error) {
		f, err = d.m.cfg.Store.BeginAttempt(d.f.Key)
		return err
	})
	if errors.Is(err, store.ErrConflict) {
		return false, errCancelled
	}
	if err != nil {
		return false, err
	}
	d.fl.progress.set(store.Downloading, f.Attempts)
	d.m.notify()
	err = d.logged(ctx, f.Attempts, c, func(req source.Request) error {
		if isMetalink(req.URL) {
			return d.expand(ctx, req)
		}
		done = true
		if d.complete() {
			return d.verify(ctx)
		}
		err := d.transfer(ctx, c.url, req)
		var e *source.Error
		if errors.As(err, &e) && e.Code == "range" && d.hasImage() {
			err = nil // there is no such part, because nothing is missing
		}
		if err != nil {
			return err
		}
		return d.verify(ctx)
	})
	d.count(ctx, err)
	return done && err == nil, err
}

// complete tells whether the partial is known to have all bytes.
func (d *download) complete() bool {
	return d.w.Offset() > 0 && d.w.Offset() == d.validator.Size && (d.proved() || d.validator.ETag != "")
}

// hasImage tells whether what the partial holds is the image that was asked for.
func (d *download) hasImage() bool {
	sum, _ := d.digests.got()
	return sum == d.f.SHA256
}

// transfer moves bytes until the stream ends. Whatever ends it early, what arrived is kept with a checkpoint.
func (d *download) transfer(ctx context.Context, from string, req source.Request) error {
	stream, in, err := d.open(ctx, from, req)
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // the Close whose error counts comes below
	total := stream.Validator.Size
	d.savedAt, d.pending = d.m.cfg.Now(), 0
	err = d.pipe.run(ctx, in, d.digests, d.w, d.receive, d.due, d.checkpoint)
	if isWrite(err) {
		return err
	}
	cerr := stream.Close()
	switch {
	case err == nil && total >= 0 && d.w.Offset() < total:
		err = source.NewError("broken", "The connection broke.", nil)
	case err == nil && cerr != nil && (total < 0 || d.w.Offset() != total || !d.proved()):
		err = cerr // with all bytes there, the digest has the last word, if there is one
	}
	if err == nil {
		return nil
	}
	if errors.Is(context.Cause(ctx), errCancelled) {
		return d.describe(err, total) // the count stays as it was last seen
	}
	d.fl.progress.stream(d.w.Offset(), total, nil)
	if d.w.Offset() > d.saved {
		if err := d.checkpoint(); err != nil {
			return err
		}
	}
	return d.describe(err, total)
}

// open opens a stream that goes on where the partial ends, and gives what to read of it, no faster than the limits allow. The
// partial is given up where the stream begins at byte 0; that of another source only for a stream that has shown something.
func (d *download) open(ctx context.Context, from string, req source.Request) (_ *source.Stream, in io.Reader, err error) {
	offset := d.w.Offset()
	if d.from != from {
		offset = 0
	}
	stream, err := d.m.cfg.Source.Open(ctx, req, offset, d.validator)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			_ = stream.Close() // there is a better reason
		}
	}()
	size := stream.Validator.Size
	if err := d.rightSize(size); err != nil {
		return nil, nil, err
	}
	if stream.Endless && !d.proved() {
		return nil, nil, source.NewError("no_end", "The server does not say how long the image is, and nobody what its SHA-256 is.", nil)
	}
	in = &limited{ctx: ctx, r: stream, limits: []*rate.Limiter{d.fl.limit, d.m.limit}, held: &d.attemptLog.stages.limit, beat: d.fl.progress.beat}
	if stream.Offset != d.w.Offset() {
		if d.from != from && d.from != "" {
			head, err := d.onProbation(&cancellable{ctx, in, &d.fl.progress}, size)
			if err != nil {
				return nil, nil, err
			}
			in = io.MultiReader(bytes.NewReader(head), in)
		}
		if v := stream.Validator; d.from != from || v.ETag != d.validator.ETag || v.Modified != d.validator.Modified || v.Size != d.validator.Size {
			d.tour.anew()
		}
		d.log.Info("the file changed, or its source does not resume or is another, starting at byte 0", "offset", d.w.Offset())
		if err := d.restart(ctx); err != nil {
			return nil, nil, err
		}
	}
	d.validator, d.from, d.joined = stream.Validator, from, stream.Offset > 0
	d.fl.progress.stream(stream.Offset, size, stream.TLSVerified)
	if err := d.opened(stream); err != nil {
		return nil, nil, err
	}
	d.m.notify()
	return stream, d.bounded(in, stream.Offset), d.expect(size)
}

// expect makes room for so many bytes in all, -1 if that is unknown.
func (d *download) expect(size int64) error {
	if size < 0 {
		return nil
	}
	var space *slots.SpaceError
	switch err := d.w.Expect(size); {
	case errors.As(err, &space):
		return d.explain(err) // it may be a wrong length: another source may announce another
	case err != nil:
		return errWrite{err}
	}
	return nil
}

// probation is how much a source has to deliver before the partial of another one is given up for it.
const probation = 1 << 20

// onProbation reads what the stream of another source, of size bytes (-1: unknown), begins with. One that breaks off in it, or ends
// with something else than the image, is none.
func (d *download) onProbation(r io.Reader, size int64) (head []byte, err error) {
	defer func() {
		if err != nil {
			d.received += int64(len(head)) // else it counts when it is read again
		}
	}()
	head = make([]byte, probation)
	n, err := io.ReadFull(r, head)
	head = head[:n]
	switch {
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return head, err
	case size >= 0 && int64(n) < size:
		return head, source.NewError("broken", "The connection broke.", err)
	}
	if sum := fmt.Sprintf("%x", sha256.Sum256(head)); d.proved() && sum != d.f.SHA256 {
		return head, asHTML(mismatch("SHA-256", d.f.SHA256, sum), head)
	}
	return head, nil
}

// proved tells whether it is known what the digest has to be. Without, what came is held to all else that can be known of it.
func (d *download) proved() bool { return d.f.SHA256 != "" }

// opened notes where an attempt begins.
func (d *download) opened(s *source.Stream) error {
	d.fl.progress.resumed(s.Offset)
	d.attemptLog.opened(s.Offset)
	_, err := d.m.cfg.Store.Opened(d.f.Key, s.Offset, d.receivedInAll(), max(s.Validator.Size, 0), s.TLSVerified)
	if errors.Is(err, store.ErrConflict) {
		return errCancelled
	}
	if err != nil {
		d.log.Error("cannot note the attempt", "err", err) // it is for people; the next row that is written knows more
	}
	return nil
}

// describe adds to a broken connection how far it got.
func (d *download) describe(err error, total int64) error {
	var e *source.Error
	if !errors.As(err, &e) || e.Code != "broken" && e.Code != "stalled" {
		return err
	}
	what := map[string]string{"broken": "The connection broke", "stalled": "The server sent no more data in time"}[e.Code]
	of := ""
	if total >= 0 {
		of = fmt.Sprintf(" of %d", total)
	}
	return source.NewError(e.Code, fmt.Sprintf("%s after %d%s bytes.", what, d.w.Offset(), of), e.Err)
}

// receive counts n bytes that came from a source.
func (d *download) receive(n int) {
	d.received += int64(n)
	d.attemptLog.received.Add(int64(n))
	d.m.metrics.received.Add(float64(n))
	d.most = max(d.most, d.fl.progress.add(n))
}

// receivedInAll is what came from sources in this run and in those before.
func (d *download) receivedInAll() int64 { return d.f.BytesReceived + d.received }

// due counts n bytes that are on their way to the disk. The writer may not be asked: it is at work.
func (d *download) due(n int) bool {
	d.pending += int64(n)
	return d.pending >= d.m.cfg.CheckpointBytes || d.m.cfg.Now().Sub(d.savedAt) >= d.m.cfg.CheckpointEvery
}

// checkpoint makes the partial durable and then says so in the row, never the other way round. It is called with
// hasher and writer at rest. A row that cannot be written costs nothing but a longer way back after a crash.
func (d *download) checkpoint() error {
	d.savedAt, d.pending = d.m.cfg.Now(), 0
	if !d.validator.May(source.Request{Unproved: !d.proved()}) || d.w.Offset()%block != 0 {
		return nil
	}
	if err := d.w.Sync(); err != nil {
		return errWrite{err}
	}
	state, err1 := d.digests.state()
	v, err2 := json.Marshal(d.validator)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	_, total, tls := d.fl.progress.counts()
	d.noted = true // an error may hide that it is
	err := d.m.cfg.Store.SaveCheckpoint(d.f.Key, store.Checkpoint{Offset: d.w.Offset(), State: state, Validator: string(v), Source: d.from},
		d.receivedInAll(), total, tls)
	switch {
	case err == nil:
		d.saved = d.w.Offset()
	case !errors.Is(err, store.ErrConflict): // which is a cancel on its way
		d.log.Error("cannot store checkpoint", "err", err)
	}
	return nil
}

// forget takes the checkpoint out of the row, durably: what the partial holds from now on is not what it tells of.
func (d *download) forget(ctx context.Context) error {
	if !d.noted {
		return nil
	}
	err := d.insist(ctx, "starting at byte 0", func() error {
		return d.m.cfg.Store.SaveCheckpoint(d.f.Key, store.Checkpoint{}, d.receivedInAll(), 0, nil)
	})
	if errors.Is(err, store.ErrConflict) {
		return errCancelled
	}
	if err == nil {
		d.saved, d.noted = 0, false
	}
	return err
}

// restart throws the partial away and begins at byte 0. The row's checkpoint goes first: after a kill the new bytes must
// not be taken for the old ones.
func (d *download) restart(ctx context.Context) error {
	if err := d.forget(ctx); err != nil {
		return err
	}
	d.digests = newDigests(d.f.SHA512 != "")
	d.validator, d.from, d.unread = source.Validator{}, "", false
	d.fl.progress.stream(0, 0, nil)
	if err := d.w.Restart(); err != nil {
		return errWrite{err}
	}
	return nil
}

// verify compares the digests. A file with another digest is discarded: no source will be asked to continue it.
func (d *download) verify(ctx context.Context) error {
	if err := d.phase(store.Verifying); err != nil {
		return err
	}
	sum256, sum512 := d.digests.got()
	var e *source.Error
	switch {
	case errors.As(d.rightSize(d.w.Offset()), &e):
	case !d.proved() && d.f.Sidecar == SidecarOptional:
		if e = d.implausible(); e == nil {
			return d.noteDigest(ctx, sum256, true) // nobody knows better
		}
	case sum256 != d.f.SHA256:
		e = mismatch("SHA-256", d.f.SHA256, sum256)
	case d.f.SHA512 != "" && sum512 != d.f.SHA512:
		e = mismatch("SHA-512", d.f.SHA512, sum512)
	default:
		return nil
	}
	e = asHTML(e, d.head())
	downloaded, total, _ := d.fl.progress.counts()
	d.tour.anew()
	if err := d.restart(ctx); err != nil {
		return err
	}
	d.fl.progress.stream(downloaded, total, nil) // stays to be seen if this was the last attempt
	return e
}

// implausible is why what came is certainly no image, whatever its digest; nil if it may be one.
func (d *download) implausible() *source.Error {
	switch {
	case d.w.Offset() == 0:
		return source.NewError("empty", "The image is empty.", nil)
	case source.LooksLikeHTML(d.head()):
		return source.NewError("html", "This is no image. The file was discarded.", nil)
	}
	return nil
}

// head is how the partial begins; empty if it cannot be read.
func (d *download) head() []byte {
	head := make([]byte, 256)
	n, _ := io.ReadFull(d.w.Prefix(), head)
	return head[:n]
}

func mismatch(name, want, got string) *source.Error {
	return source.NewError("digest", fmt.Sprintf("%s mismatch: expected %s, got %s. The file was discarded.", name, want, got), nil)
}

// asHTML is e, unless a file that begins with head looks like an HTML page, which then explains it.
func asHTML(e *source.Error, head []byte) *source.Error {
	if !source.LooksLikeHTML(head) {
		return e
	}
	return source.NewError("html", e.Message+" It looks like an HTML page: check the URL, and whether a login page is in the way.", e.Err)
}
