package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"slotfetch/fetch/source"
	"slotfetch/slots"
	"slotfetch/store"
)

// minProgress is by how many bytes an attempt must get further than any before to count as progress.
const minProgress = 64 << 10

// candidate is one of the URLs of a fetch, with what may be sent there.
type candidate struct {
	url  string
	req  source.Request
	gone bool // it failed for good
}

// download brings one claimed fetch to a final status, or back to the queue. It belongs to one worker.
type download struct {
	m    *Manager
	f    store.Fetch
	fl   *flight
	pipe *pipeline
	log  *slog.Logger

	candidates []candidate
	w          *slots.Writer
	digests    *digests
	validator  source.Validator // of what the partial holds
	from       string           // the candidate that it came from
	saved      int64            // the offset of the last stored checkpoint
	noted      bool             // the row may have a checkpoint
	unread     bool             // the partial is from an unclean stop and not read again yet
	pending    int64            // bytes since a checkpoint was last due
	received   int64            // bytes from sources in this run
	most       int64            // the furthest that an attempt got
	savedAt    time.Time
	began      time.Time
}

// run ends in exactly one of the five ways that a claimed fetch can.
func (d *download) run(ctx context.Context) {
	d.began = d.m.cfg.Now()
	switch err := d.bring(ctx); {
	case err == nil:
		return
	case errors.Is(err, errShutdown):
		d.suspend()
	case errors.Is(err, errCancelled), errors.Is(err, store.ErrConflict):
		d.cancelled()
	default:
		d.fail(err)
	}
}

// bring does all that may succeed. A panic costs this fetch, not the agent.
func (d *download) bring(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %T", p) // its text may be anything
			if r, ok := p.(runtime.Error); ok {
				err = fmt.Errorf("panic: %w", r)
			}
			d.log.Error("panic in a fetch", "err", err, "stack", string(debug.Stack()))
		}
	}()
	if limit := d.m.cfg.Deadline; limit > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithDeadlineCause(ctx, d.f.StartTime.Add(limit), &source.Error{Code: "deadline", Class: source.Human,
			Message: fmt.Sprintf("The fetch was not complete within %s (fetch.deadline).", limit)})
		defer stop()
	}
	if done, err := d.reuse(ctx); done || err != nil {
		return err
	}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	if err := d.attempts(ctx); err != nil {
		return err
	}
	return d.install(ctx)
}

// prepare finds out where from and where to.
func (d *download) prepare(ctx context.Context) error {
	secrets, err := unseal(d.m.cfg.SealKey, d.f.Key, d.f.Secrets)
	if err != nil {
		return &source.Error{Code: "credentials", Class: source.Human, Err: err,
			Message: "The stored credentials cannot be read: the agent's key has changed. Start the fetch again."}
	}
	if err := d.plan(secrets); err != nil {
		return err
	}
	cp := d.f.Checkpoint
	if d.w, err = d.m.cfg.Slots.Reserve(d.f.Key, d.f.WantSlot, cp.Offset); err != nil {
		return d.reserveError(err)
	}
	d.digests, d.saved, d.noted = newDigests(d.f.SHA512 != ""), cp.Offset, cp.Offset > 0
	if d.w.Offset() == 0 {
		return d.forget(ctx)
	}
	if json.Unmarshal([]byte(cp.Validator), &d.validator) != nil {
		return d.restart(ctx)
	}
	d.from, d.savedAt = cp.Source, d.m.cfg.Now()
	verify := d.m.cfg.ResumeVerify
	if (cp.Clean && verify != VerifyAlways || verify == VerifyNever) && d.digests.restore(cp.State) == nil {
		return nil
	}
	d.unread = true
	return d.rehash(ctx, cp.State)
}

// rehash reads the partial again after an unclean stop, which also finds torn and rotten bytes.
func (d *download) rehash(ctx context.Context, state []byte) error {
	d.digests = newDigests(d.f.SHA512 != "")
	if _, err := io.Copy(d.digests, &cancellable{ctx, d.w.Prefix(), &d.fl.progress}); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d.log.Warn("cannot read the partial again, starting at byte 0", "err", err)
		return d.restart(ctx)
	}
	if now, err := d.digests.state(); err != nil || string(now) != string(state) {
		d.log.Warn("the partial is not what was written, starting at byte 0", "offset", d.w.Offset())
		return d.restart(ctx)
	}
	d.unread = false
	return nil
}

// cancellable reads r until ctx ends, with a sign of life at each read.
type cancellable struct {
	ctx      context.Context
	r        io.Reader
	progress *progress
}

func (c *cancellable) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	c.progress.beat()
	return c.r.Read(p)
}

// plan lists the candidates in order: the URL, then the mirrors. Credentials of the URL go with a mirror of the
// same origin only; what is written in a mirror's own URL goes there.
func (d *download) plan(secrets Secrets) error {
	verify := source.VerifyAuto
	if d.f.TLSVerify != nil {
		verify = source.VerifyNever
		if *d.f.TLSVerify {
			verify = source.VerifyAlways
		}
	}
	var origin string
	for i, raw := range append([]string{d.f.URL}, d.f.Mirrors...) {
		u, err := url.Parse(raw)
		if err != nil {
			return fmt.Errorf("cannot parse stored url: %w", err)
		}
		cred := secrets.URL
		if i == 0 {
			origin = source.Origin(u)
		} else {
			if source.Origin(u) != origin {
				cred = nil
			}
			if i-1 < len(secrets.Mirrors) && secrets.Mirrors[i-1] != nil {
				cred = secrets.Mirrors[i-1]
			}
		}
		d.candidates = append(d.candidates, candidate{url: raw, req: source.Request{URL: u, Credentials: cred,
			Verify: verify, CA: []byte(d.f.TLSCA), SHA256: d.f.SHA256}})
	}
	return nil
}

// attempts tries the candidates until one delivers. An attempt that got further is repeated at the same candidate;
// one that did not gives way to the next. After a round without progress there is a pause.
func (d *download) attempts(ctx context.Context) error {
	round, high := 1, d.w.Offset()
	i := d.preferred(0)
	restarted := false
	for {
		if err := d.spent(); err != nil {
			return err
		}
		c := &d.candidates[i]
		var err error
		if isMetalink(c.req.URL) {
			if err = d.expand(ctx, i); err == nil {
				i = d.preferred(i)
				continue
			}
		} else if err = d.attempt(ctx, c); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var e *source.Error
		if !errors.As(err, &e) || isWrite(err) {
			return err
		}
		d.log.Warn("attempt failed", "url", source.Redact(c.req.URL), "code", e.Code, "class", e.Class.String(), "bytes", d.w.Offset(), "err", e)
		if p := (*source.PanicError)(nil); errors.As(err, &p) {
			d.log.Error("panic in a source", "stack", p.Stack)
		}
		if (e.Code == "bad_resume" || e.Code == "range") && !restarted {
			// The partial is worthless for this source: once more, from byte 0.
			restarted = true
			if d.from == c.url {
				if err := d.restart(ctx); err != nil {
					return err
				}
			}
			continue
		}
		c.gone = e.Class != source.Temporary
		next, wrapped, ok := d.next(i)
		switch {
		case !ok:
			return e
		case !c.gone && d.w.Offset() >= high+minProgress:
			high, round, wrapped = d.w.Offset(), 1, true // stay
		default:
			if wrapped {
				if round++; round > d.m.cfg.Retry.Rounds {
					return e
				}
			}
			i = next
		}
		if wrapped && !c.gone {
			if err := d.wait(ctx, d.m.cfg.Retry.delay(max(round-1, 1), e.RetryAfter)); err != nil {
				return err
			}
		}
	}
}

// preferred is the candidate that can go on with the partial, else i.
func (d *download) preferred(i int) int {
	if k := slices.IndexFunc(d.candidates, func(c candidate) bool { return c.url == d.from }); k >= 0 {
		return k
	}
	return i
}

// spent tells when all attempts together have received more than the image is worth: servers that break off and do
// not resume must not cost traffic without end.
func (d *download) spent() error {
	_, total, _ := d.fl.progress.counts()
	size := max(total, d.most)
	got := d.f.BytesReceived + d.received
	if f := d.m.cfg.MaxTraffic; size == 0 || f < 0 || float64(got) <= f*float64(size)+minProgress {
		return nil
	}
	return &source.Error{Code: "traffic", Class: source.Human,
		Message: fmt.Sprintf("%d bytes were received for an image of %d bytes, without getting it (fetch.max_traffic).", got, size)}
}

// next is the candidate after i that has not failed for good; wrapped tells that it does not come later in the list.
func (d *download) next(i int) (next int, wrapped, ok bool) {
	for k := 1; k <= len(d.candidates); k++ {
		if n := (i + k) % len(d.candidates); !d.candidates[n].gone {
			return n, n <= i, true
		}
	}
	return 0, false, false
}

func (d *download) wait(ctx context.Context, delay time.Duration) error {
	if err := d.phase(store.Waiting); err != nil {
		return err
	}
	d.fl.progress.pause(delay)
	d.m.notify()
	d.log.Info("waiting to retry", "delay", delay.Round(time.Millisecond).String())
	d.m.pause(ctx, delay)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// phase notes the phase for all to see. A row that is no longer ours to change was cancelled.
func (d *download) phase(p store.Phase) error {
	downloaded, total, _ := d.fl.progress.counts()
	if _, err := d.m.cfg.Store.SetPhase(d.f.Key, p, downloaded, total); err != nil {
		if errors.Is(err, store.ErrConflict) {
			return errCancelled
		}
		d.log.Error("cannot note the phase", "err", err) // the next row that is written will say where we are
	}
	d.fl.progress.set(p, 0)
	d.m.notify()
	return nil
}

// attempt is one connection's worth of trying, up to the comparison of the digests.
func (d *download) attempt(ctx context.Context, c *candidate) error {
	var f store.Fetch
	err := d.insist(ctx, "beginning an attempt", func() (err error) {
		f, err = d.m.cfg.Store.BeginAttempt(d.f.Key)
		return err
	})
	if errors.Is(err, store.ErrConflict) {
		return errCancelled
	}
	if err != nil {
		return err
	}
	d.fl.progress.set(store.Downloading, f.Attempts)
	d.m.notify()
	if d.w.Offset() == 0 || d.w.Offset() != d.validator.Size {
		if err := d.transfer(ctx, c); err != nil {
			return err
		}
	}
	return d.verify(ctx)
}

// transfer moves bytes until the stream ends. Whatever ends it early, what arrived is kept with a checkpoint. The partial
// of another source is given up only for a stream that is there.
func (d *download) transfer(ctx context.Context, c *candidate) error {
	offset := d.w.Offset()
	if d.from != c.url {
		offset = 0
	}
	stream, err := d.m.cfg.Source.Open(ctx, c.req, offset, d.validator)
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // the Close whose error counts comes below
	if stream.Offset != d.w.Offset() {
		d.log.Info("the file changed, or its source does not resume or is another, starting at byte 0", "offset", d.w.Offset())
		if err := d.restart(ctx); err != nil {
			return err
		}
	}
	total := stream.Validator.Size
	d.validator, d.from = stream.Validator, c.url
	d.fl.progress.stream(stream.Offset, total, stream.TLSVerified)
	if err := d.opened(stream); err != nil {
		return err
	}
	if total >= 0 {
		var space *slots.SpaceError
		switch err := d.w.Expect(total); {
		case errors.As(err, &space):
			return d.explain(err) // it may be a wrong length: another source may announce another
		case err != nil:
			return errWrite{err}
		}
	}
	d.savedAt, d.pending = d.m.cfg.Now(), 0
	err = d.pipe.run(ctx, stream, d.digests, d.w, d.receive, d.due, d.checkpoint)
	if isWrite(err) {
		return err
	}
	cerr := stream.Close()
	switch {
	case err == nil && total >= 0 && d.w.Offset() < total:
		err = &source.Error{Code: "broken", Class: source.Temporary}
	case err == nil && cerr != nil && (total < 0 || d.w.Offset() != total):
		err = cerr // with all bytes there, the digest has the last word
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

// opened notes where an attempt begins.
func (d *download) opened(s *source.Stream) error {
	d.fl.progress.resumed(s.Offset)
	_, err := d.m.cfg.Store.Opened(d.f.Key, s.Offset, d.f.BytesReceived+d.received, max(s.Validator.Size, 0), s.TLSVerified)
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
	return &source.Error{Code: e.Code, Class: e.Class, Err: e.Err, Message: fmt.Sprintf("%s after %d%s bytes.", what, d.w.Offset(), of)}
}

// receive counts n bytes that came from a source.
func (d *download) receive(n int) {
	d.received += int64(n)
	d.most = max(d.most, d.fl.progress.add(n))
}

// due counts n bytes that are on their way to the disk. The writer may not be asked: it is at work.
func (d *download) due(n int) bool {
	d.pending += int64(n)
	return d.pending >= d.m.cfg.CheckpointBytes || d.m.cfg.Now().Sub(d.savedAt) >= d.m.cfg.CheckpointEvery
}

// checkpoint makes the partial durable and then says so in the row, never the other way round. It is called with
// hasher and writer at rest. A row that cannot be written costs nothing but a longer way back after a crash.
func (d *download) checkpoint() error {
	d.savedAt, d.pending = d.m.cfg.Now(), 0
	if !d.validator.Resumable() || d.w.Offset()%block != 0 {
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
	err := d.m.cfg.Store.SaveCheckpoint(d.f.Key, store.Checkpoint{Offset: d.w.Offset(), State: state, Validator: string(v), Source: d.from}, total, tls)
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
		return d.m.cfg.Store.SaveCheckpoint(d.f.Key, store.Checkpoint{}, 0, nil)
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
	case sum256 != d.f.SHA256:
		e = mismatch("SHA-256", d.f.SHA256, sum256)
	case d.f.SHA512 != "" && sum512 != d.f.SHA512:
		e = mismatch("SHA-512", d.f.SHA512, sum512)
	default:
		return nil
	}
	if d.looksLikeHTML() {
		e.Message += " It looks like an HTML page: check the URL, and whether a login page is in the way."
	}
	downloaded, total, _ := d.fl.progress.counts()
	if err := d.restart(ctx); err != nil {
		return err
	}
	d.fl.progress.stream(downloaded, total, nil) // stays to be seen if this was the last attempt
	return e
}

func mismatch(name, want, got string) *source.Error {
	return &source.Error{Code: "digest", Class: source.Permanent,
		Message: fmt.Sprintf("%s mismatch: expected %s, got %s. The file was discarded.", name, want, got)}
}

func (d *download) looksLikeHTML() bool {
	head := make([]byte, 256)
	n, _ := io.ReadFull(d.w.Prefix(), head)
	text := strings.ToLower(strings.TrimSpace(string(head[:n])))
	return strings.HasPrefix(text, "<!doctype html") || strings.HasPrefix(text, "<html")
}
