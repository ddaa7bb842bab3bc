package fetch

import (
	"context"
	"fmt"
	"slices"

	"slotfetch/store"
)

// recover brings rows and disk together at the start, before any worker runs. It is idempotent. By status and disk:
//
//	queued                                    left as it is
//	in progress, cancel requested             partial removed, cancelled
//	in progress, downloading/waiting/verifying  queued; the partial kept only with a checkpoint
//	in progress, installing, slot has the key finished
//	in progress, installing, no such slot     queued; the partial kept only with a checkpoint
//	a partial of no unfinished fetch          removed
//	a slot of no fetch                        kept: the disk is the truth
func (m *Manager) recover() error {
	var keep []string
	var rows []store.Fetch
	if err := m.cfg.Store.Unfinished(context.Background(), func(f store.Fetch) error {
		rows = append(rows, store.Fetch{Key: f.Key, Status: f.Status, Phase: f.Phase, CancelRequested: f.CancelRequested,
			SHA256: f.SHA256, StartTime: f.StartTime, BytesDownloaded: f.BytesDownloaded, BytesTotal: f.BytesTotal, BytesReceived: f.BytesReceived,
			Schedule: f.Schedule, Checkpoint: store.Checkpoint{Offset: f.Checkpoint.Offset}})
		return nil
	}); err != nil {
		return err
	}
	for _, f := range rows {
		kept, err := m.recoverRow(f)
		if err != nil {
			return fmt.Errorf("cannot recover fetch %s: %w", f.Key, err)
		}
		if kept {
			keep = append(keep, f.Key)
		}
	}
	partials, err := m.cfg.Slots.Partials()
	if err != nil {
		return err
	}
	for _, key := range partials {
		if !slices.Contains(keep, key) {
			m.cfg.Log.Info("removing a partial that no fetch owns", "key", key)
			if err := m.cfg.Slots.RemovePartial(key); err != nil {
				return err
			}
		}
	}
	return m.reschedule(rows)
}

// recoverRow handles one unfinished row and tells whether its partial is kept.
func (m *Manager) recoverRow(f store.Fetch) (keep bool, err error) {
	resumable := f.Checkpoint.Offset > 0
	switch {
	case f.Status == store.Queued:
		return resumable, nil
	case f.Phase == store.Installing:
		if slot, ok := m.cfg.Slots.FindKey(f.Key); ok && slot.Manifest.SHA256 == f.SHA256 {
			_, err := m.cfg.Store.Finish(f.Key, slot.ID, nil)
			if err == nil {
				m.metrics.ended(store.Finished)
			}
			return false, err
		}
	case f.CancelRequested:
		if err := m.cfg.Slots.RemovePartial(f.Key); err != nil {
			return false, err
		}
		_, err := m.cfg.Store.Cancelled(f.Key, f.BytesDownloaded, f.BytesTotal)
		if err == nil {
			m.metrics.ended(store.Cancelled)
		}
		return false, err
	}
	m.cfg.Log.Info("fetch was interrupted and is queued again", "key", f.Key, "offset", f.Checkpoint.Offset)
	_, err = m.cfg.Store.Requeue(f.Key, resumable, false, f.BytesReceived)
	return resumable, err
}
