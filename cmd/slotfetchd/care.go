package main

import (
	"context"
	"strconv"

	"slotfetch/api"
	"slotfetch/slots"
	"slotfetch/store"
)

// self is the actor of what the agent does by its configuration.
var self = store.Actor{Name: "slotfetchd", Address: "local"}

// evictions are the values of slots.evict.
var evictions = map[string]bool{"never": false, "oldest": true}

// checkCare is config.check for the care of slots.
func (c config) checkCare(want func(ok bool, format string, args ...any)) {
	want(c.Slots.ScrubRate == 0 || c.Slots.ScrubRate >= 1<<16, "slots.scrub_rate must be at least 65536 bytes a second, or 0 for no limit, not %d", c.Slots.ScrubRate)
	want(c.Fetch.KeepCount >= 0, "fetch.keep_count must not be negative")
	_, known := evictions[c.Slots.Evict]
	want(known, "slots.evict must be never or oldest, not %q", c.Slots.Evict)
}

// wayBack is the slot from which the last confirmed upgrade came to the current one.
func (d *daemon) wayBack(current int) (slot int, known bool) {
	last, err := d.store.LastUpgradeTo(context.Background(), current)
	if err != nil || last.From == nil {
		return 0, false
	}
	return *last.From, true
}

// onEvicted puts an eviction into the audit; slots has logged it.
func (d *daemon) onEvicted(s slots.Slot) {
	if err := d.store.Audit(self, "slot.evict", strconv.Itoa(s.ID), s.Manifest.Key); err != nil {
		d.log.Error("cannot write audit", "action", "slot.evict", "slot", s.ID, "err", err)
	}
}

// alarm tells which slots need somebody. Slots that cannot be read at all are one too.
func (d *daemon) alarm() api.Health {
	ids, err := d.slots.Alarms()
	if err != nil || len(ids) > 0 {
		return api.Health{Status: "degraded", DegradedSlots: ids}
	}
	return api.Health{Status: "ok"}
}
