package ontap

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"slotfetch/api"
)

// This file tests packages, one at a time, and says what speaks against one.

// testing tells whether a job tests a package at present.
func (s *Server) testing(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return id == s.validating || id == s.updating
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
