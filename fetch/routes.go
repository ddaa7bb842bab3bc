package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/mux"

	"slotfetch/api"
	"slotfetch/fetch/source"
	"slotfetch/store"
)

const path = "/api/firmware/fetch"

// Routes are the SPS dialect over the manager (contract section 5).
func (m *Manager) Routes(p Policy) []api.Route {
	return append(m.attemptRoutes(), []api.Route{
		{Method: http.MethodPost, Path: path, Access: api.Operator, Handler: func(r *http.Request) (api.Reply, error) { return m.handlePost(r, p) }},
		{Method: http.MethodGet, Path: path, Access: api.Viewer, Handler: m.handleList},
		{Method: http.MethodGet, Path: path + "/{key}", Access: api.Viewer, Handler: m.handleGet,
			Wait: func(r *http.Request) time.Duration { d, _, _ := waitTime(r); return d }},
		{Method: http.MethodPatch, Path: path + "/{key}", Access: api.Operator, Handler: m.handlePatch},
		{Method: http.MethodDelete, Path: path + "/{key}", Access: api.Operator, Handler: m.handleDelete},
		m.uploadRoute(p),
	}...)
}

func actor(r *http.Request) store.Actor {
	p, _ := api.PrincipalFrom(r.Context())
	return store.Actor{Name: p.Name, Address: p.Address}
}

func withLinks(href, parent string) api.Meta {
	return api.Meta{Href: href, Parent: parent, Slots: "/api/firmware/slots", Test: "/api/firmware/test", Upgrade: "/api/firmware/upgrade"}
}

func (m *Manager) handlePost(r *http.Request, p Policy) (api.Reply, error) {
	var err error
	if p.DryRun, err = dryRun(r); err != nil {
		return api.Reply{}, err
	}
	o, err := api.ReadObject(r)
	if err != nil {
		return api.Reply{}, err
	}
	q, err := ParseRequest(o, p)
	if err != nil {
		return api.Reply{}, err
	}
	if q.Idempotency, err = idempotencyKey(r.Header); err != nil {
		return api.Reply{}, err
	}
	if p.DryRun {
		return m.dry(q, actor(r))
	}
	f, err := m.Enqueue(q, actor(r))
	if errors.Is(err, ErrOtherRequest) {
		return api.Reply{}, api.Conflict("The Idempotency-Key was used for another request. Use a new one for each fetch.", map[string]any{"reason": "idempotency-key"})
	}
	if store.Full(err) {
		return api.Reply{}, &api.Error{Status: http.StatusInsufficientStorage, Type: "InsufficientStorage",
			Message: "The fetch could not be stored: the disk is full. Make room and try again.", Err: err}
	}
	if err != nil {
		e := api.Unavailable("The fetch could not be stored. Look whether it is listed before trying again.")
		e.Err = err
		return api.Reply{}, e
	}
	href := path + "/" + f.Key
	return api.Reply{Status: http.StatusAccepted, Header: http.Header{"Location": {href}, "Retry-After": {"2"}},
		Body: api.Accepted{Key: f.Key, Meta: withLinks(href, "/api/firmware")}}, nil
}

// handleList streams: with ten thousand fetches the reply is never in memory as a whole.
func (m *Manager) handleList(r *http.Request) (api.Reply, error) {
	places, err := m.cfg.Store.Positions(r.Context())
	if err != nil {
		return api.Reply{}, err
	}
	return api.Reply{Stream: func(w io.Writer) error {
		if _, err := io.WriteString(w, `{"items":[`); err != nil {
			return err
		}
		comma := ""
		err := m.Each(r.Context(), func(f store.Fetch) error {
			if _, err := io.WriteString(w, comma); err != nil {
				return err
			}
			comma = ","
			return api.EncodeTo(w, m.document(f, "", places))
		})
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, `],"meta":`); err != nil {
			return err
		}
		if err := api.EncodeTo(w, withLinks(path, "/api/firmware")); err != nil {
			return err
		}
		_, err = io.WriteString(w, "}\n")
		return err
	}}, nil
}

func (m *Manager) handlePatch(r *http.Request) (api.Reply, error) {
	key, err := keyOf(r)
	if err != nil {
		return api.Reply{}, err
	}
	o, err := api.ReadObject(r)
	if err != nil {
		return api.Reply{}, err
	}
	c, err := parsePatch(o)
	if err != nil {
		return api.Reply{}, err
	}
	// Like a DELETE, a pause is waited for.
	f, err := m.Change(context.WithoutCancel(r.Context()), key, c, actor(r))
	switch {
	case errors.Is(err, store.ErrNotFound):
		return api.Reply{}, api.NotFound(path, key)
	case errors.Is(err, store.ErrNoPlace):
		return api.Reply{}, api.Conflict("The other fetch is not in the queue.", map[string]any{"reason": "position"})
	case errors.Is(err, store.ErrConflict):
		return api.Reply{}, changeConflict(f, c)
	case err != nil:
		return api.Reply{}, err
	}
	reply, err := m.reply(r.Context(), f)
	if err == nil && f.Status == store.InProgress && f.Paused {
		reply.Status = http.StatusAccepted
		reply.Header.Set("Location", path+"/"+key)
		reply.Header.Set("Retry-After", "2")
	}
	return reply, err
}

// changeConflict says why a fetch can no longer be changed.
func changeConflict(f store.Fetch, c Change) error {
	details := map[string]any{"status": string(f.Status)}
	switch {
	case f.Status.Final():
		return api.Conflict("The fetch has ended: nothing about it can be changed.", details)
	case f.CancelRequested:
		return api.Conflict("The fetch is being cancelled.", details)
	case f.Phase == store.Installing:
		details["phase"] = string(f.Phase)
		return api.Conflict("The fetch is installing and can no longer be changed.", details)
	case c.Place != nil:
		return api.Conflict("Only a queued fetch has a position. Pause this one first, or leave position out.", details)
	}
	return api.Conflict("The fetch is in a state in which it cannot be changed.", details)
}

// reply is the answer that shows f.
func (m *Manager) reply(ctx context.Context, f store.Fetch) (api.Reply, error) {
	places := map[int64]int{}
	if f.Status == store.Queued {
		n, err := m.cfg.Store.Position(ctx, f.Key)
		if err != nil {
			return api.Reply{}, err
		}
		if n > 0 {
			places[f.Seq] = n
		}
	}
	d := m.document(f, path, places)
	return api.Reply{Body: d, Header: http.Header{"Etag": {etag(d)}}}, nil
}

func (m *Manager) handleDelete(r *http.Request) (api.Reply, error) {
	key, err := keyOf(r)
	if err != nil {
		return api.Reply{}, err
	}
	// A caller that gives up waiting stops neither the cancel nor the wait, which ends by itself.
	out, f, err := m.Delete(context.WithoutCancel(r.Context()), key, actor(r))
	switch {
	case errors.Is(err, store.ErrNotFound):
		return api.Reply{}, api.NotFound(path, key)
	case err != nil:
		return api.Reply{}, err
	case out == store.NotCancellable:
		return api.Reply{}, api.Conflict("The fetch is installing and can no longer be cancelled.",
			map[string]any{"status": string(f.Status), "phase": string(f.Phase)})
	case out == store.Pruned:
		return api.Reply{Body: api.MetaOnly{Meta: api.Meta{Href: path + "/" + key, Parent: path}}}, nil
	}
	reply, err := m.reply(r.Context(), f)
	if err == nil && !f.Status.Final() {
		reply.Status = http.StatusAccepted
		reply.Header.Set("Location", path+"/"+key)
		reply.Header.Set("Retry-After", "2")
	}
	return reply, err
}

// keyOf accepts only the canonical form: uuid.Parse takes four others. Anything else is simply not found.
func keyOf(r *http.Request) (string, error) {
	key := mux.Vars(r)["key"]
	u, err := uuid.Parse(key)
	if err != nil || len(key) != 36 || u.String() != strings.ToLower(key) {
		return "", api.NotFound(path, truncate(key))
	}
	return u.String(), nil
}

func truncate(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

// document is f on the wire. parent is empty for an item of the list; places are those of the queue, by Seq.
func (m *Manager) document(f store.Fetch, parent string, places map[int64]int) api.Fetch {
	b := api.FetchBody{
		Status: string(f.Status), Info: info(f), BytesDownloaded: f.BytesDownloaded, BytesTotal: f.BytesTotal,
		SlotID: f.SlotID, StartTime: api.FormatTime(f.StartTime), URL: f.URL, EndTime: api.FormatTime(f.EndTime),
		BytesPerSecond: f.BytesPerSecond, Attempts: f.Attempts, TLSVerified: f.TLSVerified,
		ResumedFrom: f.ResumedFrom, NextAttemptTime: api.FormatTime(f.NextAttempt), Deduplicated: f.Deduplicated,
		Priority: f.Priority, Paused: f.Paused, NotBefore: api.FormatTime(f.NotBefore),
	}
	if place, ok := places[f.Seq]; ok && f.Status == store.Queued {
		b.QueuePosition = &place
	}
	if f.Status == store.Queued && f.EligibleAt.After(m.cfg.Now()) {
		b.EligibleTime = api.FormatTime(f.EligibleAt)
	}
	for text, to := range map[string]**string{f.Window: &b.Window, f.ChecksumURL: &b.ChecksumURL} {
		if text != "" {
			*to = &text
		}
	}
	if f.RateLimit > 0 {
		b.RateLimit = &f.RateLimit
	}
	if f.SHA256 != "" {
		b.SHA256 = &f.SHA256
	}
	if f.RetryReason != "" {
		b.RetryReason = &f.RetryReason
	}
	if f.Status == store.Failed {
		b.Error = &f.Error
	}
	if f.Status == store.Failed || f.ErrorCode != "" { // or it waits
		fault := source.FaultOf(f.ErrorCode)
		b.ErrorDetails = &api.Fault{Code: f.ErrorCode, Class: fault.Class.String(), Remedy: fault.Remedy, Doc: fault.Doc()}
	}
	if f.Status == store.InProgress {
		phase := string(f.Phase)
		b.Phase = &phase
	}
	if r := f.BytesPerSecond; r != nil && *r > 0 && f.Phase == store.Downloading && f.BytesTotal > 0 {
		eta := (max(f.BytesTotal-f.BytesDownloaded, 0) + *r - 1) / *r // a source may send more than it announced, for a moment
		b.ETASeconds = &eta
	}
	d := api.Fetch{Key: f.Key, Body: b, Meta: api.Meta{Href: path + "/" + f.Key, Parent: parent}}
	if f.Status == store.Finished && f.SlotID != nil {
		d.Meta.Slot = fmt.Sprintf("/api/firmware/slots/%d", *f.SlotID)
	}
	return d
}

func info(f store.Fetch) *string {
	s := map[store.Phase]string{store.Downloading: "Downloading", store.Waiting: "Waiting to retry",
		store.Verifying: "Verifying checksum", store.Installing: "Installing"}[f.Phase]
	switch f.Status {
	case store.Failed:
		s = "Firmware fetching failed"
	case store.Cancelled:
		s = "Firmware fetching cancelled"
	}
	if s == "" {
		return nil
	}
	return &s
}
