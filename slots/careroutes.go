package slots

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"slotfetch/api"
)

// verifyWait is how long the answer to a verify may take, unless the configuration says otherwise. The SPS clients give
// up after 100 s (contract section 9, rule 19), ours after 75.
const verifyWait = 60 * time.Second

// audited is told of what somebody did to a slot.
type audited = func(p api.Principal, action, object string) error

// careRoutes are what SPS does not have.
func (s *Slots) careRoutes(audit audited) []api.Route {
	return []api.Route{
		// Before the slots by number, of which it is none.
		{Method: http.MethodGet, Path: mountPath + "/plan", Access: api.Viewer, Handler: s.handlePlan},
		{Method: http.MethodPatch, Path: mountPath + "/{slot}", Access: api.Operator, Handler: func(r *http.Request) (api.Reply, error) {
			return s.handlePatch(r, audit)
		}},
	}
}

// Routes are those of the scrubber. audit is told of each verify.
func (c *Scrubber) Routes(audit func(p api.Principal, action, object string) error) []api.Route {
	return []api.Route{{Method: http.MethodPost, Path: mountPath + "/{slot}/verify", Access: api.Operator, Wait: api.Always(c.cfg.Wait),
		Handler: func(r *http.Request) (api.Reply, error) { return c.handleVerify(r, audit) }}}
}

func (s *Slots) note(r *http.Request, audit audited, action string, id int) {
	p, _ := api.PrincipalFrom(r.Context())
	if err := audit(p, action, strconv.Itoa(id)); err != nil {
		s.cfg.Log.Error("cannot write audit", "action", action, "slot", id, "err", err)
	}
}

// careError gives the words for what ChangeCare and Scrub return.
func careError(id int, err error) error {
	number := strconv.Itoa(id)
	switch {
	case errors.Is(err, ErrUnknown):
		return api.NotFound(mountPath, number)
	case errors.Is(err, ErrEmpty):
		e := api.NotFound(mountPath, number)
		e.Message = "Slot " + number + " is empty."
		return e
	case errors.Is(err, ErrDamaged):
		return api.Conflict("Slot "+number+" is damaged: it is not known what should be in it. Delete it and fetch the image again.", map[string]any{"slot_id": id, "state": "damaged"})
	case ReadOnly(err):
		e := api.Unavailable("Slot " + number + " was not changed: the slots directory cannot be written. Make it writable and try again.")
		e.Err = err
		return e
	}
	return err
}

func (s *Slots) handlePatch(r *http.Request, audit audited) (api.Reply, error) {
	id, err := slotOf(r)
	if err != nil {
		return api.Reply{}, err
	}
	o, err := api.ReadObject(r)
	if err != nil {
		return api.Reply{}, err
	}
	pinned, err := o.Bool("pinned")
	if err != nil {
		return api.Reply{}, err
	}
	expected := fmt.Sprintf("at most %d printable characters without blanks at the ends, or empty for none", LabelMax)
	label, err := o.String("label", expected)
	if err != nil {
		return api.Reply{}, err
	}
	if !ValidLabel(label) {
		return api.Reply{}, api.Semantic("label", expected)
	}
	if pinned == nil && !o.Has("label") {
		e := api.Missing("pinned", "")
		e.Message = "There is nothing to change: give pinned or label."
		return api.Reply{}, e
	}
	slot, err := s.ChangeCare(id, func(c *Care) {
		if pinned != nil {
			c.Pinned = *pinned
		}
		if o.Has("label") {
			c.Label = label
		}
	})
	if err != nil {
		return api.Reply{}, careError(id, err)
	}
	if pinned != nil {
		s.note(r, audit, map[bool]string{true: "slot.pin", false: "slot.unpin"}[*pinned], id)
	}
	if o.Has("label") {
		s.note(r, audit, "slot.label", id)
	}
	return api.Reply{Body: document(slot, mountPath)}, nil
}

func (c *Scrubber) handleVerify(r *http.Request, audit audited) (api.Reply, error) {
	id, err := slotOf(r)
	if err != nil {
		return api.Reply{}, err
	}
	ctx, stop := context.WithTimeout(r.Context(), c.cfg.Wait)
	defer stop()
	slot, err := c.Verify(ctx, id)
	switch {
	case err == nil:
		c.s.note(r, audit, "slot.verify", id)
		return api.Reply{Body: document(slot, mountPath)}, nil
	case errors.Is(err, errScrubber):
		return api.Reply{}, api.Unavailable("The agent is stopping.")
	case ctx.Err() == nil:
		return api.Reply{}, careError(id, err)
	}
	// It goes on by itself; scrubbed_at tells when it is through.
	if slot, err = c.s.Get(id); err != nil {
		return api.Reply{}, careError(id, err)
	}
	return api.Reply{Status: http.StatusAccepted, Body: document(slot, mountPath),
		Header: http.Header{"Location": {mountPath + "/" + strconv.Itoa(id)}, "Retry-After": {"10"}}}, nil
}

func (s *Slots) handlePlan(r *http.Request) (api.Reply, error) {
	size := int64(0)
	if values, ok := r.URL.Query()["size"]; ok {
		var err error
		if size, err = strconv.ParseInt(values[0], 10, 64); err != nil || size < 0 || len(values) > 1 {
			return api.Reply{}, api.Semantic("size", "a number of bytes, once")
		}
	}
	body, err := s.plan(size)
	if err != nil {
		return api.Reply{}, err
	}
	return api.Reply{Body: api.SlotPlan{Body: body, Meta: api.Meta{Href: mountPath + "/plan", Parent: mountPath}}}, nil
}

func (s *Slots) plan(size int64) (api.SlotPlanBody, error) {
	b := api.SlotPlanBody{Size: size, Reserve: s.cfg.Reserve, ReservedSlots: []int{}}
	list, err := s.List()
	if err != nil {
		return b, err
	}
	for _, sl := range list {
		switch {
		case sl.Reserved:
			b.ReservedSlots = append(b.ReservedSlots, sl.ID)
		case sl.empty():
			b.NumberOfEmptySlots++
		}
	}
	if b.Free, err = s.Free(); err != nil {
		return b, err
	}
	p, err := s.Plan(nil)
	switch {
	case errors.Is(err, ErrNoEmpty):
		b.Message = "No slot is empty, and none would be evicted."
		return b, nil
	case errors.Is(err, ErrBoot):
		b.Message = "It is not known which slots must be kept: boot.json in the slots directory cannot be read."
		return b, nil
	case ReadOnly(err):
		b.Message = "The slots directory cannot be written."
		return b, nil
	case err != nil:
		return b, err
	}
	b.SlotID, b.Gain = &p.Slot, p.Gain()
	b.Message = fmt.Sprintf("Slot %d is empty.", p.Slot)
	if p.Evicts != nil {
		b.EvictsSlotID = &p.Slot
		b.Message = p.Words()
	}
	if b.Fits = size <= b.Free+b.Gain; !b.Fits {
		b.Message = fmt.Sprintf("Not enough space: needs %d bytes, %d are free beside the reserve.", size, b.Free+b.Gain)
	}
	return b, nil
}

// Words says what would be evicted.
func (p Plan) Words() string {
	return fmt.Sprintf("Slot %d would be emptied first: its image, version %s, is the oldest that may go.", p.Slot, p.Evicts.Manifest.Version)
}

// describeCare adds to the document of an image what was noted about it.
func describeCare(b *api.SlotBody, slot Slot) {
	c := slot.Care
	b.Pinned, b.Label, b.ScrubbedAt = c.Pinned, c.Label, api.FormatTime(c.ScrubbedAt)
	if m := slot.Manifest; m != nil {
		b.SignedBy, b.Product, b.MinVersion, b.UpgradeFrom = m.SignedBy, m.Product, m.MinVersion, m.UpgradeFrom
	}
	if c.Degraded {
		b.State = "degraded"
	}
}
