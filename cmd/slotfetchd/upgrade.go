package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"slotfetch/slots"
	"slotfetch/store"
)

// The watcher looks for the root side's answer after the first pause, then after longer ones.
const (
	firstLook = 100 * time.Millisecond
	laterLook = 2 * time.Second
)

// upgrader leads an upgrade through its states, one at a time:
//
//	requested  the row, then boot.json, then the answer to the caller, then the request to the root side
//	activated  the boot loader will boot the slot once
//	booted     another boot, and not of another slot: the root side looks whether the box is healthy
//	confirmed  the slot is the default: boot.json, then the row
//	reverting  somebody took it back, or another slot booted: the root side makes the boot loader forget it
//	failed     the slot before is the one that boots: boot.json, then the row
//
// Each step may be cut off anywhere and is taken again at the next start. boot.json names both slots from the request to the
// end, so neither can be emptied meanwhile.
type upgrader struct {
	log      *slog.Logger
	store    *store.Store
	slots    *slots.Slots
	tester   *slots.Tester
	handover *slots.Handover

	bootID  string // of this boot; empty if unknown
	running *int   // the slot that the kernel was told; nil if none
	told    *int   // the slot that the root side has found to run; nil if it said nothing

	mu     sync.Mutex
	unsent string // the upgrade whose caller has no answer yet

	wake chan struct{}
	stop context.CancelFunc
	done chan struct{}
}

// agentActor is who acts when nobody asked.
var agentActor = store.Actor{Name: "slotfetchd", Address: "local"}

// openUpgrader takes up what the last agent left, and follows it. A step that fails is logged and tried again.
func openUpgrader(cfg config, log *slog.Logger, st *store.Store, sl *slots.Slots, tester *slots.Tester) (*upgrader, error) {
	h, err := slots.MakeHandover(cfg.StateDir, activateDir)
	if err != nil {
		return nil, fmt.Errorf("cannot make the directory of requests: %w", err)
	}
	u := &upgrader{log: log, store: st, slots: sl, tester: tester, handover: h, bootID: bootID(cfg), wake: make(chan struct{}, 1), done: make(chan struct{})}
	if id, ok := runningSlot(cfg); ok && sl.Known(id) {
		u.running = &id
	}
	var ctx context.Context
	ctx, u.stop = context.WithCancel(context.Background())
	if u.bootID == "" {
		log.Warn("cannot tell one boot from another, so nothing can be upgraded", "file", cfg.Activate.BootIDFile)
	}
	u.follow()
	if u.running != nil {
		sl.Runs(*u.running) // from here on, whatever becomes of boot.json
	}
	waiting := u.advance()
	go u.watch(ctx, waiting)
	return u, nil
}

// Close ends the watching; an upgrade goes on at the next start.
func (u *upgrader) Close() error {
	u.stop()
	<-u.done
	return u.handover.Close()
}

// follow makes boot.json agree with the kernel about the slot that runs, if no upgrade is to decide that.
func (u *upgrader) follow() {
	current, next, err := u.slots.Boot()
	_, live := u.store.LiveUpgrade(context.Background())
	if u.running == nil || err != nil || !errors.Is(live, store.ErrNotFound) || current != nil && *current == *u.running || !u.slots.Valid(*u.running) {
		return
	}
	if next == nil {
		next = u.running
	} // else the boot loader still has it for the default: nobody has told it otherwise
	u.log.Warn("the box runs another slot than before", "slot", *u.running)
	if err := u.slots.SetBoot(u.running, next); err != nil {
		u.log.Error("cannot note the slot that runs", "slot", *u.running, "err", err)
	}
}

// watch takes the next step when somebody has something new, or when the root side has answered.
func (u *upgrader) watch(ctx context.Context, waiting bool) {
	defer close(u.done)
	pause := firstLook
	for {
		var look <-chan time.Time
		if waiting {
			look = time.After(pause)
			pause = min(2*pause, laterLook)
		}
		select {
		case <-ctx.Done():
			return
		case <-look:
		case <-u.wake:
			pause = firstLook
		}
		waiting = u.advance()
	}
}

// nudge has the watcher look now.
func (u *upgrader) nudge() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// advance takes all steps that can be taken now, and tells whether the root side is to answer.
func (u *upgrader) advance() (waiting bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.advanceLocked()
}

func (u *upgrader) advanceLocked() (waiting bool) {
	for {
		moved, waiting, err := u.step()
		if err != nil {
			u.log.Error("cannot go on with an upgrade; trying again", "err", err)
			return true
		}
		if !moved {
			return waiting
		}
	}
}

// step takes one step of the upgrade that is under way, if there is one.
func (u *upgrader) step() (moved, waiting bool, err error) {
	live, err := u.store.LiveUpgrade(context.Background())
	if errors.Is(err, store.ErrNotFound) || err == nil && live.ID == u.unsent {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	result, answered, err := u.answer(live)
	if err != nil {
		return false, false, err
	}
	rebooted := u.bootID != "" && live.BootID != u.bootID
	strayed := u.running != nil && *u.running != live.To
	switch live.Status {
	case store.UpgradeRequested:
		_, next, err := u.slots.Boot()
		switch {
		case err != nil:
			return false, false, err
		case answered && result.Uncertain: // the boot loader may boot the slot all the same
			return true, false, u.revert(live, result.Message, agentActor)
		case answered && !result.OK:
			return true, false, u.fail(live, result.Message, agentActor)
		case answered:
			if here := u.running != nil && !strayed; result.BootID != "" && !here {
				live.BootID = result.BootID
			}
			return true, false, u.move(live, store.UpgradeActivated, "")
		case next == nil || *next != live.To:
			return true, false, u.fail(live, "The agent stopped before it had accepted the upgrade.", agentActor)
		case rebooted && u.running != nil && !strayed: // the power was cut before there was a result
			return true, false, u.move(live, store.UpgradeActivated, "")
		}
		return u.ask(live, slots.ActionActivate, live.Reboot)
	case store.UpgradeActivated:
		if !rebooted {
			return false, false, nil
		}
		if strayed {
			return true, false, u.revert(live, fmt.Sprintf("The box booted slot %d instead.", *u.running), agentActor)
		}
		live.BootID, live.Request = u.bootID, uuid.NewString()
		return true, false, u.move(live, store.UpgradeBooted, "")
	case store.UpgradeBooted:
		switch {
		case answered && result.OK:
			if err := u.slots.SetBoot(&live.To, &live.To); err != nil {
				return false, false, err
			}
			return true, false, u.move(live, store.UpgradeConfirmed, "")
		case answered:
			return true, false, u.fail(live, result.Message, agentActor)
		case strayed: // it went down before it was found healthy
			return true, false, u.revert(live, fmt.Sprintf("The box booted slot %d again before slot %d was found healthy.", *u.running, live.To), agentActor)
		}
		return u.ask(live, slots.ActionConfirm, live.Reboot)
	case store.UpgradeReverting:
		switch {
		case answered && result.OK:
			return true, false, u.fail(live, live.Reason, agentActor)
		case answered: // the boot loader may still boot the slot, so it stays protected, until the next boot or rollback
			live.BootID = u.bootID
			return true, false, u.move(live, store.UpgradeActivated, live.Reason+" It could not be taken back: "+result.Message)
		}
		return u.ask(live, slots.ActionRollback, slots.RebootNone)
	}
	return false, false, fmt.Errorf("upgrade %s has the unknown status %q", live.ID, live.Status)
}

// answer is what the root side said to the last request of an upgrade.
func (u *upgrader) answer(live store.Upgrade) (r slots.Result, answered bool, err error) {
	r, err = u.handover.Result()
	if errors.Is(err, fs.ErrNotExist) {
		return r, false, nil
	}
	if err != nil {
		u.log.Error("cannot read the result of the root side; asking again", "err", err)
		return r, false, nil
	}
	if r.Running != nil {
		u.told = r.Running
	}
	if r.OK {
		r.Message = ""
	} else if r.Message == "" {
		r.Message = "no reason was given"
	}
	return r, r.ID == live.Request, nil
}

// ask leaves a request for the root side, unless it is there already. While the root side works, it waits.
func (u *upgrader) ask(live store.Upgrade, action, reboot string) (moved, waiting bool, err error) {
	if there, err := u.handover.Request(); err == nil && there.ID == live.Request {
		return false, true, nil
	}
	unlock, err := u.handover.Lock()
	if errors.Is(err, slots.ErrLocked) {
		return false, true, nil
	}
	if err != nil {
		return false, false, err
	}
	defer unlock()
	if _, answered, err := u.answer(live); err != nil || answered { // since we looked
		return answered, false, err
	}
	u.log.Info("ask the root side", "upgrade", live.ID, "action", action, "slot", live.To)
	return false, true, u.handover.WriteRequest(slots.Request{ID: live.Request, Action: action, SlotID: live.To, SHA256: live.SHA256, Previous: live.From, Reboot: reboot})
}

// move changes the status durably.
func (u *upgrader) move(live store.Upgrade, to store.UpgradeStatus, reason string) error {
	return u.moveBy(live, to, reason, agentActor)
}

func (u *upgrader) moveBy(live store.Upgrade, to store.UpgradeStatus, reason string, by store.Actor) error {
	from := live.Status
	live.Status, live.Reason = to, reason
	u.log.Info("upgrade", "upgrade", live.ID, "slot", live.To, "status", string(to), "reason", reason)
	return u.store.MoveUpgrade(live, from, by)
}

// revert has the boot loader forget the slot.
func (u *upgrader) revert(live store.Upgrade, reason string, by store.Actor) error {
	live.Request = uuid.NewString()
	return u.moveBy(live, store.UpgradeReverting, reason, by)
}

// fail ends an upgrade: the slot before boots next. The one that runs is current, though it be the new one.
func (u *upgrader) fail(live store.Upgrade, reason string, by store.Actor) error {
	current := live.From
	for _, runs := range []*int{u.told, u.running} {
		if runs != nil && u.slots.Valid(*runs) {
			current = runs
		}
	}
	if err := u.slots.SetBoot(current, live.From); err != nil {
		return err
	}
	return u.moveBy(live, store.UpgradeFailed, reason, by)
}

// testPolicy is what the configuration asks of a slot that is to be activated.
func (d *daemon) testPolicy() slots.TestPolicy {
	hooks := testHooks{dir: d.cfg.Upgrade.TestHooks, limit: time.Duration(d.cfg.Upgrade.TestHookTimeout), log: d.log}
	c := d.cfg.Upgrade
	return slots.TestPolicy{AllowDowngrade: c.AllowDowngrade, Products: c.Products, Versions: c.Versions, Signed: d.cfg.Trust.Require, Hooks: hooks.run, Space: func() (int64, error) {
		var st unix.Statfs_t
		if err := unix.Statfs(d.cfg.StateDir, &st); err != nil {
			return 0, fmt.Errorf("cannot ask for free space in the state directory: %w", err)
		}
		return int64(st.Bavail) * st.Bsize, nil
	}}
}
