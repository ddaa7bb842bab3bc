package store_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"slotfetch/store"
)

func TestUpgrades(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "a.db"))
	ctx, by := t.Context(), store.Actor{Name: "ann", Address: "192.0.2.1"}
	one := 1
	add := func(id string, from *int, to int) error {
		return s.AddUpgrade(store.Upgrade{ID: id, Request: "r-" + id, BootID: "b1", From: from, FromVersion: "7.0", To: to, ToVersion: "7.1", SHA256: "ab",
			Message: "why", Reboot: "now"}, by)
	}
	if _, err := s.LiveUpgrade(ctx); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("none: %v", err)
	}
	ok(t, add("a", &one, 2))
	if err := add("b", nil, 3); !errors.Is(err, store.ErrConflict) {
		t.Errorf("a second one: %v", err)
	}
	live, err := s.LiveUpgrade(ctx)
	ok(t, err)
	if live.ID != "a" || live.Status != store.UpgradeRequested || *live.From != 1 || live.To != 2 || live.CreatedBy != "ann" || live.CreatedAt.IsZero() || !live.EndTime.IsZero() {
		t.Errorf("%+v", live)
	}
	move := func(from, to store.UpgradeStatus, reason string) error {
		live.Status, live.Reason, live.BootID = to, reason, "b2"
		return s.MoveUpgrade(live, from, by)
	}
	ok(t, move(store.UpgradeRequested, store.UpgradeActivated, ""))
	if err := move(store.UpgradeRequested, store.UpgradeFailed, "late"); !errors.Is(err, store.ErrConflict) {
		t.Errorf("from where it is no more: %v", err)
	}
	ok(t, move(store.UpgradeActivated, store.UpgradeConfirmed, ""))
	if err := move(store.UpgradeConfirmed, store.UpgradeFailed, ""); err == nil {
		t.Error("a failure without a reason was stored")
	}
	got, err := s.Upgrade(ctx, "a")
	ok(t, err)
	if got.Status != store.UpgradeConfirmed || got.BootID != "b2" || got.EndTime.IsZero() {
		t.Errorf("%+v", got)
	}
	ok(t, add("b", nil, 3))
	list, err := s.Upgrades(ctx)
	ok(t, err)
	if len(list) != 2 || list[0].ID != "b" || list[0].From != nil || list[1].ID != "a" {
		t.Errorf("%+v", list)
	}
	last, err := s.LastUpgradeTo(ctx, 2)
	if err != nil || last.ID != "a" {
		t.Errorf("%+v %v", last, err)
	}
	for _, err := range []error{func() error { _, err := s.LastUpgradeTo(ctx, 3); return err }(), func() error { _, err := s.Upgrade(ctx, "c"); return err }()} {
		if !errors.Is(err, store.ErrNotFound) {
			t.Errorf("got %v", err)
		}
	}
	events, err := s.Events(ctx, 3)
	ok(t, err)
	if events[0].Action != "upgrade.request" || events[1].Action != "upgrade.confirmed" || events[1].Actor != "ann" || events[2].Action != "upgrade.activated" {
		t.Errorf("%+v", events)
	}
}

// Of many that begin at the same time one is stored.
func TestUpgradesConcurrently(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "a.db"))
	var won atomic.Int32
	var g sync.WaitGroup
	for i := range 20 {
		g.Go(func() {
			err := s.AddUpgrade(store.Upgrade{ID: fmt.Sprint(i), Reboot: "now"}, store.Actor{})
			if err == nil {
				won.Add(1)
			} else if !errors.Is(err, store.ErrConflict) {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if won.Load() != 1 {
		t.Errorf("%d were stored", won.Load())
	}
}
