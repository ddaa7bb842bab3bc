package slots

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/gorilla/mux"

	"slotfetch/api"
)

const mountPath = "/api/firmware/slots"

// Routes are the slots of the SPS dialect (contract section 6), and their care. audit is told of each slot that was
// emptied or changed; its error is logged, the slot is changed all the same.
func (s *Slots) Routes(audit func(p api.Principal, action, object string) error) []api.Route {
	return append(s.careRoutes(audit), []api.Route{
		{Method: http.MethodGet, Path: mountPath, Access: api.Viewer, Handler: s.handleList},
		{Method: http.MethodGet, Path: mountPath + "/{slot}", Access: api.Viewer, Handler: s.handleGet},
		{Method: http.MethodDelete, Path: mountPath + "/{slot}", Access: api.Operator, Handler: func(r *http.Request) (api.Reply, error) {
			return s.handleDelete(r, audit)
		}},
	}...)
}

func (s *Slots) handleList(*http.Request) (api.Reply, error) {
	list, err := s.List()
	if err != nil {
		return api.Reply{}, err
	}
	reply := api.SlotList{Key: "slots", Meta: api.SlotsMeta{Href: mountPath, Parent: "/api/firmware"}}
	for _, slot := range list {
		doc := document(slot, "")
		if doc.Body.Empty() {
			reply.Body.NumberOfEmptySlots++
		}
		href := doc.Meta.Href
		if slot.Current {
			reply.Meta.CurrentSlot = &href
		}
		if slot.AfterReboot {
			reply.Meta.SlotAfterReboot = &href
		}
		reply.Items = append(reply.Items, doc)
	}
	reply.Body.NumberOfSlots = len(list)
	reply.Meta.NumberOfEmptySlots = reply.Body.NumberOfEmptySlots
	return api.Reply{Body: reply}, nil
}

func (s *Slots) handleGet(r *http.Request) (api.Reply, error) {
	id, err := slotOf(r)
	if err != nil {
		return api.Reply{}, err
	}
	slot, err := s.Get(id)
	if errors.Is(err, ErrUnknown) {
		return api.Reply{}, api.NotFound(mountPath, strconv.Itoa(id))
	}
	if err != nil {
		return api.Reply{}, err
	}
	return api.Reply{Body: document(slot, mountPath)}, nil
}

func (s *Slots) handleDelete(r *http.Request, audit func(p api.Principal, action, object string) error) (api.Reply, error) {
	id, err := slotOf(r)
	if err != nil {
		return api.Reply{}, err
	}
	number := strconv.Itoa(id)
	switch err := s.Delete(id); {
	case errors.Is(err, ErrUnknown):
		return api.Reply{}, api.NotFound(mountPath, number)
	case errors.Is(err, ErrEmpty):
		e := api.NotFound(mountPath, number)
		e.Message = "Slot " + number + " is empty."
		return api.Reply{}, e
	case errors.Is(err, ErrProtected):
		return api.Reply{}, api.Conflict("Slot "+number+" runs now or boots next and cannot be deleted. Activate another slot first.", map[string]any{"slot_id": id, "state": "protected"})
	case errors.Is(err, ErrBusy):
		return api.Reply{}, busy(id, " and cannot be deleted")
	case errors.Is(err, ErrPinned):
		return api.Reply{}, api.Conflict("Slot "+number+" is pinned and cannot be deleted. Unpin it first.", map[string]any{"slot_id": id, "state": "pinned"})
	case errors.Is(err, ErrReserved):
		return api.Reply{}, api.Conflict("Slot "+number+" is reserved by a running fetch. Cancel the fetch first.", map[string]any{"slot_id": id, "state": "reserved"})
	case errors.Is(err, ErrBoot):
		e := api.Unavailable("Slot " + number + " was not emptied: boot.json in the slots directory cannot be read, so it is not known which slots must be kept. Repair or remove it and try again.")
		e.Err = err
		return api.Reply{}, e
	case ReadOnly(err):
		e := api.Unavailable("Slot " + number + " was not emptied: the slots directory cannot be written. Make it writable and try again.")
		e.Err = err
		return api.Reply{}, e
	case err != nil:
		return api.Reply{}, err
	}
	p, _ := api.PrincipalFrom(r.Context())
	if err := audit(p, "slot.delete", number); err != nil {
		s.cfg.Log.Error("cannot write audit", "action", "slot.delete", "slot", id, "err", err)
	}
	return api.Reply{Body: api.MetaOnly{Meta: api.Meta{Href: mountPath + "/" + number, Parent: mountPath}}}, nil
}

// slotOf reads the number in its one canonical form; anything else is not found.
func slotOf(r *http.Request) (int, error) {
	text := mux.Vars(r)["slot"]
	id, err := strconv.Atoi(text)
	if err != nil || strconv.Itoa(id) != text {
		if len(text) > 64 {
			text = text[:64] + "…"
		}
		return 0, api.NotFound(mountPath, text)
	}
	return id, nil
}

// document is slot on the wire; empty and merely reserved slots have an empty body.
func document(slot Slot, parent string) api.Slot {
	key := strconv.Itoa(slot.ID)
	doc := api.Slot{Key: key, Meta: api.Meta{Href: mountPath + "/" + key, Parent: parent}}
	switch m := slot.Manifest; {
	case slot.Damaged:
		doc.Body = api.SlotBody{Version: "unknown", Current: slot.Current, AfterReboot: slot.AfterReboot, State: "damaged"}
	case m != nil:
		doc.Body = api.SlotBody{Version: m.Version, Current: slot.Current, AfterReboot: slot.AfterReboot, SHA256: m.SHA256,
			Size: m.Size, Source: m.Source, FetchedAt: api.FormatTime(m.FetchedAt), VolumeID: m.VolumeID, State: "ok"}
		if !m.ISO {
			doc.Body.State = "not-iso"
		}
		describeCare(&doc.Body, slot)
	}
	return doc
}
