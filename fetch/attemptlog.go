package fetch

import (
	"context"
	"errors"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"slotfetch/fetch/source"
	"slotfetch/store"
)

// This file keeps a record of each attempt: what it did before its first byte, which stage of the pipeline held it up,
// and how it ended.

// epoch is what the stages count from: by the monotonic clock, which nobody sets.
var epoch = time.Now()

// stage counts for how long a part of the pipeline was at work. It is for one goroutine; any may ask for the total.
type stage struct {
	sum   atomic.Int64 // nanoseconds
	since atomic.Int64 // when it began, from the epoch; 0: it rests
}

func (s *stage) begin() { s.since.Store(int64(time.Since(epoch))) }

func (s *stage) end() { s.sum.Add(int64(time.Since(epoch)) - s.since.Swap(0)) }

// total includes what goes on.
func (s *stage) total() time.Duration {
	sum, since := s.sum.Load(), s.since.Load()
	if since > 0 {
		sum += int64(time.Since(epoch)) - since
	}
	return time.Duration(sum)
}

// stages are where the time of an attempt goes. Whoever has to wait for one of them has no work meanwhile, so the one that
// is at work for longest is what limits the others.
type stages struct {
	network stage // waiting for the source, limit included
	hash    stage
	disk    stage // writes, and flushes at checkpoints
	limit   stage // waiting because of a limit, within network
}

// times gives the totals in milliseconds, and the stage with the highest: empty while nothing was measured.
func (s *stages) times() (network, hash, disk, limit int64, bottleneck string) {
	limited := s.limit.total()
	longest := time.Duration(0)
	var ms [4]int64
	for i, t := range []struct {
		name string
		took time.Duration
	}{{"network", s.network.total() - limited}, {"hash", s.hash.total()}, {"disk", s.disk.total()}, {"limit", limited}} {
		ms[i] = max(t.took, 0).Milliseconds()
		if t.took > longest {
			longest, bottleneck = t.took, t.name
		}
	}
	return ms[0], ms[1], ms[2], ms[3], bottleneck
}

// attemptLog is what is known of the attempt that runs. The worker writes, anybody reads.
type attemptLog struct {
	trace    source.Trace
	stages   stages
	received atomic.Int64

	number  int
	url     *url.URL
	started time.Time

	mu   sync.Mutex
	from *int64 // where the stream begins
}

// opened notes where the stream begins.
func (l *attemptLog) opened(from int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.from = &from
}

// snapshot is the attempt as it is now, without an end.
func (l *attemptLog) snapshot() store.Attempt {
	a := store.Attempt{Number: l.number, URL: source.Redact(l.url), Started: l.started, BytesReceived: l.received.Load(), Connections: l.trace.Connections()}
	l.mu.Lock()
	a.ResumedFrom = l.from
	l.mu.Unlock()
	if hops := l.trace.Hops(); len(hops) > 0 {
		h := hops[len(hops)-1]
		a.Proxy, a.Address, a.HTTPStatus = h.Proxy, h.Address, h.Status
		a.DNS, a.Connect, a.TLS, a.FirstByte = millis(h.DNS), millis(h.Connect), millis(h.TLS), millis(h.FirstByte)
		if len(hops) > 1 {
			a.RedirectedTo = h.URL
		}
	}
	a.Network, a.Hash, a.Disk, a.Limit, a.Bottleneck = l.stages.times()
	return a
}

// millis is nil for what did not happen.
func millis(d time.Duration) *int64 {
	if d <= 0 {
		return nil
	}
	ms := d.Round(time.Millisecond).Milliseconds()
	return &ms
}

// logged runs an attempt under the eyes of a log and records how it ended.
func (d *download) logged(ctx context.Context, number int, c *candidate, attempt func(req source.Request) error) error {
	l := &attemptLog{number: number, url: c.req.URL, started: d.m.cfg.Now()}
	d.attemptLog, d.pipe.stages = l, &l.stages
	d.fl.attempt.Store(l)
	defer d.fl.attempt.Store(nil) // once the record is there
	req := c.req
	req.Trace = &l.trace
	err := attempt(req)
	a := l.snapshot()
	a.Ended = d.m.cfg.Now()
	if a.Ended.Before(a.Started) { // the clock was set
		a.Ended = a.Started
	}
	a.ErrorCode, a.ErrorClass, a.Error = d.ending(ctx, err)
	if err := d.m.cfg.Store.AddAttempt(d.f.Key, a); err != nil {
		d.log.Error("cannot record the attempt", "attempt", number, "err", err) // it is for people
	}
	return err
}

// ending says in code and words how an attempt ended. Nothing was wrong where there is no class.
func (d *download) ending(ctx context.Context, err error) (code, class, message string) {
	cause := context.Cause(ctx)
	var e *source.Error
	switch {
	case err == nil:
		return "", "", ""
	case errors.Is(err, errCancelled), errors.Is(cause, errCancelled):
		return "cancelled", "", "The fetch was cancelled."
	case errors.Is(cause, errShutdown):
		return "stopped", "", "The agent was stopped."
	case errors.Is(cause, errPaused):
		return "paused", "", "The fetch was paused."
	case errors.Is(cause, errOutside):
		return "window", "", "The time in which the fetch may run was over."
	case cause != nil && !errors.As(cause, &e):
		return "interrupted", "", "The attempt was interrupted."
	}
	e = d.explain(err)
	return e.Code, e.Class.String(), e.Message
}

// Attempts are those of a fetch, oldest first, the one that runs last, and how fast that is in bytes a second, nil if none
// downloads; store.ErrNotFound if there is no such fetch.
func (m *Manager) Attempts(ctx context.Context, key string) (list []store.Attempt, rate *int64, err error) {
	m.mu.Lock()
	fl := m.flights[key]
	m.mu.Unlock()
	var running *attemptLog
	if fl != nil {
		if running = fl.attempt.Load(); running != nil {
			rate = fl.progress.overlay(store.Fetch{}).BytesPerSecond
		}
	}
	if _, err := m.cfg.Store.Fetch(ctx, key); err != nil {
		return nil, nil, err
	}
	list, err = m.cfg.Store.Attempts(ctx, key)
	if err != nil {
		return nil, nil, err
	}
	if n := len(list); running != nil && (n == 0 || list[n-1].Number < running.number) { // else it has ended meanwhile
		return append(list, running.snapshot()), rate, nil
	}
	return list, nil, nil
}
