package ontap

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

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
	if row.State == store.JobRunning && s.testing(row.ID) == "" {
		var err error
		if row, err = s.activated(ctx, row); err != nil {
			return Job{}, err
		}
	}
	j := Job{UUID: row.ID, Description: row.Description, State: string(row.State), Message: row.Message, StartTime: api.FormatTime(row.StartTime),
		EndTime: api.FormatTime(row.EndTime), Node: Named{node}, Links: link(jobsPath + "/" + row.ID)}
	if row.State == store.JobFailure {
		j.fail(row.Code, row.Message)
	}
	return j, nil
}

// activated ends the job of an activation whose reboot is due, or that came to nothing.
func (s *Server) activated(ctx context.Context, row store.Job) (store.Job, error) {
	u, err := s.cfg.Store.Upgrade(ctx, row.ID)
	if errors.Is(err, store.ErrNotFound) {
		return s.cfg.Store.Job(ctx, row.ID) // it ended meanwhile
	}
	if err != nil {
		return row, err
	}
	state, code, message := store.JobSuccess, 0, "success"
	switch u.Status {
	case store.UpgradeRequested:
		row.Message = "Telling the boot loader"
		return row, nil
	case store.UpgradeReverting, store.UpgradeFailed:
		state, code, message = store.JobFailure, codeInternal, sentence(u.Reason)
	}
	ended, err := s.cfg.Store.EndJob(row.ID, state, code, message)
	if errors.Is(err, store.ErrConflict) { // somebody else has looked
		return s.cfg.Store.Job(ctx, row.ID)
	}
	if err != nil { // who only looks has nothing to do with a disk that is full
		s.cfg.Log.Warn("cannot note the end of a job", "job", row.ID, "err", err)
		row.State, row.Code, row.Message, row.EndTime = state, code, message, u.EndTime
		return row, nil
	}
	return ended, nil
}

func sentence(s string) string {
	if s == "" {
		return "The activation failed. The agent's journal has the details."
	}
	return s
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
	row, err := s.cfg.Store.Job(ctx, key)
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

// getJobs lists what was asked for, oldest first: downloads by when they were accepted, the others by when they began.
func (s *Server) getJobs(r *http.Request) (api.Reply, error) {
	q, err := readQuery(r, jobFields.names(), nil)
	if err != nil {
		return api.Reply{}, err
	}
	node, err := s.name()
	if err != nil {
		return api.Reply{}, err
	}
	type dated struct {
		at time.Time
		Job
	}
	var all []dated
	rows, err := s.cfg.Store.Jobs(r.Context())
	if err != nil {
		return api.Reply{}, err
	}
	for _, row := range rows {
		j, err := s.other(r.Context(), row, node)
		if err != nil {
			return api.Reply{}, err
		}
		all = append(all, dated{row.StartTime, j})
	}
	if err := s.cfg.Fetch.Each(r.Context(), func(f store.Fetch) error {
		all = append(all, dated{f.CreatedAt, s.download(f, node)})
		return nil
	}); err != nil {
		return api.Reply{}, err
	}
	slices.SortStableFunc(all, func(a, b dated) int { return a.at.Compare(b.at) })
	jobs := make([]Job, len(all))
	for i, d := range all {
		jobs[i] = d.Job
	}
	return collection(q, jobs, jobFields), nil
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

// run makes a job of what work does, which is given the uuid. It goes on without the caller.
func (s *Server) run(description, id, begin string, by store.Actor, work func(ctx context.Context) (code int, message string)) (store.Job, error) {
	row, err := s.add(store.Job{ID: id, Description: description, State: store.JobRunning, Message: begin}, by)
	if err != nil {
		return row, err
	}
	s.work.Go(func() {
		code, message := work(s.ctx)
		if code != 0 || message != "" {
			s.end(id, code, message)
		}
		s.notify()
	})
	return row, nil
}

// add stores a job, and forgets those that are old by now.
func (s *Server) add(j store.Job, by store.Actor) (store.Job, error) {
	if err := s.cfg.Store.ExpireJobs(s.cfg.Now().Add(-jobLife)); err != nil {
		return j, err
	}
	return s.cfg.Store.AddJob(j, by)
}

// end notes what became of a job.
func (s *Server) end(id string, code int, message string) {
	state := store.JobSuccess
	if code != 0 {
		state = store.JobFailure
	}
	if _, err := s.cfg.Store.EndJob(id, state, code, message); err != nil {
		s.cfg.Log.Error("cannot note the end of a job", "job", id, "err", err) // the next start settles it
	}
}

// done adds a job that has ended already.
func (s *Server) done(description string, code int, message string, by store.Actor) (store.Job, error) {
	state := store.JobSuccess
	if code != 0 {
		state = store.JobFailure
	}
	return s.add(store.Job{ID: uuid.NewString(), Description: description, State: state, Code: code, Message: message}, by)
}

// await holds an answer until a job that is no download has ended, or for d.
func (s *Server) await(ctx context.Context, id string, d time.Duration) (store.Job, error) {
	ctx, stop := context.WithTimeout(ctx, d)
	defer stop()
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		row, err := s.cfg.Store.Job(context.WithoutCancel(ctx), id)
		if err != nil || row.State != store.JobRunning {
			return row, err
		}
		select {
		case <-changed:
		case <-s.ctx.Done():
			return row, nil
		case <-ctx.Done():
			return row, nil
		}
	}
}

// answer is what a request that made a job is told: well is the status of one that has ended well.
func answer(row store.Job, timeout time.Duration, well int) (api.Reply, error) {
	switch {
	case timeout == 0 || row.State == store.JobRunning:
		return jobReply(http.StatusAccepted, row.ID, ""), nil
	case row.State == store.JobFailure:
		return api.Reply{}, failed(row.Code, "", row.Message)
	}
	return jobReply(well, row.ID, ""), nil
}
