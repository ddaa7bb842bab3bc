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

// Change changes the schedule of a fetch. One that is to be paused, or whose time is over, is interrupted: its partial is
// kept, and the call waits until the worker has let go of it, at most CancelWait or until ctx ends. The error is
// [store.ErrConflict] for a fetch that is final, installing or being cancelled, or that is not queued where c has a place;
// [store.ErrNoPlace] if the other fetch is not in the queue; [store.ErrNotFound].
func (m *Manager) Change(ctx context.Context, key string, c Change, by store.Actor) (store.Fetch, error) {
	f, err := m.cfg.Store.Reschedule(key, func(f store.Fetch) (store.Schedule, error) {
		s := c.apply(f.Schedule)
		if s.EligibleAt = m.eligible(s); s.EligibleAt.IsZero() && f.Paused && !s.Paused {
			s.EligibleAt = m.cfg.Now() // the deadline counts from here
		}
		return s, nil
	}, c.Place, c.words(), by)
	if err != nil {
		return f, err
	}
	m.cfg.Log.Info("fetch changed", "key", key, "by", by.Name, "change", c.words())
	m.mu.Lock()
	fl := m.flights[key]
	m.mu.Unlock()
	if fl != nil {
		m.steer(fl, f)
	}
	m.notify()
	m.rouse()
	if f.Status == store.InProgress && f.Paused {
		ctx, stop := context.WithTimeout(ctx, m.cfg.CancelWait)
		defer stop()
		now, err := m.Wait(ctx, key, func(f store.Fetch) bool { return f.Status != store.InProgress || !f.Paused })
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

// reschedule notes from when the fetches may run, where that is not what is noted: the window of all may be another one now.
func (m *Manager) reschedule(rows []store.Fetch) error {
	moved := map[string]time.Time{}
	for _, f := range rows {
		at := m.eligible(f.Schedule)
		if !at.Equal(f.EligibleAt) && (!at.IsZero() || f.EligibleAt.After(m.cfg.Now())) {
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

// steer applies the schedule of f, as it is now, to the flight.
func (m *Manager) steer(fl *flight, f store.Fetch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if fl.closing != nil {
		fl.closing.Stop()
	}
	setLimit(fl.limit, f.RateLimit)
	switch {
	case f.Paused:
		fl.cancel(errPaused)
	case !m.eligible(f.Schedule).IsZero():
		fl.cancel(errOutside)
	default:
		if _, closes := m.window(f.Schedule).at(m.cfg.Now().Local()); !closes.IsZero() {
			fl.closing = time.AfterFunc(closes.Sub(m.cfg.Now()), func() { fl.cancel(errOutside) })
		}
	}
}

// rouse makes a worker that has nothing to do look again.
func (m *Manager) rouse() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// farthest bounds the sleep of a worker before the time of a fetch, because the clock of the box may be set.
const farthest = time.Minute

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
	}
}
