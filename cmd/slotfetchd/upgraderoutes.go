package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/gorilla/mux"

	"slotfetch/api"
	"slotfetch/slots"
	"slotfetch/store"
)

const (
	upgradePath  = "/api/firmware/upgrade"
	upgradesPath = "/api/firmware/upgrades"
	rollbackPath = "/api/firmware/rollback"
	slotsPath    = "/api/firmware/slots"

	commitLogMax = 4096 // characters
)

// upgradeRoutes activate slots and tell what became of it (contract section 7).
func (d *daemon) upgradeRoutes() []api.Route {
	return []api.Route{
		{Method: http.MethodPost, Path: upgradePath, Access: api.Admin, Wait: api.Always(slots.ExamineWait), Handler: d.handleUpgrade},
		{Method: http.MethodPost, Path: rollbackPath, Access: api.Admin, Wait: api.Always(slots.ExamineWait), Handler: d.handleRollback},
		{Method: http.MethodGet, Path: upgradesPath, Access: api.Viewer, Handler: d.handleUpgrades},
		{Method: http.MethodGet, Path: upgradesPath + "/{key}", Access: api.Viewer, Handler: d.handleOneUpgrade},
	}
}

// order is what a caller may say of an upgrade or rollback.
type order struct {
	id              string // of the upgrade; empty for a new one
	slot            int
	sha256          string // of the image that is meant; empty for whatever the slot has
	message, reboot string
	rollback        bool
	by              store.Actor
}

// readOrder reads the fields that upgrade and rollback share.
func (d *daemon) readOrder(r *http.Request, body api.Object) (o order, err error) {
	if o.message, err = body.String("message", "a string"); err != nil {
		return o, err
	}
	o.message = strings.TrimSpace(o.message)
	if utf8.RuneCountInString(o.message) > commitLogMax {
		return o, api.Semantic("message", fmt.Sprintf("a string of at most %d characters", commitLogMax))
	}
	if d.cfg.Upgrade.RequireCommitLog && o.message == "" {
		e := api.Missing("message", "")
		e.Message = `Field "message" is missing: this box wants to know why.`
		return o, e
	}
	const moments = "now, next or none"
	if o.reboot, err = body.String("reboot", moments); err != nil {
		return o, err
	}
	switch o.reboot {
	case "":
		o.reboot = slots.RebootNow
	case slots.RebootNow, slots.RebootNext, slots.RebootNone:
	default:
		return o, api.Semantic("reboot", moments)
	}
	p, _ := api.PrincipalFrom(r.Context())
	o.by = store.Actor{Name: p.Name, Address: p.Address}
	return o, nil
}

func (d *daemon) handleUpgrade(r *http.Request) (api.Reply, error) {
	body, err := api.ReadObject(r)
	if err != nil {
		return api.Reply{}, err
	}
	slot, err := slots.SlotID(body)
	if err != nil {
		return api.Reply{}, err
	}
	o, err := d.readOrder(r, body)
	if err != nil {
		return api.Reply{}, err
	}
	o.slot = slot
	up, summary, err := d.upgrades.begin(r.Context(), o)
	if err != nil {
		return api.Reply{}, err
	}
	reply := slots.TestReply(upgradePath, up.To, summary)
	reply.Body.UpgradeID = up.ID
	return api.Reply{Body: reply, After: func() { d.upgrades.answered(up.ID) }}, nil
}

// handleRollback takes the upgrade back that is under way; without one it activates the slot before.
func (d *daemon) handleRollback(r *http.Request) (api.Reply, error) {
	body, err := api.ReadObject(r)
	if err != nil {
		return api.Reply{}, err
	}
	o, err := d.readOrder(r, body)
	if err != nil {
		return api.Reply{}, err
	}
	o.rollback = true
	up, err := d.upgrades.takeBack(o.by, o.message)
	if errors.Is(err, store.ErrNotFound) {
		if o.slot, err = d.upgrades.previous(r.Context()); err == nil {
			up, _, err = d.upgrades.begin(r.Context(), o)
		}
	}
	if err != nil {
		return api.Reply{}, err
	}
	return api.Reply{Body: upgradeDocument(up, true), After: func() { d.upgrades.answered(up.ID) }}, nil
}

func (d *daemon) handleUpgrades(r *http.Request) (api.Reply, error) {
	list, err := d.store.Upgrades(r.Context())
	if err != nil {
		return api.Reply{}, err
	}
	reply := api.UpgradeList{Items: []api.Upgrade{}, Meta: api.Meta{Href: upgradesPath, Parent: "/api/firmware"}}
	for _, u := range list {
		reply.Items = append(reply.Items, upgradeDocument(u, false))
	}
	return api.Reply{Body: reply}, nil
}

func (d *daemon) handleOneUpgrade(r *http.Request) (api.Reply, error) {
	key := mux.Vars(r)["key"]
	if len(key) > 64 {
		key = "…"
	}
	u, err := d.store.Upgrade(r.Context(), key)
	if errors.Is(err, store.ErrNotFound) {
		return api.Reply{}, api.NotFound(upgradesPath, key)
	}
	if err != nil {
		return api.Reply{}, err
	}
	return api.Reply{Body: upgradeDocument(u, true)}, nil
}

// upgradeDocument is an upgrade on the wire; alone it has all its links.
func upgradeDocument(u store.Upgrade, alone bool) api.Upgrade {
	text := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	doc := api.Upgrade{Key: u.ID, Meta: api.Meta{Href: upgradesPath + "/" + u.ID}, Body: api.UpgradeBody{Status: string(u.Status), FromSlot: u.From,
		FromVersion: text(u.FromVersion), ToSlot: u.To, ToVersion: u.ToVersion, SHA256: u.SHA256, Message: u.Message, Reboot: u.Reboot, Rollback: u.Rollback,
		Reason: text(u.Reason), RequestedBy: u.CreatedBy, RequestTime: api.FormatTime(u.CreatedAt), EndTime: api.FormatTime(u.EndTime)}}
	if alone {
		doc.Meta.Parent, doc.Meta.Slot = upgradesPath, fmt.Sprintf("%s/%d", slotsPath, u.To)
	}
	return doc
}

// begin tests the slot and notes the upgrade. The root side is asked when the caller has the answer: see answered.
func (u *upgrader) begin(ctx context.Context, o order) (up store.Upgrade, summary string, err error) {
	if u.bootID == "" {
		return up, "", api.Unavailable("This box cannot tell one boot from another (activate.boot_id_file), so nothing can be activated.")
	}
	if sl, err := u.slots.Get(o.slot); err == nil && (sl.Manifest != nil || sl.Damaged) {
		// State comes before the test, which takes long. Without an image, Examine has the words.
		if err := u.free(ctx, o.slot); err != nil {
			return up, "", err
		}
	}
	summary, release, err := u.tester.Examine(ctx, o.slot, o.rollback)
	if err != nil {
		return up, "", err
	}
	defer release()
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.free(ctx, o.slot); err != nil {
		return up, "", err
	}
	sl, err := u.slots.Get(o.slot)
	if err != nil {
		return up, "", err
	}
	if o.sha256 != "" && sl.Manifest.SHA256 != o.sha256 {
		e := api.NotFound(slotsPath, strconv.Itoa(o.slot))
		e.Message = fmt.Sprintf("Slot %d has another image by now.", o.slot)
		return up, "", e
	}
	current, next, err := u.slots.Boot()
	if err != nil {
		return up, "", bootUnknown(err)
	}
	if current != nil && next != nil && *next != *current { // of three slots, one would go unprotected
		return up, "", api.Conflict(fmt.Sprintf("The box runs slot %d, and slot %d boots next. Reboot it first.", *current, *next),
			map[string]any{"slot_id": *current, "next_slot_id": *next, "state": "reboot-pending"})
	}
	up = store.Upgrade{ID: cmp.Or(o.id, uuid.NewString()), Status: store.UpgradeRequested, Request: uuid.NewString(), BootID: u.bootID, From: current, To: o.slot,
		ToVersion: sl.Manifest.Version, SHA256: sl.Manifest.SHA256, Message: o.message, Reboot: o.reboot, Rollback: o.rollback, CreatedBy: o.by.Name}
	if current != nil {
		if from, err := u.slots.Get(*current); err == nil && from.Manifest != nil {
			up.FromVersion, up.FromSHA256 = from.Manifest.Version, from.Manifest.SHA256
		}
	}
	u.unsent = up.ID
	if err = u.store.AddUpgrade(up, o.by); err == nil {
		err = u.slots.SetBoot(current, &o.slot)
	}
	if err == nil {
		up, err = u.store.Upgrade(context.Background(), up.ID)
	}
	if err != nil {
		u.unsent = ""
		u.undo(up, next, o.by)
		return up, "", u.refused(err, o.slot)
	}
	return up, summary, nil
}

// undo ends an upgrade that could not be noted as a whole; what cannot be undone now, the watcher does.
func (u *upgrader) undo(up store.Upgrade, next *int, by store.Actor) {
	defer u.nudge()
	if live, err := u.store.LiveUpgrade(context.Background()); err != nil || live.ID != up.ID {
		return // it was never stored, or cannot be seen
	}
	err1 := u.slots.SetBoot(up.From, next)
	err2 := u.moveBy(up, store.UpgradeFailed, "It could not be noted on the disk.", by)
	if err := errors.Join(err1, err2); err != nil {
		u.log.Error("cannot undo an upgrade that was refused", "upgrade", up.ID, "err", err)
	}
}

// refused is why an upgrade could not be noted.
func (u *upgrader) refused(err error, slot int) error {
	switch {
	case errors.Is(err, store.ErrConflict):
		if e := u.free(context.Background(), slot); e != nil {
			return e
		}
		return api.Conflict("Another upgrade came first. Try again.", nil)
	case slots.ReadOnly(err):
		e := api.Unavailable("The upgrade was refused: the slots directory cannot be written. Make it writable and try again.")
		e.Err = err
		return e
	}
	return err
}

// free is an error if another upgrade is under way, or if the slot runs already.
func (u *upgrader) free(ctx context.Context, slot int) error {
	live, err := u.store.LiveUpgrade(ctx)
	if err == nil {
		return underWay(live, "Wait for its end, or take it back with POST "+rollbackPath+".")
	}
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	current, _, err := u.slots.Boot()
	if err != nil {
		return bootUnknown(err)
	}
	if current != nil && *current == slot {
		return api.Conflict(fmt.Sprintf("Slot %d runs now.", slot), map[string]any{"slot_id": slot, "state": "current"})
	}
	return nil
}

func underWay(live store.Upgrade, remedy string) *api.Error {
	return api.Conflict(fmt.Sprintf("An upgrade to slot %d is under way: %s. %s", live.To, live.Status, remedy),
		map[string]any{"upgrade": live.ID, "upgrade_status": string(live.Status)})
}

func bootUnknown(err error) *api.Error {
	e := api.Unavailable("It is not known which slot runs: boot.json in the slots directory cannot be read. Repair or remove it and try again.")
	e.Err = err
	return e
}

// answered is called when the caller of an upgrade has the answer: now the root side may act, and the box reboot.
func (u *upgrader) answered(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.unsent == id {
		u.unsent = ""
	}
	u.advanceLocked()
	u.nudge() // so that the watcher waits with us
}

// takeBack has the boot loader forget the slot of the upgrade that is under way; [store.ErrNotFound] if none is. The root
// side is asked when the caller has the answer.
func (u *upgrader) takeBack(by store.Actor, message string) (store.Upgrade, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.unsent == "" {
		u.advanceLocked() // the root side may have answered since
	}
	live, err := u.store.LiveUpgrade(context.Background())
	if err != nil {
		return live, err
	}
	if live.ID == u.unsent || live.Status != store.UpgradeRequested && live.Status != store.UpgradeActivated {
		return live, underWay(live, "It cannot be taken back now. Wait for its end.")
	}
	reason := "It was taken back by " + by.Name + "."
	if message != "" {
		reason = fmt.Sprintf("It was taken back by %s: %s", by.Name, message)
	}
	u.unsent = live.ID
	if err := u.revert(live, reason, by); err != nil {
		u.unsent = ""
		u.nudge()
		return live, err
	}
	if live, err = u.store.Upgrade(context.Background(), live.ID); err != nil { // then nobody is answered
		u.unsent = ""
		u.nudge()
	}
	return live, err
}

// previous is the slot that ran before the current one.
func (u *upgrader) previous(ctx context.Context) (int, error) {
	current, next, err := u.slots.Boot()
	if err != nil {
		return 0, bootUnknown(err)
	}
	if current == nil || next != nil && *next != *current {
		return 0, api.Conflict("There is nothing to go back from.", nil)
	}
	last, err := u.store.LastUpgradeTo(ctx, *current)
	if err == nil && last.From != nil && u.slots.Valid(*last.From) {
		sl, err := u.slots.Get(*last.From)
		if err == nil && (sl.Manifest == nil || sl.Manifest.SHA256 != last.FromSHA256) {
			err = api.Conflict(fmt.Sprintf("Slot %d has another image than the one that ran before. Upgrade to it if that is what you want.", *last.From),
				map[string]any{"slot_id": *last.From})
		}
		return *last.From, err
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return 0, err
	}
	return 0, api.Conflict(fmt.Sprintf("No slot before slot %d is known, or it is empty.", *current), map[string]any{"slot_id": *current})
}
