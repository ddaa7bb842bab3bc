package ontap

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/google/uuid"

	"slotfetch/api"
	"slotfetch/store"
)

// This file begins and ends the jobs that are no downloads. That a job has ended is known at once, and in the database as soon
// as that takes it.

// again is how long it takes until what the database did not take is tried again.
const again = time.Second

// outcome is what has become of a job.
type outcome struct {
	state   store.JobState
	code    int
	message string
	at      time.Time
}

// became is an outcome of now; a code of 0 is a success.
func (s *Server) became(code int, message string) outcome {
	o := outcome{store.JobSuccess, code, message, s.cfg.Now()}
	if code != 0 {
		o.state = store.JobFailure
	}
	return o
}

// show makes row look as it will in the database.
func (o outcome) show(row *store.Job) {
	if row.State == store.JobRunning {
		row.State, row.Code, row.Message, row.EndTime = o.state, o.code, o.message, o.at
	}
}

// finding is what the work of a job has come to. Without a message it is not the work that ends the job.
type finding struct {
	results []Validation // of a test; nil leaves those of before
	code    int
	message string
}

// run makes a job of what work does. It goes on without the caller; a panic costs this job, not the agent.
func (s *Server) run(description, id, begin string, by store.Actor, work func(ctx context.Context) finding) (store.Job, error) {
	if !s.enlist() {
		return store.Job{}, failed(codeUnhealthy, "", messageStopping)
	}
	row, err := s.add(store.Job{ID: id, Description: description, State: store.JobRunning, Message: begin}, by)
	if err != nil {
		s.work.Done()
		return row, err
	}
	go func() {
		defer s.work.Done()
		if o, ended := s.leave(id, s.safely(id, work)); ended {
			s.save(id, o)
		}
		s.mu.Lock()
		delete(s.ours, id)
		s.mu.Unlock()
	}()
	return row, nil
}

func (s *Server) safely(id string, work func(ctx context.Context) finding) (f finding) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Log.Error("panic in a job", "job", id, "panic", p, "stack", string(debug.Stack()))
			f = finding{code: codeInternal, message: messageInternal}
		}
	}()
	return work(s.ctx)
}

// enlist counts in what Close has to wait for, until work.Done; false after Close.
func (s *Server) enlist() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.work.Add(1)
	return true
}

// add stores a job, and forgets those that are old by now. After an error the job may be durable all the same; then it has failed.
func (s *Server) add(j store.Job, by store.Actor) (store.Job, error) {
	if err := s.settle(); err != nil { // what nobody has looked at since it ended would never be old
		s.cfg.Log.Warn("cannot settle the jobs of before", "err", err)
	}
	if err := s.expire(); err != nil {
		return j, err
	}
	if j.State == store.JobRunning {
		s.mu.Lock()
		s.ours[j.ID] = true
		s.mu.Unlock()
	}
	row, err := s.cfg.Store.AddJob(j, by)
	if err != nil && j.State == store.JobRunning {
		s.endLater(j.ID, s.became(codeInternal, "The job could not be stored, so nothing was done. Try again."))
	}
	return row, err
}

// end notes what has become of a job, once the database has it or, if it does not take it, later.
func (s *Server) end(id string, o outcome) {
	s.mu.Lock()
	s.outcomes[id] = o
	s.mu.Unlock()
	s.notify()
	s.save(id, o)
}

func (s *Server) save(id string, o outcome) {
	if !s.record(id, o) {
		s.insist(id, o, again)
	}
}

// endLater is end for those who must not wait for the database.
func (s *Server) endLater(id string, o outcome) {
	s.mu.Lock()
	_, known := s.outcomes[id]
	if !known {
		s.outcomes[id] = o
	}
	s.mu.Unlock()
	if !known {
		s.notify()
		s.insist(id, o, 0)
	}
}

// insist records an end after a while, and again until the database takes it. When the agent stops first, the next start settles
// the job.
func (s *Server) insist(id string, o outcome, after time.Duration) {
	if !s.enlist() {
		return
	}
	go func() {
		defer s.work.Done()
		for wait := after; s.sleep(wait) && !s.record(id, o); wait = again {
		}
	}()
}

// sleep tells whether the agent still runs after d.
func (s *Server) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return s.ctx.Err() == nil
	case <-s.ctx.Done():
		return false
	}
}

// record tells whether the database has the end of a job.
func (s *Server) record(id string, o outcome) bool {
	_, err := s.cfg.Store.EndJob(id, o.state, o.code, o.message, o.at)
	if err != nil && !errors.Is(err, store.ErrConflict) { // which is with a try before, or there is no such job
		s.cfg.Log.Error("cannot note the end of a job; trying again", "job", id, "err", err)
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.outcomes, id)
	delete(s.ours, id)
	return true
}

// done adds a job that has ended already.
func (s *Server) done(description string, code int, message string, by store.Actor) (store.Job, error) {
	o := s.became(code, message)
	return s.add(store.Job{ID: uuid.NewString(), Description: description, State: o.state, Code: code, Message: message}, by)
}

// job is the row of a job, with its end though the database may not have that yet.
func (s *Server) job(ctx context.Context, id string) (store.Job, error) {
	s.mu.Lock()
	o, ended := s.outcomes[id] // before the row: what is not here any more is there
	s.mu.Unlock()
	row, err := s.cfg.Store.Job(ctx, id)
	if err == nil && ended {
		o.show(&row)
	}
	return row, err
}

// rows are what store reads, with their ends though the database may not have those yet.
func (s *Server) rows(read func() ([]store.Job, error)) ([]store.Job, error) {
	s.mu.Lock()
	outcomes := maps.Clone(s.outcomes) // before the rows, as in job
	s.mu.Unlock()
	rows, err := read()
	for i := range rows {
		if o, ended := outcomes[rows[i].ID]; ended {
			o.show(&rows[i])
		}
	}
	return rows, err
}

// current is row, or what has become of it: nobody else ends the job of an activation, which is over when the reboot is due or
// it came to nothing.
func (s *Server) current(ctx context.Context, row store.Job) (store.Job, error) {
	if row.State != store.JobRunning || s.testing(row.ID) {
		return row, nil
	}
	u, err := s.cfg.Store.Upgrade(ctx, row.ID)
	if errors.Is(err, store.ErrNotFound) {
		return s.job(ctx, row.ID) // it may have ended meanwhile
	}
	if err != nil {
		return row, err
	}
	o := outcome{state: store.JobSuccess, message: "success"}
	switch u.Status {
	case store.UpgradeRequested:
		row.Message = "Telling the boot loader"
		return row, nil
	case store.UpgradeReverting, store.UpgradeFailed:
		o.state, o.code, o.message = store.JobFailure, codeInternal, u.Reason
		if o.message == "" {
			o.message = "The activation failed. The agent's journal has the details."
		}
	}
	if o.at, err = s.cfg.Store.UpgradeAnswered(ctx, row.ID); err != nil {
		return row, err
	}
	if o.at.IsZero() {
		o.at = s.cfg.Now()
	}
	s.endLater(row.ID, o)
	o.show(&row)
	return row, nil
}

// expire forgets old jobs.
func (s *Server) expire() error { return s.cfg.Store.ExpireJobs(s.cfg.Now().Add(-jobLife), jobsKept) }

// settle ends the jobs that an earlier run did not, and those of activations that are over.
func (s *Server) settle() error {
	rows, err := s.rows(func() ([]store.Job, error) { return s.cfg.Store.RunningJobs(s.ctx) })
	if err != nil {
		return err
	}
	for _, row := range rows {
		s.mu.Lock()
		ours := s.ours[row.ID]
		s.mu.Unlock()
		if ours || row.State != store.JobRunning {
			continue
		}
		switch _, err := s.cfg.Store.Upgrade(s.ctx, row.ID); {
		case errors.Is(err, store.ErrNotFound):
			s.endLater(row.ID, s.became(codeInternal, "The agent was restarted before the job had ended. Try again."))
		case err != nil:
			return err
		default:
			if _, err := s.current(s.ctx, row); err != nil {
				return err
			}
		}
	}
	return nil
}

// settleLater repeats settle until the database can be read.
func (s *Server) settleLater(err error) {
	if !s.enlist() {
		return
	}
	go func() {
		defer s.work.Done()
		for err != nil {
			s.cfg.Log.Error("cannot settle the jobs of before; trying again", "err", err)
			if !s.sleep(again) {
				return
			}
			err = s.settle()
		}
	}()
}

// await holds an answer until a job that is no download has ended, or is no longer tested, for at most d. If too many answers
// are held already, it does not.
func (s *Server) await(ctx context.Context, id string, d time.Duration) (store.Job, error) {
	leave, ok := s.cfg.Fetch.Waiter()
	defer leave()
	if !ok {
		return s.job(context.WithoutCancel(ctx), id)
	}
	ctx, stop := context.WithTimeout(ctx, d)
	defer stop()
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		tested := !s.testing(id) // before the row
		row, err := s.job(context.WithoutCancel(ctx), id)
		if err != nil || row.State != store.JobRunning || tested {
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
