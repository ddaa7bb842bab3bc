package fetch

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"slices"

	"slotfetch/slots"
	"slotfetch/store"
)

// This file holds what makes a download needless: an image that a slot has, and a request that was made before.

// ErrOtherRequest means that the caller used the idempotency key for another request before.
var ErrOtherRequest = errors.New("the idempotency key is of another request")

// holder is the slot that has the image of f already; nil if there is none, or f wants another slot or a download.
// Manifest and size are believed: what tests the bytes again is another job.
func (m *Manager) holder(f store.Fetch) *slots.Slot {
	if f.Force || f.SHA256 == "" {
		return nil
	}
	list, err := m.cfg.Slots.List()
	if err != nil {
		m.cfg.Log.Warn("cannot look for the image in the slots, so it is downloaded", "err", err)
		return nil
	}
	i := slices.IndexFunc(list, func(s slots.Slot) bool {
		return s.Manifest != nil && !s.Care.Degraded && s.Manifest.SHA256 == f.SHA256 && (f.SHA512 == "" || s.Manifest.SHA512 == f.SHA512) &&
			(!m.wantsSignature(f) || m.cfg.Trust.vouched(s.Manifest)) &&
			(f.WantSlot == nil || *f.WantSlot == s.ID)
	})
	if i < 0 {
		return nil
	}
	return &list[i]
}

// requestHash tells apart requests under one idempotency key. It is keyed, because a request may have credentials.
func requestHash(key []byte, q Request) ([]byte, error) {
	text, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	h := hmac.New(sha256.New, key)
	h.Write(text)
	return h.Sum(nil), nil
}

// reuse finishes a claimed fetch if a slot has the image by now. What was downloaded is removed.
func (d *download) reuse(ctx context.Context) (done bool, err error) {
	s := d.m.holder(d.f)
	if s == nil {
		return false, nil
	}
	if err := d.abort(); err != nil {
		return false, errWrite{err}
	}
	if err := d.insist(ctx, "finished", func() error {
		_, err := d.m.cfg.Store.Deduplicate(d.f.Key, s.ID, s.Manifest.Size)
		return err
	}); err != nil {
		return false, err
	}
	d.m.metrics.ended(store.Finished)
	d.log.Info("fetch finished without filling a slot: the image is there", "slot", s.ID)
	return true, nil
}
