package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"slotfetch/fetch/source"
	"slotfetch/store"
)

// This file asks the sources of a fetch, one after another as the tour has it, until the image is there or it is enough.

// plan lists the candidates in order: the URL, then the mirrors. Credentials of the URL go with a mirror of the
// same origin only; what is written in a mirror's own URL goes there.
func (d *download) plan(secrets Secrets) ([]candidate, error) {
	var list []candidate
	var origin string
	for i, raw := range append([]string{d.f.URL}, d.f.Mirrors...) {
		u, err := url.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("cannot parse stored url: %w", err)
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
		list = append(list, candidate{url: raw, req: d.request(u, cred)})
	}
	return list, nil
}

// secrets are the credentials of the fetch.
func (d *download) secrets() (Secrets, error) {
	s, err := unseal(d.m.cfg.SealKey, d.f.Key, d.f.Secrets)
	if err != nil {
		return s, source.NewError("credentials", "The stored credentials cannot be read: the agent's key has changed.", err)
	}
	return s, nil
}

// request is what is asked of u, by the rules of the fetch.
func (d *download) request(u *url.URL, cred *source.Credentials) source.Request {
	verify := source.VerifyAuto
	if d.f.TLSVerify != nil {
		verify = source.VerifyNever
		if *d.f.TLSVerify {
			verify = source.VerifyAlways
		}
	}
	return source.Request{URL: u, Credentials: cred, Verify: verify, CA: []byte(d.f.TLSCA), SHA256: d.f.SHA256, Unproved: !d.proved()}
}

// attempts tries the candidates until one delivers.
func (d *download) attempts(ctx context.Context) error {
	for {
		if err := d.spent(); err != nil {
			return err
		}
		c := d.tour.current()
		done, err := d.attempt(ctx, c)
		if done {
			return nil
		}
		if err == nil { // it was a Metalink
			d.tour.prefer(d.from)
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var e *source.Error
		if !errors.As(err, &e) || isWrite(err) {
			return err
		}
		d.log.Warn("attempt failed", append(told(e), "url", source.Redact(c.req.URL), "bytes", d.w.Offset())...)
		if p := (*source.PanicError)(nil); errors.As(err, &p) {
			d.log.Error("panic in a source", "stack", p.Stack)
		}
		if d.mayBeOurs(c, e) {
			if err := d.beginAgain(ctx); err != nil {
				return err
			}
			continue
		}
		pause, again := d.tour.failed(e, d.w.Offset(), d.resumable())
		if !again {
			return e
		}
		if pause > 0 {
			if err := d.wait(ctx, pause, e); err != nil {
				return err
			}
		}
	}
}

// mayBeOurs tells, once in a fetch, whether a failure of c for good may be the fault of what the partial held rather than its own:
// it was asked for a part, or confuses the whole with one, or the digest is wrong of a file that came in parts.
func (d *download) mayBeOurs(c *candidate, e *source.Error) bool {
	ours := false
	switch e.Code {
	case "bad_resume", "range":
		ours = d.from == c.url || d.w.Offset() == 0
	case "digest":
		ours = d.joined && d.from == "" // verify has given the partial up
	}
	if !ours || d.again {
		return false
	}
	d.again = true
	return true
}

// beginAgain has the same source asked for all of the file.
func (d *download) beginAgain(ctx context.Context) error {
	d.tour.anew()
	if d.from == "" {
		return nil
	}
	return d.restart(ctx)
}

// resumable is where the partial could be continued; empty if nowhere, or if it is not worth it.
func (d *download) resumable() string {
	if d.w.Offset() < minProgress || !d.validator.May(source.Request{Unproved: !d.proved()}) {
		return ""
	}
	return d.from
}

// spent tells when all attempts together have received more than the image is worth: servers that break off and do
// not resume must not cost traffic without end.
func (d *download) spent() error {
	_, total, _ := d.fl.progress.counts()
	size := max(total, d.most, d.f.BytesTotal)
	got := d.receivedInAll()
	if f := d.m.cfg.MaxTraffic; size == 0 || f < 0 || float64(got) <= f*float64(size)+minProgress {
		return nil
	}
	return source.NewError("traffic", fmt.Sprintf("%d bytes were received for an image of %d bytes, without getting it (fetch.max_traffic).", got, size), nil)
}

func (d *download) wait(ctx context.Context, delay time.Duration, why *source.Error) error {
	d.fl.progress.pause(delay, why)
	if err := d.phase(store.Waiting); err != nil {
		return err
	}
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
