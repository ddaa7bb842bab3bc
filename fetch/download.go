package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"runtime/debug"
	"time"

	"slotfetch/fetch/source"
	"slotfetch/slots"
	"slotfetch/store"
)

// This file holds what a worker does with a fetch that it has claimed, from beginning to end.

// download brings one claimed fetch to a final status, or back to the queue. It belongs to one worker.
type download struct {
	m      *Manager
	f      store.Fetch
	fl     *flight
	pipe   *pipeline
	signed *signed // nil without a signed manifest
	log    *slog.Logger

	tour       *tour
	w          *slots.Writer
	digests    *digests
	validator  source.Validator // of what the partial holds
	from       string           // the candidate that it came from
	saved      int64            // the offset of the last stored checkpoint
	noted      bool             // the row may have a checkpoint
	joined     bool             // what the partial holds came in more than one stream
	again      bool             // the partial was given up once for what may have been its fault
	unread     bool             // the partial is from an unclean stop and not read again yet
	pending    int64            // bytes since a checkpoint was last due
	received   int64            // bytes from sources in this run
	most       int64            // the furthest that an attempt got
	savedAt    time.Time
	began      time.Time
	attemptLog *attemptLog // of the attempt that runs, or was the last
}

// run ends in exactly one of the five ways that a claimed fetch can.
func (d *download) run(ctx context.Context) {
	d.began = d.m.cfg.Now()
	cp := d.f.Checkpoint
	d.saved, d.noted, d.unread = cp.Offset, cp.Offset > 0, cp.Offset > 0 && !cp.Clean
	switch err := d.bring(ctx); {
	case err == nil:
		return
	case errors.Is(err, errShutdown), errors.Is(err, errPaused), errors.Is(err, errOutside):
		d.suspend(err)
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
		began := d.f.StartTime
		if d.f.EligibleAt.After(began) {
			began = d.f.EligibleAt // after a pause, or when its window has opened
		}
		ctx, stop = context.WithTimeoutCause(ctx, began.Add(limit).Sub(d.m.cfg.Now()), source.NewError("deadline",
			fmt.Sprintf("The fetch was not complete within %s (fetch.deadline).", limit), nil))
		defer stop()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // before anything is done: it was paused meanwhile, or its time is not now
	}
	if err := d.resolveSigned(ctx); err != nil {
		return err
	}
	if err := d.resolve(ctx); err != nil {
		return err
	}
	if done, err := d.reuse(ctx); done || err != nil {
		return err
	}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	known := d.proved()
	if err := d.attempts(ctx); err != nil {
		return err
	}
	if !known { // until it was all here
		if done, err := d.reuse(ctx); done || err != nil {
			return err
		}
	}
	return d.install(ctx)
}

// prepare finds out where from and where to.
func (d *download) prepare(ctx context.Context) error {
	secrets, err := d.secrets()
	if err != nil {
		return err
	}
	candidates, err := d.plan(secrets)
	if err != nil {
		return err
	}
	if d.w, err = d.m.cfg.Slots.Reserve(d.f.Key, d.f.WantSlot, d.f.Checkpoint.Offset); err != nil {
		return d.reserveError(err)
	}
	if err := d.pickUp(ctx); err != nil {
		return err
	}
	d.fl.progress.stream(d.w.Offset(), d.validator.Size, nil)
	d.tour = newTour(d.m.cfg.Retry, d.m.cfg.Now, candidates, d.from, d.w.Offset())
	return nil
}

// pickUp brings hash and validator to where the partial ends.
func (d *download) pickUp(ctx context.Context) error {
	cp := d.f.Checkpoint
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
		d.unread = false
		return nil
	}
	d.unread = true
	return d.rehash(ctx, cp.State)
}

// rehash reads the partial again after an unclean stop, which also finds torn and rotten bytes, or where the hash cannot be
// restored.
func (d *download) rehash(ctx context.Context, state []byte) error {
	d.digests = newDigests(d.f.SHA512 != "")
	if _, err := io.Copy(d.digests, &cancellable{ctx, d.w.Prefix(), &d.fl.progress}); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d.log.Warn("cannot read the partial again, starting at byte 0", "err", err)
		return d.restart(ctx)
	}
	now, err := d.digests.state()
	usable := newDigests(d.f.SHA512 != "").restore(state) == nil // else only the digest at the end can tell, if there is one
	if err != nil || usable && string(now) != string(state) || !usable && !d.proved() {
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
