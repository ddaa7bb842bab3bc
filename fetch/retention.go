package fetch

import (
	"time"

	"slotfetch/store"
)

// This file removes old entries of ended fetches, where the configuration asks for it; slots and live fetches are not its
// business.

// keepEvery is how often it is looked whether an entry has become too old, beside each end of a fetch.
const keepEvery = time.Hour

// keep starts to look after the list once recovered is closed.
func (m *Manager) keep(recovered <-chan struct{}) {
	if m.cfg.KeepAge <= 0 && m.cfg.KeepCount <= 0 {
		return
	}
	ended := make(chan struct{}, 1)
	m.metrics.after = func() {
		select {
		case ended <- struct{}{}:
		default:
		}
	}
	every := keepEvery
	if m.cfg.KeepAge > 0 {
		every = min(every, m.cfg.KeepAge)
	}
	m.group.Go(func() {
		select {
		case <-recovered:
		case <-m.ctx.Done():
			return
		}
		tick, spared := time.NewTicker(every), time.NewTimer(store.Spared)
		defer tick.Stop()
		defer spared.Stop()
		for {
			m.expire()
			select {
			case <-ended:
				spared.Reset(store.Spared) // it is one too many no sooner
			case <-spared.C:
			case <-tick.C:
			case <-m.ctx.Done():
				return
			}
		}
	})
}

func (m *Manager) expire() {
	var before time.Time
	now := m.cfg.Now()
	if m.cfg.KeepAge > 0 {
		before = now.Add(-m.cfg.KeepAge)
	}
	n, err := m.cfg.Store.Expire(before, m.cfg.KeepCount, now, store.Actor{Name: "slotfetchd", Address: "local"})
	if n > 0 {
		m.notify()
		m.cfg.Log.Info("entries of ended fetches removed", "count", n)
	}
	if err != nil {
		m.cfg.Log.Error("cannot remove entries of ended fetches", "err", err) // the next end of a fetch tries again
	}
}
