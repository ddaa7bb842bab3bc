package fetch

import (
	"context"
	"errors"
	"strings"
	"time"

	"slotfetch/store"
)

// This file holds when a fetch may run, and what happens when somebody changes that.

var (
	errPaused  = errors.New("paused by a user")
	errOutside = errors.New("outside of the time in which the fetch may run")
)

// Change is what a user wants to be different of a fetch; nil leaves a thing as it is.
type Change struct {
	Paused    *bool
	Priority  *int
	RateLimit *int64     // bytes a second, 0 for none
	NotBefore *time.Time // zero for none
	Window    *Window    // the zero value for none of its own
	Place     *store.Place
}

// apply is s with what c changes in it.
func (c Change) apply(s store.Schedule) store.Schedule {
	set(&s.Paused, c.Paused)
	set(&s.Priority, c.Priority)
	set(&s.RateLimit, c.RateLimit)
	set(&s.NotBefore, c.NotBefore)
	if c.Window != nil {
		s.Window = c.Window.String()
	}
	return s
}

// words names what c changes, for the audit and the log.
func (c Change) words() string {
	var out []string
	for _, field := range []struct {
		name  string
		there bool
	}{
		{"pause", c.Paused != nil && *c.Paused}, {"resume", c.Paused != nil && !*c.Paused}, {"priority", c.Priority != nil},
		{"rate_limit", c.RateLimit != nil}, {"not_before", c.NotBefore != nil}, {"window", c.Window != nil}, {"position", c.Place != nil},
	} {
		if field.there {
			out = append(out, field.name)
		}
	}
	return strings.Join(out, " ")
}

// Change changes the schedule of a fetch. One that is to be paused, or whose time is not now, is interrupted: its partial is
// kept, and the call waits until the worker has let go of it, at most CancelWait or until ctx ends. The error is
// [store.ErrConflict] for a fetch that is final, installing or being cancelled, or that is not queued where c has a place;
// [store.ErrNoPlace] if the other fetch is not in the queue; [store.ErrNotFound].
func (m *Manager) Change(ctx context.Context, key string, c Change, by store.Actor) (store.Fetch, error) {
	f, err := m.cfg.Store.Reschedule(key, func(f store.Fetch) (store.Schedule, error) {
		s := c.apply(f.Schedule)
		if s.EligibleAt = m.due(s); f.Paused && !s.Paused && !s.EligibleAt.After(m.cfg.Now()) {
			s.EligibleAt = m.cfg.Now() // the deadline counts from here
		}
		return s, nil
	}, c.Place, c.words(), by)
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNoPlace) || errors.Is(err, store.ErrNotFound) {
		return f, err
	}
	// Also after another error, which may hide a change that is durable.
	m.mu.Lock()
	fl := m.flights[key]
	m.mu.Unlock()
	if fl != nil {
		m.steer(fl, key)
	}
	m.notify()
	m.rouse()
	if err != nil {
		return f, err
	}
	m.cfg.Log.Info("fetch changed", "key", key, "by", by.Name, "change", c.words())
	held := func(f store.Fetch) bool {
		return f.Status == store.InProgress && (f.Paused || f.EligibleAt.After(m.cfg.Now()))
	}
	if held(f) {
		ctx, stop := context.WithTimeout(ctx, m.cfg.CancelWait)
		defer stop()
		now, err := m.Wait(ctx, key, func(f store.Fetch) bool { return !held(f) })
		if err == nil {
			return now, nil
		}
		if ctx.Err() == nil {
			return f, err
		}
	}
	return m.Get(context.WithoutCancel(ctx), key)
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// eligible is the moment from which a fetch may run; zero if it may now.
func (m *Manager) eligible(s store.Schedule) time.Time {
	now := m.cfg.Now()
	t := now
	if s.NotBefore.After(t) {
		t = s.NotBefore
	}
	if open, opens := m.window(s).at(t.Local()); !open {
		t = opens
	}
	if t.After(now) {
		return t
	}
	return time.Time{}
}

// due is what EligibleAt should be. A moment that has passed stays: the deadline counts from it.
func (m *Manager) due(s store.Schedule) time.Time {
	at := m.eligible(s)
	if at.IsZero() && !s.EligibleAt.After(m.cfg.Now()) {
		return s.EligibleAt
	}
	return at
}

// reschedule notes from when the fetches may run, where that is not what is noted: the window of all may be another one now.
func (m *Manager) reschedule(rows []store.Fetch) error {
	moved := map[string]time.Time{}
	for _, f := range rows {
		if at := m.due(f.Schedule); !at.Equal(f.EligibleAt) {
			moved[f.Key] = at
		}
	}
	if len(moved) == 0 {
		return nil
	}
	return m.cfg.Store.Postpone(moved)
}

// window is the fetch's own, else that of all.
func (m *Manager) window(s store.Schedule) Window {
	if w, err := ParseWindow(s.Window); err == nil && w != (Window{}) {
		return w
	}
	return m.cfg.Window
}

// farthest bounds how long anybody sleeps until a moment of the clock: it may be set meanwhile.
const farthest = time.Minute

// steer applies the row of a flight, as it is now, to the flight, and does so again when its window closes.
func (m *Manager) steer(fl *flight, key string) {
	m.steering.Lock() // so that the last one has the newest row
	defer m.steering.Unlock()
	f, err := m.cfg.Store.Fetch(m.ctx, key)
	now := m.cfg.Now()
	var next time.Duration
	switch {
	case err != nil:
		next = time.Second
		if m.ctx.Err() == nil {
			m.cfg.Log.Error("cannot look what is wanted of a fetch", "key", key, "err", err)
		}
	case f.CancelRequested:
		fl.cancel(errCancelled)
	case f.Paused:
		fl.cancel(errPaused)
	case !m.eligible(f.Schedule).IsZero():
		fl.cancel(errOutside)
	default:
		setLimit(fl.limit, f.RateLimit)
		if _, closes := m.window(f.Schedule).at(now.Local()); !closes.IsZero() {
			next = max(min(closes.Sub(now), farthest), time.Millisecond)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if fl.again != nil {
		fl.again.Stop()
	}
	if m.flights[key] == fl && next > 0 {
		fl.again = time.AfterFunc(next, func() { m.steer(fl, key) })
	}
}

// rouse makes a worker that has nothing to do look again.
func (m *Manager) rouse() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// idle waits until there may be something to do.
func (m *Manager) idle() {
	var due <-chan time.Time
	at, ok, err := m.cfg.Store.NextEligible(m.ctx)
	if err != nil && m.ctx.Err() == nil {
		m.cfg.Log.Error("cannot look when the next fetch may run", "err", err)
	}
	if ok || err != nil {
		t := time.NewTimer(max(min(at.Sub(m.cfg.Now()), farthest), time.Millisecond))
		if err != nil {
			t.Reset(time.Second)
		}
		defer t.Stop()
		due = t.C
	}
	select {
	case <-m.wake:
	case <-due:
	case <-m.ctx.Done():
		return
	}
	if ok {
		m.rejudge()
	}
}

// rejudge judges anew when the queued fetches may run if the clock was set since it last looked: what was noted was by
// another clock.
func (m *Manager) rejudge() {
	offset := m.cfg.Now().UnixNano() - int64(time.Since(epoch))
	if step := time.Duration(offset - m.clock.Swap(offset)); step.Abs() < time.Second {
		return
	}
	var rows []store.Fetch
	err := m.cfg.Store.Unfinished(m.ctx, func(f store.Fetch) error {
		if f.Status == store.Queued && !f.EligibleAt.IsZero() {
			rows = append(rows, store.Fetch{Key: f.Key, Schedule: f.Schedule})
		}
		return nil
	})
	if err == nil {
		err = m.reschedule(rows)
	}
	if err != nil && m.ctx.Err() == nil {
		m.cfg.Log.Error("cannot judge anew when fetches may run", "err", err)
	}
}
