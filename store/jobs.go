package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// JobState is how a job of the ONTAP dialect stands that is no fetch.
type JobState string

const (
	// JobRunning has not ended.
	JobRunning JobState = "running"
	// JobSuccess ended well.
	JobSuccess JobState = "success"
	// JobFailure did not; code and message say why.
	JobFailure JobState = "failure"
)

// Job is something that the ONTAP dialect was asked for and that is no fetch.
type Job struct {
	// Seq is higher than that of all jobs before.
	Seq int64
	ID  string
	// Description is method and path of the request.
	Description string
	State       JobState
	// Code is 0 unless the state is JobFailure.
	Code      int
	Message   string
	CreatedBy string
	// EndTime is zero while it runs.
	StartTime, EndTime time.Time
}

// AddJob stores a new one, which runs, or has ended if its state says so; it begins, and ends, now.
func (s *Store) AddJob(j Job, by Actor) (Job, error) {
	err := s.update(func(tx *sql.Tx) (err error) {
		now := millis(s.now())
		var end any
		if j.State != JobRunning {
			end = now
		}
		if j, err = scanJob(tx.QueryRow(`INSERT INTO jobs (id, description, state, code, message, created_by, start_time, end_time) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
			RETURNING `+jobColumns, j.ID, j.Description, string(j.State), j.Code, j.Message, by.Name, now, end)); err != nil {
			return err
		}
		return s.event(tx, by, "job.add", j.ID, j.Description)
	})
	if err != nil {
		return Job{}, fmt.Errorf("cannot add job: %w", err)
	}
	return j, nil
}

// EndJob notes what came at a moment of a job that runs; [ErrConflict] if it does not.
func (s *Store) EndJob(id string, state JobState, code int, message string, at time.Time) (j Job, err error) {
	err = s.write(func(c *sql.Conn) (err error) {
		j, err = scanJob(c.QueryRowContext(context.Background(), `UPDATE jobs SET state = ?, code = ?, message = ?, end_time = max(?, start_time)
			WHERE id = ? AND state = 'running' RETURNING `+jobColumns, string(state), code, message, millis(at), id))
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return j, ErrConflict
	}
	if err != nil {
		return j, fmt.Errorf("cannot end job %s: %w", id, err)
	}
	return j, nil
}

// ExpireJobs removes those that ended before a moment, and all that have ended but the newest keep.
func (s *Store) ExpireJobs(before time.Time, keep int) error {
	err := s.write(func(c *sql.Conn) error {
		_, err := c.ExecContext(context.Background(), `DELETE FROM jobs WHERE end_time < ? OR end_time IS NOT NULL AND
			seq <= (SELECT seq FROM jobs WHERE end_time IS NOT NULL ORDER BY seq DESC LIMIT 1 OFFSET ?)`, millis(before), keep)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot expire jobs: %w", err)
	}
	return nil
}

// Job reads one; [ErrNotFound] if there is none.
func (s *Store) Job(ctx context.Context, id string) (Job, error) {
	j, err := scanJob(s.r.QueryRowContext(ctx, `SELECT `+jobColumns+` FROM jobs WHERE id = ?`, id))
	if err != nil && !errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("cannot read job: %w", err)
	}
	return j, err
}

// Jobs are those behind after, a Seq, oldest first, and at most limit of them.
func (s *Store) Jobs(ctx context.Context, after int64, limit int) ([]Job, error) {
	return s.jobs(ctx, `seq > ? ORDER BY seq LIMIT ?`, after, limit)
}

// RunningJobs are those that have not ended, oldest first.
func (s *Store) RunningJobs(ctx context.Context) ([]Job, error) {
	return s.jobs(ctx, `end_time IS NULL ORDER BY seq`)
}

func (s *Store) jobs(ctx context.Context, where string, args ...any) ([]Job, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT `+jobColumns+` FROM jobs WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("cannot list jobs: %w", err)
	}
	defer rows.Close()
	var out []Job
	for rows.Next() {
		j, err := scanJob(rows)
		if err != nil {
			return nil, fmt.Errorf("cannot list jobs: %w", err)
		}
		out = append(out, j)
	}
	return out, rows.Err()
}

// UpgradeAnswered is when an upgrade became more than requested, by the audit; zero if that does not know.
func (s *Store) UpgradeAnswered(ctx context.Context, id string) (time.Time, error) {
	var at sql.NullInt64
	if err := s.r.QueryRowContext(ctx, `SELECT min(at) FROM events WHERE object = ? AND action IN ('upgrade.activated', 'upgrade.booted', 'upgrade.confirmed',
		'upgrade.reverting', 'upgrade.failed')`, id).Scan(&at); err != nil {
		return time.Time{}, fmt.Errorf("cannot read audit: %w", err)
	}
	return moment(at), nil
}

const jobColumns = `seq, id, description, state, code, message, created_by, start_time, end_time`

func scanJob(row interface{ Scan(...any) error }) (Job, error) {
	var j Job
	var start, end sql.NullInt64
	err := row.Scan(&j.Seq, &j.ID, &j.Description, &j.State, &j.Code, &j.Message, &j.CreatedBy, &start, &end)
	if errors.Is(err, sql.ErrNoRows) {
		return j, ErrNotFound
	}
	j.StartTime, j.EndTime = moment(start), moment(end)
	return j, err
}

// Foremost is the fetch to show where there is room for one: one in progress, else the next in the queue, else the one that
// ended last; [ErrNotFound] if there is none at all.
func (s *Store) Foremost(ctx context.Context) (Fetch, error) {
	for _, which := range []string{`status = 'in-progress' ORDER BY seq`, waiting + ` ORDER BY ` + order,
		`status IN ('finished', 'failed', 'cancelled') ORDER BY end_time DESC, seq DESC`} {
		f, err := scanFetch(s.r.QueryRowContext(ctx, `SELECT `+listColumns+` FROM fetches WHERE `+which+` LIMIT 1`))
		if err != nil && !errors.Is(err, ErrNotFound) {
			return f, fmt.Errorf("cannot read fetch: %w", err)
		}
		if err == nil {
			return f, nil
		}
	}
	return Fetch{}, ErrNotFound
}
