package ontap

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"slotfetch/api"
	"slotfetch/store"
)

// This file tells which version runs, tests another one, and activates it (contract section 5.2).

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

// testing is what a job tests at present, in words; empty if nothing.
func (s *Server) testing(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch id {
	case s.validating:
		return "validation"
	case s.updating:
		return "update"
	}
	return ""
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

// enter notes that a job begins to test; only one may.
func (s *Server) enter(ctx context.Context, id string, update bool) error {
	busy, err := s.busy(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case busy, s.updating != "":
		return failed(codeUpdating, "", "A software update is in progress.")
	case s.validating != "":
		return failed(codeValidating, "", "A validation is in progress.")
	case update:
		s.updating, s.began = id, s.cfg.Now()
	default:
		s.validating = id
	}
	return nil
}

// leave notes that the test of a job is over, what it found, and what has become of the job if that is known: who looks sees all
// of it or nothing.
func (s *Server) leave(id string, f finding) (o outcome, ended bool) {
	s.mu.Lock()
	defer s.notify() // behind the unlock
	defer s.mu.Unlock()
	switch id {
	case s.validating:
		s.validating = ""
	case s.updating:
		s.updating = ""
	}
	if f.results != nil {
		s.results = f.results
	}
	if f.message == "" {
		return o, false
	}
	o = s.became(f.code, f.message)
	s.outcomes[id] = o
	return o, true
}

// validate makes the job that only tests.
func (s *Server) validate(r *http.Request, p listed, timeout time.Duration) (api.Reply, error) {
	id := uuid.NewString()
	if err := s.enter(r.Context(), id, false); err != nil {
		return api.Reply{}, err
	}
	row, err := s.run(describeUpdate, id, "Validating the package", actor(r), func(ctx context.Context) finding { return s.examine(ctx, p) })
	if err != nil {
		s.leave(id, finding{})
		return api.Reply{}, err
	}
	if timeout > 0 {
		if row, err = s.await(r.Context(), id, timeout); err != nil {
			return api.Reply{}, err
		}
	}
	return answer(row, timeout, http.StatusOK)
}

// examine tests the package for as long as it takes.
func (s *Server) examine(ctx context.Context, p listed) finding {
	err := patiently(ctx, func() error {
		_, release, err := s.cfg.Tester.Examine(ctx, p.SlotID, false)
		if err != nil {
			return err
		}
		defer release()
		sl, err := s.cfg.Slots.Get(p.SlotID)
		if err == nil && (sl.Manifest == nil || sl.Manifest.SHA256 != p.SHA256) { // since it was looked for
			return failed(codeNoPackage, "version", messageNoPackage)
		}
		return err
	})
	if err != nil {
		return s.refused(err)
	}
	return finding{results: []Validation{}, message: "success"}
}

// patiently repeats what gives up waiting for a test that goes on.
func patiently(ctx context.Context, test func() error) error {
	for {
		err := test()
		var e *api.Error
		if !errors.As(err, &e) || e.Details["state"] != "testing" || ctx.Err() != nil {
			return err
		}
	}
}

// refused says for a job why a test, or what came behind it, said no. Results are nil if the test did not come to one.
func (s *Server) refused(err error) finding {
	var e *api.Error
	var results []Validation
	code := codeInternal
	switch {
	case !errors.As(err, &e):
	case e.Type == "FirmwareTestFailed":
		code = codeValidation
		results = validations(fmt.Sprint(e.Details["test_summary"]))
	case e.Status == http.StatusConflict && e.Details["upgrade"] != nil:
		code = codeUpdating
	case e.Status == http.StatusConflict:
		code = codeValidating
	case e.Status == http.StatusNotFound:
		code = codeNoPackage
	case e.Status == http.StatusServiceUnavailable:
		code = codeUnhealthy
	}
	return finding{results, code, s.words(err)}
}

// words are err for a job.
func (s *Server) words(err error) string {
	var e *api.Error
	switch {
	case errors.As(err, &e):
		return e.Message
	case s.ctx.Err() != nil:
		return messageStopping
	}
	s.cfg.Log.Error("a job failed", "err", err)
	return messageInternal
}

// validations are the lines of a summary that speak against the package.
func validations(summary string) []Validation {
	out := []Validation{}
	for line := range strings.Lines(summary) {
		check, why, found := strings.Cut(strings.TrimSpace(line), ": FAILED")
		if found {
			why = strings.TrimSuffix(strings.TrimPrefix(why, " ("), ")")
			out = append(out, Validation{UpdateCheck: check, Status: "error", Issue: Text{why}, Action: Text{"Mend it, or use another package."}})
		}
	}
	return out
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
