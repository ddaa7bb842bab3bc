package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"slotfetch/fetch/source"
	"slotfetch/store"
)

// This file decides which source is tried next, after which pause, and when it is enough.

// minProgress is by how many bytes an attempt must get further than any before to count as progress.
const minProgress = 64 << 10

// candidate is one of the URLs of a fetch, with what may be sent there.
type candidate struct {
	url  string
	req  source.Request
	gone bool // it failed for good
}

// plan lists the candidates in order: the URL, then the mirrors. Credentials of the URL go with a mirror of the
// same origin only; what is written in a mirror's own URL goes there.
func (d *download) plan(secrets Secrets) error {
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
		d.candidates = append(d.candidates, candidate{url: raw, req: d.request(u, cred)})
	}
	return nil
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
		} else {
			err = d.attempt(ctx, c)
			d.count(ctx, err)
			if err == nil {
				return nil
			}
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
			if err := d.wait(ctx, d.m.cfg.Retry.delay(max(round-1, 1), e.RetryAfter), e); err != nil {
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
	return source.NewError("traffic", fmt.Sprintf("%d bytes were received for an image of %d bytes, without getting it (fetch.max_traffic).", got, size), nil)
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
