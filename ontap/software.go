package ontap

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"slotfetch/api"
	"slotfetch/store"
)

// This file tells which version runs, and takes the orders to test another one or to activate it (contract section 5.2).

const (
	describeUpdate = "PATCH " + softwarePath

	updateCompleted  = "completed"
	updateInProgress = "in_progress"
	updateFailed     = "failed"

	// estimate is how long an update takes, in seconds; never 0, because clients divide by it (rule 18).
	estimate = 600
)

// busy tells whether an activation is under way, up to its end after the reboot.
func (s *Server) busy(ctx context.Context) (bool, error) {
	s.mu.Lock()
	updating := s.updating != ""
	s.mu.Unlock()
	if updating {
		return true, nil
	}
	_, err := s.cfg.Store.LiveUpgrade(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (s *Server) getSoftware(r *http.Request) (api.Reply, error) {
	if _, err := readQuery(r, nil, nil); err != nil {
		return api.Reply{}, err
	}
	sw, err := s.software(r.Context())
	return api.Reply{Body: sw}, err
}

func (s *Server) software(ctx context.Context) (Software, error) {
	name, err := s.name()
	if err != nil {
		return Software{}, err
	}
	// Each is read before what it moves on to: an update is ours, then a row, and at last the slot that runs.
	s.mu.Lock()
	updating, began := s.updating != "", s.began
	var results *[]Validation
	if s.validating == "" {
		list := slices.Clone(s.results)
		results = &list
	}
	s.mu.Unlock()
	updates, err := s.cfg.Updates.List(ctx)
	if err != nil {
		return Software{}, err
	}
	list, err := s.cfg.Slots.List()
	if err != nil {
		return Software{}, err
	}
	sw := Software{ValidationResults: results, Version: "unknown", State: updateCompleted, UpdateDetails: []struct{}{}, StatusDetails: []struct{}{}, Links: link(softwarePath)}
	for _, slot := range list {
		switch m := slot.Manifest; {
		case m == nil:
		case slot.Current:
			sw.Version = named(m.Version)
		case slot.AfterReboot:
			sw.PendingVersion = named(m.Version)
		}
	}
	sw.Nodes = []SoftwareNode{{Name: name, Version: sw.Version}}
	switch {
	case updating:
		sw.State = updateInProgress
	case len(updates) > 0 && !updates[0].Status.Final():
		sw.State, began = updateInProgress, updates[0].CreatedAt
	case len(updates) > 0 && updates[0].Status == store.UpgradeFailed:
		sw.State = updateFailed
	}
	if sw.State == updateInProgress {
		elapsed, whole := max(int64(s.cfg.Now().Sub(began).Seconds()), 0), int64(estimate)
		sw.ElapsedDuration, sw.EstimatedDuration = &elapsed, &whole
	}
	return sw, nil
}

// updateParameters may be in the query or in the body; those without a comment have no effect.
var updateParameters = []string{
	"action",
	"nodes_to_update", // must name our node
	"validate_only",   // tests, and nothing more
	"skip_warnings", "stabilize_minutes", "force_rolling", "estimate_only", "show_validation_details", "skip_nodes_at_target_version", "pause_after",
}

// patchSoftware makes a job that tests a package, or that tests and activates it.
func (s *Server) patchSoftware(r *http.Request) (api.Reply, error) {
	if !s.cfg.Updates.Possible() {
		e := failed(codeNotSupported, "", "This box cannot tell one boot from another (activate.boot_id_file), so nothing can be activated.")
		e.Status, e.Header = http.StatusMethodNotAllowed, http.Header{"Allow": {"GET, HEAD, OPTIONS"}}
		return api.Reply{}, e
	}
	q, err := readQuery(r, nil, updateParameters)
	if err != nil {
		return api.Reply{}, err
	}
	body, err := api.ReadObject(r)
	if err != nil {
		return api.Reply{}, err
	}
	if err := exact(body, "", append([]string{"version"}, updateParameters...)...); err != nil {
		return api.Reply{}, err
	}
	only, err := validateOnly(q, body)
	if err != nil {
		return api.Reply{}, err
	}
	if p, _ := api.PrincipalFrom(r.Context()); !only && !p.May(api.Admin) {
		return api.Reply{}, failed(codePermission, "", "This needs the role admin; validate_only=true may be asked for by an operator.")
	}
	if err := s.checkUpdate(q, body); err != nil {
		return api.Reply{}, err
	}
	version, err := body.String("version", "a string")
	if err != nil {
		return api.Reply{}, err
	}
	if version == "" {
		return api.Reply{}, failed(codeNoVersion, "version", `Field "version" is missing.`)
	}
	p, err := s.candidate(version)
	if err != nil {
		return api.Reply{}, err
	}
	if only {
		return s.validate(r, p, q.timeout)
	}
	return s.update(r, p, q.timeout)
}

// validateOnly reads the one parameter that must not be overlooked.
func validateOnly(q query, body api.Object) (bool, error) {
	inQuery, err := q.boolean("validate_only", false)
	if err != nil {
		return false, err
	}
	inBody, err := body.Bool("validate_only")
	return inQuery || inBody != nil && *inBody, err
}

// checkUpdate refuses what cannot be done with an update here.
func (s *Server) checkUpdate(q query, body api.Object) error {
	action := q.values.Get("action")
	if action == "" {
		var err error
		if action, err = body.String("action", "pause, resume or cancel"); err != nil {
			return err
		}
	}
	switch action {
	case "":
	case "pause":
		return failed(codeUpdatePause, "action", "The update cannot be paused.")
	case "resume":
		return failed(codeUpdateResume, "action", "The update is not paused.")
	case "cancel":
		return failed(codeUpdateCancel, "action", "The update cannot be cancelled here. POST /api/firmware/rollback takes it back.")
	default:
		return failedf(codeInvalid, "action", "The value %q of action is invalid.", shorten(action))
	}
	const field = "nodes_to_update"
	nodes := strings.FieldsFunc(q.values.Get(field), func(c rune) bool { return c == ',' })
	more, err := body.Strings(field, 64)
	if err != nil {
		return err
	}
	name, err := s.name()
	if err != nil {
		return err
	}
	for _, node := range append(nodes, more...) {
		if strings.TrimSpace(node) != name {
			return failedf(codeInvalid, field, "There is no node %q: the only one is %q.", shorten(node), name)
		}
	}
	return nil
}

// candidate is the package with a version.
func (s *Server) candidate(version string) (listed, error) {
	list, err := s.packages()
	if err != nil {
		return listed{}, err
	}
	if p, ok := find(list, version); ok {
		return p, nil
	}
	current, err := s.running()
	if err != nil {
		return listed{}, err
	}
	if current != nil && names(version, current.Version) {
		return listed{}, failedf(codeRunningVersion, "version", "Version %s runs already.", named(current.Version))
	}
	return listed{}, failed(codeNoPackage, "version", messageNoPackage)
}

// update makes the job that tests and activates. in_progress is to be seen before the answer (rule 17); the box may only
// reboot after it.
func (s *Server) update(r *http.Request, p listed, timeout time.Duration) (api.Reply, error) {
	id, by := uuid.NewString(), actor(r)
	if err := s.enter(r.Context(), id, true); err != nil {
		return api.Reply{}, err
	}
	answered := make(chan struct{})
	row, err := s.run(describeUpdate, id, "Testing the package", by, func(ctx context.Context) finding {
		err := patiently(ctx, func() error { return s.cfg.Updates.Begin(ctx, id, p.SlotID, p.SHA256, by) })
		if err != nil {
			return s.refused(err)
		}
		s.leave(id, finding{results: []Validation{}})
		select {
		case <-answered:
			s.cfg.Updates.Answered(id)
		case <-ctx.Done(): // the next start goes on from what was noted
		}
		return finding{} // its own row tells
	})
	if err != nil {
		s.leave(id, finding{})
		return api.Reply{}, err
	}
	if timeout > 0 {
		if row, err = s.await(r.Context(), id, timeout); err != nil {
			close(answered)
			return api.Reply{}, err
		}
	}
	reply, err := answer(row, timeout, http.StatusOK)
	if err != nil {
		return reply, err
	}
	reply.After = func() { close(answered) }
	return reply, nil
}
