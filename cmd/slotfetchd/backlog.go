package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	// maxBacklog is how many records may wait for a log that takes none.
	maxBacklog = 512
	// flushTime is how long the end of the agent waits for it.
	flushTime = time.Second
)

// backlog hands log records on in a goroutine of its own, so that a journal that hangs, or a terminal that is stopped,
// stops neither the API nor the end of the agent. What does not fit is dropped and counted.
type backlog struct {
	out     slog.Handler
	records chan func()
	dropped *atomic.Int64
	done    chan struct{}
}

// newBacklog returns a handler before out. Close it when nothing is logged any more.
func newBacklog(out slog.Handler) *backlog {
	b := &backlog{out: out, records: make(chan func(), maxBacklog), dropped: &atomic.Int64{}, done: make(chan struct{})}
	go b.run()
	return b
}

func (b *backlog) run() {
	defer close(b.done)
	for write := range b.records {
		if write == nil {
			return
		}
		write()
		if n := b.dropped.Swap(0); n > 0 {
			r := slog.NewRecord(time.Now(), slog.LevelWarn, "log records were dropped, since the log took none", 0)
			r.Add("count", n)
			_ = b.out.Handle(context.Background(), r) // there is nobody else to tell
		}
	}
}

// Close waits until all is written, but not for long: then the rest is lost.
func (b *backlog) Close() {
	limit := time.After(flushTime)
	select {
	case b.records <- nil:
	case <-limit:
		return
	}
	select {
	case <-b.done:
	case <-limit:
	}
}

// Enabled is up to the handler behind.
func (b *backlog) Enabled(ctx context.Context, l slog.Level) bool { return b.out.Enabled(ctx, l) }

// Handle never waits.
func (b *backlog) Handle(_ context.Context, r slog.Record) error {
	r = r.Clone()
	select {
	case b.records <- func() { _ = b.out.Handle(context.Background(), r) }:
	default:
		b.dropped.Add(1)
	}
	return nil
}

// WithAttrs is for slog.Logger.With.
func (b *backlog) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *b
	with.out = b.out.WithAttrs(attrs)
	return &with
}

// WithGroup is for slog.Logger.WithGroup.
func (b *backlog) WithGroup(name string) slog.Handler {
	with := *b
	with.out = b.out.WithGroup(name)
	return &with
}
