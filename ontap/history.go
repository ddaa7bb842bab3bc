package ontap

import (
	"net/http"
	"slices"

	"slotfetch/api"
	"slotfetch/store"
)

// This file tells which activations are over (contract section 5.4).

var historyFields = fields[History]{
	"node.name":    func(h History) value { return text(h.Node.Name) },
	"node.uuid":    func(h History) value { return text(h.Node.UUID) },
	"start_time":   func(h History) value { return optional(h.StartTime) },
	"end_time":     func(h History) value { return optional(h.EndTime) },
	"from_version": func(h History) value { return text(h.FromVersion) },
	"to_version":   func(h History) value { return text(h.ToVersion) },
	"state":        func(h History) value { return text(h.State) },
}

// getHistory lists the activations that are over, oldest first.
func (s *Server) getHistory(r *http.Request) (api.Reply, error) {
	q, err := readQuery(r, historyFields.names(), nil)
	if err != nil {
		return api.Reply{}, err
	}
	name, err := s.name()
	if err != nil {
		return api.Reply{}, err
	}
	updates, err := s.cfg.Updates.List(r.Context())
	if err != nil {
		return api.Reply{}, err
	}
	var out []History
	for _, u := range slices.Backward(updates) {
		if !u.Status.Final() {
			continue
		}
		h := History{Node: NodeRef{name, s.cfg.UUID}, StartTime: api.FormatTime(u.CreatedAt), EndTime: api.FormatTime(u.EndTime),
			FromVersion: named(u.FromVersion), ToVersion: named(u.ToVersion), State: "successful"}
		if u.Status == store.UpgradeFailed {
			h.State = "canceled"
		}
		out = append(out, h)
	}
	return collection(q, out, historyFields), nil
}
