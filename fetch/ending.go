package fetch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"syscall"
	"time"

	"slotfetch/fetch/source"
	"slotfetch/slots"
	"slotfetch/store"
)

// This file holds the ways in which a download ends: installed, suspended, cancelled, failed.

// install makes the verified partial a slot. From BeginInstall on there is no way back.
func (d *download) install(ctx context.Context) error {
	u, err := url.Parse(d.from)
	if err != nil {
		return err
	}
	m := slots.Manifest{Key: d.f.Key, Name: source.FileName(u), Source: source.Redact(u), SHA256: d.f.SHA256, SHA512: d.f.SHA512,
		Size: d.w.Offset(), FetchedAt: d.m.cfg.Now()}
	err = d.w.Inspect(&m)
	if errors.Is(err, slots.ErrNotISO) {
		return source.NewError("not_iso", "The image is no ISO 9660 file system, which this box requires (slots.require_iso).", err)
	}
	if err != nil {
		return errWrite{err}
	}
	d.attest(&m)
	if err := d.alone(m); err != nil {
		return err
	}
	_, _, tls := d.fl.progress.counts()
	if err := d.beginInstall(ctx, m.Size, tls); err != nil {
		return err
	}
	d.fl.progress.stream(m.Size, m.Size, nil)
	d.fl.progress.set(store.Installing, 0)
	d.m.notify()
	if h := d.m.cfg.hooks.installing; h != nil {
		h(d.f.Key)
	}
	slot, err := d.w.Commit(m)
	if err != nil {
		return errWrite{err}
	}
	var rate *int64 // of this run: what earlier ones took is not known
	if took := d.m.cfg.Now().Sub(d.began); took > 0 && d.received > 0 {
		r := int64(float64(d.received) / took.Seconds())
		rate = &r
	}
	if !d.record("finished", func() error {
		_, err := d.m.cfg.Store.Finish(d.f.Key, slot, rate)
		return err
	}) {
		return nil // recovery, or somebody else, has settled it
	}
	d.m.metrics.ended(store.Finished)
	d.log.Info("fetch finished", "slot", slot, "bytes", m.Size, "sha256", m.SHA256)
	return nil
}

// beginInstall takes the way of no return. A conflict after an error may be with our own change, which was durable.
func (d *download) beginInstall(ctx context.Context, size int64, tls *bool) error {
	return d.insist(ctx, "installing", func() error {
		_, err := d.m.cfg.Store.BeginInstall(d.f.Key, size, tls)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
		f, rerr := d.m.cfg.Store.Fetch(ctx, d.f.Key)
		switch {
		case rerr != nil:
			return rerr
		case f.Phase == store.Installing: // nobody else would
			return nil
		}
		return err
	})
}

// insist repeats a change that the fetch cannot go on without until the database takes it, for as long as ctx lasts:
// the disk may be full, or locked for a while, which is no reason to throw away what was downloaded.
func (d *download) insist(ctx context.Context, what string, change func() error) error {
	for {
		err := change()
		if err == nil || errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound) {
			return err
		}
		d.log.Error("cannot record that the fetch is "+what, "err", err)
		d.fl.progress.beat() // waiting for the database is no hanging
		d.m.pause(ctx, time.Second)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// suspend keeps the partial for later: for the next start of the agent, the end of a pause, or the next time in which the
// fetch may run.
func (d *download) suspend(cause error) {
	if d.w != nil {
		end := d.w.Suspend
		if d.saved == 0 && !errors.Is(cause, errShutdown) {
			end = d.w.Abort // there is nothing to go on from
		}
		if err := end(); err != nil {
			d.log.Warn("cannot keep the partial", "err", err)
			d.saved = 0
		}
		d.w = nil
	}
	if d.record("queued again", func() error {
		if errors.Is(cause, errOutside) {
			f, err := d.m.cfg.Store.Fetch(context.Background(), d.f.Key)
			if err == nil {
				err = d.m.cfg.Store.Postpone(map[string]time.Time{d.f.Key: d.m.due(f.Schedule)})
			}
			if err != nil {
				return err
			}
		}
		_, err := d.m.cfg.Store.Requeue(d.f.Key, d.saved > 0, !d.unread, d.receivedInAll())
		return err
	}) {
		d.log.Info("fetch queued again", "offset", d.saved, "why", cause.Error())
	} else if !errors.Is(cause, errShutdown) {
		d.cancelled()
	}
}

// cancelled removes the partial and then says so. What cannot be removed is tried again: until it is gone, the fetch is
// not cancelled. When the agent stops first, recovery settles it.
func (d *download) cancelled() {
	if h := d.m.cfg.hooks.cleanup; h != nil {
		h(d.f.Key)
	}
	downloaded, total, _ := d.fl.progress.counts()
	for err := d.abort(); err != nil; err = d.abort() {
		d.log.Error("cannot remove the partial", "err", err)
		if d.m.ctx.Err() != nil {
			d.letGo()
			return
		}
		d.fl.progress.beat()
		d.m.pause(d.m.ctx, time.Second)
	}
	if !d.record("cancelled", func() error {
		_, err := d.m.cfg.Store.Cancelled(d.f.Key, downloaded, total)
		return err
	}) {
		return
	}
	d.m.metrics.ended(store.Cancelled)
	d.log.Info("fetch cancelled", "bytes", downloaded)
}

// fail removes the partial and records why, unless a cancel came first.
func (d *download) fail(err error) {
	e := d.explain(err)
	downloaded, total, tls := d.fl.progress.counts()
	if err := d.abort(); err != nil {
		// What is left is swept at the next start: no unfinished row owns it.
		d.log.Error("cannot remove the partial", "err", err)
		d.letGo()
	}
	attrs := told(e)
	// Of what is behind a source's sentence only the network's error is told: a server may repeat passwords and URLs.
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		attrs = append(attrs, "cause", op)
	} else if !errors.As(err, new(*source.Error)) {
		attrs = append(attrs, "cause", err)
	}
	d.log.Error("fetch failed", attrs...)
	if !d.record("failed", func() error {
		_, err := d.m.cfg.Store.Fail(d.f.Key, e.Code, e.Error(), downloaded, total, tls)
		return err
	}) {
		d.cancelled()
		return
	}
	d.m.metrics.ended(store.Failed)
}

// told are the attributes of e in the log, in the words that they have everywhere.
func told(e *source.Error) []any {
	return []any{"code", e.Code, "class", e.Class.String(), "err", e.Message, "remedy", e.Remedy()}
}

// abort removes the partial. After an error it may be called again.
func (d *download) abort() error {
	if d.w != nil {
		return d.w.Abort()
	}
	return d.m.cfg.Slots.RemovePartial(d.f.Key)
}

// letGo gives the slot free, though the partial is still there.
func (d *download) letGo() {
	if d.w == nil {
		return
	}
	if err := d.w.Suspend(); err != nil {
		d.log.Warn("cannot close the partial", "err", err)
	}
	d.w = nil
}

// record repeats a status change until the database takes it: the disk may be full, or locked for a while. It
// returns false when the row has gone another way. Files are not touched meanwhile: a COMMIT that returned an error
// may be durable all the same. When the agent stops first, recovery settles it.
func (d *download) record(what string, change func() error) bool {
	for try := 1; ; try++ {
		err := change()
		switch {
		case err == nil:
			return true
		case errors.Is(err, store.ErrConflict) && try == 1, errors.Is(err, store.ErrNotFound):
			return false
		case errors.Is(err, store.ErrConflict):
			// Either an earlier try was durable, or a cancel came before this one.
			f, ferr := d.m.cfg.Store.Fetch(context.Background(), d.f.Key)
			if ferr == nil {
				return f.Status != store.InProgress
			}
			if errors.Is(ferr, store.ErrNotFound) {
				return true // durable, and pruned since
			}
			err = ferr
		}
		d.log.Error("cannot record that the fetch is "+what, "err", err)
		if d.m.ctx.Err() != nil {
			return true
		}
		d.fl.progress.beat()
		d.m.pause(d.m.ctx, time.Second)
	}
}

// noInodes is said where bytes are not what lacks.
const noInodes = "The slots' file system has no inode left: it cannot hold another file, whatever its free space."

// explain gives the words for the admin.
func (d *download) explain(err error) *source.Error {
	var e *source.Error
	var space *slots.SpaceError
	switch {
	case errors.As(err, &e):
		return e
	case isWrite(err) && (errors.Is(err, slots.ErrNoEmpty) || errors.Is(err, slots.ErrBoot)): // what was to be evicted may not be any more
		errors.As(d.reserveError(err), &e)
		return e
	case errors.As(err, &space):
		return source.NewError("space", fmt.Sprintf("Not enough space: needs %d bytes, %d are free beside the reserve.", space.Needed, space.Free), err)
	case isWrite(err) && errors.Is(err, slots.ErrNoInodes):
		return source.NewError("inodes", noInodes, err)
	case isWrite(err) && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)):
		return source.NewError("space", "Not enough space: the disk is full, or has no room for another file.", err)
	case isWrite(err) && slots.ReadOnly(err):
		return source.NewError("read_only", "The slots directory cannot be written: it is read-only, or belongs to another user.", err)
	case isWrite(err):
		return source.NewError("disk", "The image could not be written to the disk.", err)
	}
	return source.NewError("internal", "An internal error ended the fetch.", err)
}

func (d *download) reserveError(err error) error {
	switch {
	case errors.Is(err, slots.ErrNoEmpty):
		return source.NewError("no_slot", fmt.Sprintf("No empty firmware slot: all %d are occupied.", d.m.cfg.Slots.Count()), err)
	case errors.Is(err, slots.ErrOccupied):
		return source.NewError("slot_occupied", fmt.Sprintf("Slot %d is occupied.", *d.f.WantSlot), err)
	case errors.Is(err, slots.ErrProtected):
		return source.NewError("slot_protected", fmt.Sprintf("Slot %d is the one that runs or boots next.", *d.f.WantSlot), err)
	case errors.Is(err, slots.ErrBoot):
		return source.NewError("boot", "It is not known which slots must be kept: boot.json in the slots directory cannot be read.", err)
	case errors.Is(err, slots.ErrUnknown):
		return source.NewError("slot_unknown", fmt.Sprintf("Slot %d is not configured on this box.", *d.f.WantSlot), err)
	}
	return errWrite{err}
}
