package ontap

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/gorilla/mux"

	"slotfetch/api"
	"slotfetch/store"
)

// This file shows fetches, and what else was asked for, as jobs (contract section 4).

const (
	stateQueued  = "queued"
	stateRunning = "running"
	stateSuccess = "success"
	stateFailure = "failure"

	describeDownload = "POST " + downloadPath
)

// download is a fetch as a job. A job that failed has a message and a code, and both twice (rules 4 and 5).
func (s *Server) download(f store.Fetch, node string) Job {
	j := Job{UUID: f.Key, Description: describeDownload, StartTime: api.FormatTime(f.StartTime), EndTime: api.FormatTime(f.EndTime), Node: Named{node},
		Links: link(jobsPath + "/" + f.Key), Progress: progress(f)}
	switch f.Status {
	case store.Queued:
		j.State, j.Message = stateQueued, "Queued"
		j.StartTime = nil // it may have run before
	case store.Finished:
		j.State, j.Message = stateSuccess, "success"
		if f.Deduplicated {
			j.Message = fmt.Sprintf("success: already in slot %d", *f.SlotID)
		}
	case store.Failed:
		j.fail(faultCode(f.ErrorCode), f.Error)
	case store.Cancelled:
		j.fail(codeDownload, cancelledBy(f))
	default:
		j.State, j.Message = stateRunning, doing(f)
	}
	return j
}

func (j *Job) fail(code int, message string) {
	if message == "" {
		message = "The job failed. The agent's journal has the details."
	}
	j.State, j.Code, j.Message = stateFailure, code, message
	j.Error = &Error{Message: message, Code: strconv.Itoa(code)}
}

func cancelledBy(f store.Fetch) string {
	if f.CancelledBy == "" { // by an agent that did not note it
		return "Package download cancelled"
	}
	return "Package download cancelled by " + f.CancelledBy
}

// doing says in words what a fetch in progress does.
func doing(f store.Fetch) string {
	switch f.Phase {
	case store.Waiting:
		return "Waiting to retry: " + f.RetryReason
	case store.Verifying:
		return "Verifying checksum"
	case store.Installing:
		return "Installing"
	}
	const begin = "Package download in progress"
	if f.BytesTotal <= 0 {
		return fmt.Sprintf("%s: %s so far", begin, inGiB(f.BytesDownloaded))
	}
	return fmt.Sprintf("%s: %d %% (%s of %s)", begin, percent(f), inGiB(f.BytesDownloaded), inGiB(f.BytesTotal))
}

func percent(f store.Fetch) int64 { return min(f.BytesDownloaded, f.BytesTotal) * 100 / f.BytesTotal }

// inGiB is a number of bytes for people.
func inGiB(n int64) string {
	for _, unit := range []struct {
		size int64
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= unit.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(unit.size), unit.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

func progress(f store.Fetch) *Progress {
	p := &Progress{BytesDownloaded: f.BytesDownloaded, BytesTotal: f.BytesTotal}
	if f.BytesTotal > 0 {
		n := percent(f)
		p.Percent = &n
	}
	return p
}

// other is a job that is no download, as it stands: an activation has its own row, which says how far it has come.
func (s *Server) other(ctx context.Context, row store.Job, node string) (Job, error) {
	row, err := s.current(ctx, row)
	if err != nil {
		return Job{}, err
	}
	j := Job{UUID: row.ID, Description: row.Description, State: string(row.State), Message: row.Message, StartTime: api.FormatTime(row.StartTime),
		EndTime: api.FormatTime(row.EndTime), Node: Named{node}, Links: link(jobsPath + "/" + row.ID)}
	if row.State == store.JobFailure {
		j.fail(row.Code, row.Message)
	}
	return j, nil
}

// find is the job with a uuid, whatever it is.
func (s *Server) find(ctx context.Context, key string) (Job, error) {
	node, err := s.name()
	if err != nil {
		return Job{}, err
	}
	f, err := s.cfg.Fetch.Get(ctx, key)
	if err == nil {
		return s.download(f, node), nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return Job{}, err
	}
	row, err := s.job(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return Job{}, noEntry("uuid")
	}
	if err != nil {
		return Job{}, err
	}
	return s.other(ctx, row, node)
}

// keyOf reads the uuid of the path in its one canonical form; anything else does not exist.
func keyOf(r *http.Request) (string, error) {
	key := mux.Vars(r)["uuid"]
	u, err := uuid.Parse(key)
	if err != nil || len(key) != 36 || u.String() != strings.ToLower(key) {
		return "", noEntry("uuid")
	}
	return u.String(), nil
}

func (s *Server) getJob(r *http.Request) (api.Reply, error) {
	if _, err := readQuery(r, nil, nil); err != nil {
		return api.Reply{}, err
	}
	key, err := keyOf(r)
	if err != nil {
		return api.Reply{}, err
	}
	j, err := s.find(r.Context(), key)
	return api.Reply{Body: j}, err
}

var jobFields = fields[Job]{
	"uuid":        func(j Job) value { return text(j.UUID) },
	"description": func(j Job) value { return text(j.Description) },
	"state":       func(j Job) value { return text(j.State) },
	"message":     func(j Job) value { return text(j.Message) },
	"code":        func(j Job) value { return number(int64(j.Code)) },
	"start_time":  func(j Job) value { return optional(j.StartTime) },
	"end_time":    func(j Job) value { return optional(j.EndTime) },
	"node.name":   func(j Job) value { return text(j.Node.Name) },
	"error.code":  func(j Job) value { return ofError(j, func(e *Error) string { return e.Code }) },
	"error.message": func(j Job) value {
		return ofError(j, func(e *Error) string { return e.Message })
	},
}

func ofError(j Job, get func(*Error) string) value {
	if j.Error == nil {
		return value{isNull: true}
	}
	return text(get(j.Error))
}

// patchJob cancels downloads; nothing else can be done to a job here.
func (s *Server) patchJob(r *http.Request) (api.Reply, error) {
	q, err := readQuery(r, nil, []string{"action"})
	if err != nil {
		return api.Reply{}, err
	}
	key, err := keyOf(r)
	if err != nil {
		return api.Reply{}, err
	}
	body, err := api.ReadObject(r)
	if err != nil {
		return api.Reply{}, err
	}
	if err := exact(body, ""); err != nil {
		return api.Reply{}, err
	}
	j, err := s.find(r.Context(), key)
	if err != nil {
		return api.Reply{}, err
	}
	switch action := q.values.Get("action"); action {
	case "cancel":
		return s.cancel(r, j)
	case "pause":
		return api.Reply{}, failed(codeCannotPause, "action", "This job cannot be paused.")
	case "resume":
		return api.Reply{}, failed(codeCannotResume, "action", "This job is not paused.")
	default:
		return api.Reply{}, failedf(codeInvalid, "action", "The value %q of action is invalid: it must be cancel.", shorten(action))
	}
}

// cancel does what DELETE does in the SPS dialect: it waits until the partial is gone. What has ended is not pruned.
func (s *Server) cancel(r *http.Request, j Job) (api.Reply, error) {
	ended := failed(codeEnded, "", "The job has ended.")
	installing := failed(codeCannotCancel, "", "The job cannot be cancelled any more.")
	switch {
	case j.State == stateSuccess || j.State == stateFailure:
		return api.Reply{}, ended
	case j.Description != describeDownload:
		return api.Reply{}, failed(codeCannotCancel, "", "Only downloads can be cancelled.")
	}
	out, f, err := s.cfg.Fetch.Cancel(context.WithoutCancel(r.Context()), j.UUID, actor(r))
	switch {
	case errors.Is(err, store.ErrNotFound):
		return api.Reply{}, noEntry("uuid")
	case errors.Is(err, store.ErrConflict):
		return api.Reply{}, ended
	case err != nil:
		return api.Reply{}, err
	case out == store.NotCancellable:
		return api.Reply{}, installing
	}
	status := http.StatusOK
	if !f.Status.Final() {
		status = http.StatusAccepted
	}
	return api.Reply{Status: status, Body: struct{}{}}, nil
}
