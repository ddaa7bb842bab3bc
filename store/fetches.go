package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/mattn/go-sqlite3"
)

// Status is the durable stage of a fetch.
type Status string

const (
	// Queued: accepted and waiting for a worker; also after a restart, with what was downloaded so far.
	Queued Status = "queued"
	// InProgress: a worker has it; the phase says what it does.
	InProgress Status = "in-progress"
	// Finished: the image is in a slot. Final.
	Finished Status = "finished"
	// Failed: it ended with an error. Final.
	Failed Status = "failed"
	// Cancelled: somebody asked to stop, and the partial is gone. Final.
	Cancelled Status = "cancelled"
)

// Final tells whether the status never changes again.
func (s Status) Final() bool { return s == Finished || s == Failed || s == Cancelled }

// Phase is what a worker does with a fetch in progress; empty otherwise.
type Phase string

const (
	// Downloading: bytes arrive, or a connection is being made.
	Downloading Phase = "downloading"
	// Waiting: the last attempt failed for now; the next one comes.
	Waiting Phase = "waiting"
	// Verifying: all bytes are here; length and digest are compared.
	Verifying Phase = "verifying"
	// Installing: the image becomes a slot; too late to cancel.
	Installing Phase = "installing"
)

// Fetch is one row of the queue.
type Fetch struct {
	// Seq is the order of arrival.
	Seq             int64
	Key             string
	Status          Status
	Phase           Phase
	CancelRequested bool

	// URL and Mirrors have no userinfo.
	URL            string
	Mirrors        []string
	SHA256, SHA512 string // lower-case hex, SHA512 mostly empty
	WantSlot       *int
	TLSVerify      *bool
	TLSCA          string
	// Force asks for a download though a slot has the image.
	Force bool
	// Idempotency is the caller's own key for the request, empty if there is none; RequestHash tells apart two requests
	// under one key.
	Idempotency string
	RequestHash []byte
	// ChecksumURL is where SHA256 is read from while that is empty; without userinfo, and mostly empty itself.
	ChecksumURL string
	// Signature is the signed manifest of the image and its signature, as JSON; empty if there is none, or it is not found yet.
	Signature string
	// Sidecar is required or optional where the digest is looked for beside the image, else empty.
	Sidecar string
	// LoneVersion refuses an image whose version another slot has, with other content.
	LoneVersion bool
	// CancelledBy is who asked for the end of it; empty if nobody did.
	CancelledBy string
	Schedule
	// Secrets are sealed; nil when there are none, and always once final.
	Secrets   []byte
	CreatedBy string

	CreatedAt, StartTime, EndTime time.Time // zero if not yet
	Attempts                      int
	BytesDownloaded, BytesTotal   int64
	// ResumedFrom is the offset at which the last attempt began; BytesReceived is what all attempts moved until this was last
	// noted: at the beginning of an attempt, at a checkpoint, and when the fetch was queued again.
	ResumedFrom, BytesReceived int64
	BytesPerSecond             *int64
	TLSVerified                *bool
	SlotID                     *int
	// Deduplicated tells that the slot had the image already.
	Deduplicated     bool
	ErrorCode, Error string
	// NextAttempt is when a waiting fetch is tried again. It is not stored: only the agent that runs it knows.
	NextAttempt time.Time
	// RetryReason is what the last attempt of a waiting fetch ended with, for people. It is not stored either.
	RetryReason string
	Checkpoint  Checkpoint
}

// Checkpoint is how far the partial is durable, with what it takes to go on from there. The zero value means byte 0.
type Checkpoint struct {
	// Offset is the first byte still missing.
	Offset int64
	// State is the marshalled hash state at Offset.
	State []byte
	// Validator is the source's, as JSON; Source tells which of the fetch's URLs it is for.
	Validator, Source string
	// Clean tells that the agent stopped in order after writing it; otherwise the partial is read again first.
	Clean bool
}

// Actor is who asks for a change, for the audit.
type Actor struct {
	Name, Address string
	// App is the program that asks, as it calls itself; mostly empty.
	App string
}

const fetchColumns = `seq, key, status, coalesce(phase, ''), cancel_requested, url, mirrors, coalesce(sha256, ''), coalesce(sha512, ''),
	want_slot, tls_verify, coalesce(tls_ca, ''), force, coalesce(idem_key, ''), idem_hash, coalesce(signature, ''), ` + originColumns + scheduleColumns + `, secrets, created_by, created_at,
	start_time, end_time, attempts, bytes_downloaded, bytes_total, resumed_from, bytes_received, bytes_per_second, tls_verified,
	slot_id, deduplicated, coalesce(error_code, ''), coalesce(error, ''), cp_offset, cp_state, coalesce(cp_validator, ''), coalesce(cp_source, ''), cp_clean`

const originColumns = `coalesce(sidecar, ''), lone_version, coalesce(cancelled_by, ''), `

// listColumns leave out what may be large and no list needs: a row may have 64 KiB of certificates alone.
const listColumns = `seq, key, status, coalesce(phase, ''), cancel_requested, url, '[]', coalesce(sha256, ''), coalesce(sha512, ''),
	want_slot, tls_verify, '', force, '', NULL, '', ` + originColumns + scheduleColumns + `, NULL, created_by, created_at, start_time, end_time, attempts,
	bytes_downloaded, bytes_total, resumed_from, bytes_received, bytes_per_second, tls_verified, slot_id, deduplicated,
	coalesce(error_code, ''), coalesce(error, ''), cp_offset, NULL, '', '', cp_clean`

func scanFetch(row interface{ Scan(...any) error }) (Fetch, error) {
	var f Fetch
	var mirrors string
	var created, start, end, notBefore, eligible sql.NullInt64
	err := row.Scan(&f.Seq, &f.Key, &f.Status, &f.Phase, &f.CancelRequested, &f.URL, &mirrors, &f.SHA256, &f.SHA512,
		&f.WantSlot, &f.TLSVerify, &f.TLSCA, &f.Force, &f.Idempotency, &f.RequestHash, &f.Signature, &f.Sidecar, &f.LoneVersion, &f.CancelledBy,
		&f.ChecksumURL, &f.Priority, &f.Paused, &notBefore, &f.Window, &eligible, &f.RateLimit, &f.Secrets, &f.CreatedBy, &created, &start, &end, &f.Attempts,
		&f.BytesDownloaded, &f.BytesTotal, &f.ResumedFrom, &f.BytesReceived, &f.BytesPerSecond, &f.TLSVerified, &f.SlotID, &f.Deduplicated, &f.ErrorCode, &f.Error,
		&f.Checkpoint.Offset, &f.Checkpoint.State, &f.Checkpoint.Validator, &f.Checkpoint.Source, &f.Checkpoint.Clean)
	if errors.Is(err, sql.ErrNoRows) {
		return f, ErrNotFound
	}
	if err != nil {
		return f, err
	}
	f.CreatedAt, f.StartTime, f.EndTime = moment(created), moment(start), moment(end)
	f.NotBefore, f.EligibleAt = moment(notBefore), moment(eligible)
	return f, json.Unmarshal([]byte(mirrors), &f.Mirrors)
}

// Enqueue adds f, of which only the fields that describe the request count, at the end of the queue. If the caller has
// used the same idempotency key before, the fetch of then is returned instead, with [ErrExists].
func (s *Store) Enqueue(f Fetch, by Actor) (Fetch, error) {
	return s.enqueue(f, by, `'queued', NULL, NULL, 0, 0, NULL, 0`)
}

// EnqueueFinished adds f as finished: its image, of size bytes, is in slot already. Otherwise it is like Enqueue.
func (s *Store) EnqueueFinished(f Fetch, slot int, size int64, by Actor) (Fetch, error) {
	now := millis(s.now())
	return s.enqueue(f, by, `'finished', ?, ?, ?, ?, ?, 1`, now, now, size, size, slot)
}

func (s *Store) enqueue(f Fetch, by Actor, state string, args ...any) (Fetch, error) {
	mirrors, err := json.Marshal(append([]string{}, f.Mirrors...))
	if err != nil {
		return Fetch{}, err
	}
	secrets := f.Secrets
	if len(args) > 0 {
		secrets = nil // a final row has none
	}
	var out Fetch
	err = s.together(func(tx *sql.Tx) error {
		if f.Idempotency != "" {
			out, err = scanFetch(tx.QueryRow(`SELECT `+fetchColumns+` FROM fetches WHERE created_by = ? AND idem_key = ?`, by.Name, f.Idempotency))
			if err == nil {
				return ErrExists
			} else if !errors.Is(err, ErrNotFound) {
				return err
			}
		}
		out, err = scanFetch(tx.QueryRow(`INSERT INTO fetches
			(status, start_time, end_time, bytes_downloaded, bytes_total, slot_id, deduplicated,
			 key, url, mirrors, sha256, sha512, want_slot, tls_verify, tls_ca, force, idem_key, idem_hash, signature, sidecar, lone_version,
			 checksum_url, priority, paused, not_before, "window", eligible_at, rate_limit, secrets, created_by, created_at)
			VALUES (`+state+`, ?, ?, ?, nullif(?, ''), nullif(?, ''), ?, ?, nullif(?, ''), ?, nullif(?, ''), ?, nullif(?, ''), nullif(?, ''), ?,
			 nullif(?, ''), ?, ?, ?, nullif(?, ''), ?, nullif(?, 0), ?, ?, ?) RETURNING `+fetchColumns,
			append(args, f.Key, f.URL, string(mirrors), f.SHA256, f.SHA512, f.WantSlot, f.TLSVerify, f.TLSCA, f.Force, f.Idempotency, f.RequestHash, f.Signature, f.Sidecar, f.LoneVersion,
				f.ChecksumURL, f.Priority, f.Paused, nullMillis(f.NotBefore), f.Window, nullMillis(f.EligibleAt), f.RateLimit,
				secrets, by.Name, millis(s.now()))...))
		if err != nil {
			return err
		}
		return s.event(tx, by, "fetch.enqueue", f.Key, "")
	})
	var e sqlite3.Error
	if errors.As(err, &e) && e.ExtendedCode == sqlite3.ErrConstraintUnique {
		return Fetch{}, ErrExists
	}
	if errors.Is(err, ErrExists) {
		return out, err
	}
	if err != nil {
		return Fetch{}, fmt.Errorf("cannot enqueue fetch: %w", err)
	}
	return out, nil
}

// Claim hands the queued fetch whose turn it is to a worker; ok is false when there is none.
func (s *Store) Claim() (f Fetch, ok bool, err error) {
	now := millis(s.now())
	f, err = s.writeFetch(`UPDATE fetches SET status = 'in-progress', phase = 'downloading', start_time = coalesce(start_time, max(created_at, ?))
		WHERE status = 'queued' AND seq = (SELECT seq FROM fetches WHERE `+waiting+` AND coalesce(eligible_at, 0) <= ?
		ORDER BY `+order+` LIMIT 1) RETURNING `+fetchColumns, now, now)
	switch {
	case errors.Is(err, ErrNotFound):
		return Fetch{}, false, nil
	case err != nil:
		return Fetch{}, false, fmt.Errorf("cannot claim a fetch: %w", err)
	}
	return f, true, nil
}

// writeFetch runs one statement that returns a row.
func (s *Store) writeFetch(statement string, args ...any) (f Fetch, err error) {
	err = s.write(func(c *sql.Conn) (err error) {
		f, err = scanFetch(c.QueryRowContext(context.Background(), statement, args...))
		return err
	})
	return f, err
}

// change runs one guarded UPDATE of one fetch; no row means [ErrConflict], or [ErrNotFound] if there is no such key.
func (s *Store) change(what, key, set, guard string, args ...any) (Fetch, error) {
	f, err := s.writeFetch(`UPDATE fetches SET `+set+` WHERE key = ? AND `+guard+` RETURNING `+fetchColumns, append(args, key)...)
	if errors.Is(err, ErrNotFound) {
		if _, err := s.Fetch(context.Background(), key); err != nil {
			return Fetch{}, err
		}
		return Fetch{}, ErrConflict
	}
	if err != nil {
		return Fetch{}, fmt.Errorf("cannot %s fetch %s: %w", what, key, err)
	}
	return f, nil
}

// running guards all that a worker does before the point of no return.
const running = `status = 'in-progress' AND phase <> 'installing' AND cancel_requested = 0`

// BeginAttempt counts an attempt and sets the phase to downloading.
func (s *Store) BeginAttempt(key string) (Fetch, error) {
	return s.change("begin an attempt of", key, `phase = 'downloading', attempts = attempts + 1`, running)
}

// Opened notes that an attempt has its stream: where it begins, how much was received by the attempts before, how
// much there will be (0: unknown), and how TLS did.
func (s *Store) Opened(key string, from, received, total int64, tlsVerified *bool) (Fetch, error) {
	return s.change("note an attempt of", key, `resumed_from = ?, bytes_received = ?, bytes_total = ?, tls_verified = coalesce(?, tls_verified)`, running,
		from, received, total, tlsVerified)
}

// Deduplicate finishes a fetch without a download: its image, of size bytes, is in slot already.
func (s *Store) Deduplicate(key string, slot int, size int64) (Fetch, error) {
	defer s.scrub()
	return s.change("finish", key, `status = 'finished', slot_id = ?, deduplicated = 1, bytes_downloaded = ?, bytes_total = ?, bytes_per_second = NULL, `+final,
		running, slot, size, size, millis(s.now()))
}

// SetPhase notes the phase waiting or verifying, with the counts to show should the agent stop here. The other two
// have their own methods, which do more.
func (s *Store) SetPhase(key string, p Phase, downloaded, total int64) (Fetch, error) {
	if p != Waiting && p != Verifying {
		return Fetch{}, fmt.Errorf("cannot set the phase of fetch %s: not to %q", key, p)
	}
	return s.change("set the phase of", key, `phase = ?, bytes_downloaded = ?, bytes_total = ?`, running, string(p), downloaded, total)
}

// SaveCheckpoint stores c. The partial must be durable up to c.Offset before. It also notes what a restart shows, and what all
// attempts have received.
func (s *Store) SaveCheckpoint(key string, c Checkpoint, received, total int64, tlsVerified *bool) error {
	_, err := s.change("checkpoint", key, `cp_offset = ?, cp_state = ?, cp_validator = nullif(?, ''), cp_source = nullif(?, ''), cp_clean = 0,
		bytes_downloaded = ?, bytes_received = ?, bytes_total = ?, tls_verified = coalesce(?, tls_verified)`, running,
		c.Offset, c.State, c.Validator, c.Source, c.Offset, received, total, tlsVerified)
	return err
}

// BeginInstall is the point of no return: from here on the fetch cannot be cancelled.
func (s *Store) BeginInstall(key string, size int64, tlsVerified *bool) (Fetch, error) {
	return s.change("begin to install", key, `phase = 'installing', bytes_downloaded = ?, bytes_total = ?, tls_verified = ?`, running, size, size, tlsVerified)
}

// final is what every final status has in common. The checkpoint goes with the partial, the secrets for good. A clock
// that was set back meanwhile makes no fetch end before its start.
const final = `phase = NULL, cancel_requested = 0, paused = 0, eligible_at = NULL, secrets = NULL, cp_offset = 0, cp_state = NULL, cp_validator = NULL, cp_source = NULL, cp_clean = 0,
	end_time = max(?, coalesce(start_time, created_at))`

// Finish records that the image is in slot. rate is the average in bytes a second, nil if unknown.
func (s *Store) Finish(key string, slot int, rate *int64) (Fetch, error) {
	defer s.scrub()
	return s.change("finish", key, `status = 'finished', slot_id = ?, bytes_per_second = ?, bytes_downloaded = bytes_total, `+final,
		`status = 'in-progress' AND phase = 'installing'`, slot, rate, millis(s.now()))
}

// Fail records why the fetch ended. A requested cancel wins over it ([ErrConflict]).
func (s *Store) Fail(key, code, message string, downloaded, total int64, tlsVerified *bool) (Fetch, error) {
	defer s.scrub()
	return s.change("fail", key, `status = 'failed', error_code = ?, error = ?, bytes_downloaded = ?, bytes_total = ?, tls_verified = ?, `+final,
		`status = 'in-progress' AND cancel_requested = 0`, code, message, downloaded, total, tlsVerified, millis(s.now()))
}

// Cancelled records that a requested cancel is complete: the partial is off the disk.
func (s *Store) Cancelled(key string, downloaded, total int64) (Fetch, error) {
	defer s.scrub()
	return s.change("cancel", key, `status = 'cancelled', bytes_downloaded = ?, bytes_total = ?, `+final,
		`status = 'in-progress' AND cancel_requested = 1 AND phase <> 'installing'`, downloaded, total, millis(s.now()))
}

// Requeue puts a fetch in progress back at its place in the queue: when the agent stops or after it died, when it is paused, or
// when its time is over. keep leaves the checkpoint, clean marks it as written by an orderly stop; received is what all attempts
// have moved.
func (s *Store) Requeue(key string, keep, clean bool, received int64) (Fetch, error) {
	set := `status = 'queued', phase = NULL, cp_clean = ?, bytes_received = ?`
	if !keep {
		set += `, cp_offset = 0, cp_state = NULL, cp_validator = NULL, cp_source = NULL, bytes_downloaded = 0`
	}
	return s.change("requeue", key, set, `status = 'in-progress' AND cancel_requested = 0`, clean, received)
}

// Outcome is what a DELETE did.
type Outcome int

const (
	// CancelledQueued: it had not started; now it is cancelled.
	CancelledQueued Outcome = iota + 1
	// CancelRequested: it is running and was told to stop, now or by an earlier DELETE.
	CancelRequested
	// NotCancellable: it is installing.
	NotCancellable
	// Pruned: it was final; the entry is gone.
	Pruned
)

// Delete cancels a live fetch and prunes a final one: one transaction decides which, and notes it in the audit.
// The returned row is the one after the change, for Pruned the one before. [ErrNotFound] if there is none.
func (s *Store) Delete(key string, by Actor) (out Outcome, f Fetch, err error) {
	return s.endEarly(key, by, true)
}

// Cancel is Delete without the pruning: a fetch that is final stays, which is [ErrConflict].
func (s *Store) Cancel(key string, by Actor) (out Outcome, f Fetch, err error) {
	return s.endEarly(key, by, false)
}

func (s *Store) endEarly(key string, by Actor, prune bool) (out Outcome, f Fetch, err error) {
	err = s.update(func(tx *sql.Tx) error {
		steps := []struct {
			out    Outcome
			action string
			sql    string
			args   []any
		}{
			{CancelledQueued, "fetch.cancel", `UPDATE fetches SET status = 'cancelled', cancelled_by = ?, ` + final + ` WHERE status = 'queued' AND key = ?`, []any{by.Name, millis(s.now()), key}},
			{CancelRequested, "fetch.cancel", `UPDATE fetches SET cancel_requested = 1, cancelled_by = coalesce(cancelled_by, ?)
				WHERE status = 'in-progress' AND phase <> 'installing' AND key = ?`, []any{by.Name, key}},
			{Pruned, "fetch.prune", `DELETE FROM fetches WHERE status IN ('finished', 'failed', 'cancelled') AND key = ?`, []any{key}},
		}
		for _, step := range steps {
			if step.out == Pruned && !prune {
				continue
			}
			f, err = scanFetch(tx.QueryRow(step.sql+` RETURNING `+fetchColumns, step.args...))
			if err == nil {
				out = step.out
				return s.event(tx, by, step.action, key, string(f.Status))
			}
			if !errors.Is(err, ErrNotFound) {
				return err
			}
		}
		out = NotCancellable
		f, err = scanFetch(tx.QueryRow(`SELECT `+fetchColumns+` FROM fetches WHERE key = ?`, key))
		if err == nil && f.Status.Final() {
			return ErrConflict
		}
		return err
	})
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrConflict) {
		err = fmt.Errorf("cannot delete fetch %s: %w", key, err)
	}
	if out == CancelledQueued || out == Pruned {
		s.scrub()
	}
	return out, f, err
}

// Fetch reads one row; [ErrNotFound] if there is none.
func (s *Store) Fetch(ctx context.Context, key string) (Fetch, error) {
	f, err := scanFetch(s.r.QueryRowContext(ctx, `SELECT `+fetchColumns+` FROM fetches WHERE key = ?`, key))
	if err != nil && !errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("cannot read fetch: %w", err)
	}
	return f, err
}

// page is how many rows one read transaction of Fetches spans, so that a slow consumer holds up no checkpoint of
// the write-ahead log and memory stays bounded.
const page = 256

// Fetches calls yield for every row, oldest first, until it returns an error. The rows are without mirrors, CA
// certificates, secrets, and what a checkpoint has beside its offset.
func (s *Store) Fetches(ctx context.Context, yield func(Fetch) error) error {
	return s.each(ctx, "1", yield)
}

// Unfinished calls yield for every row that is not final, oldest first, without the same as in Fetches.
func (s *Store) Unfinished(ctx context.Context, yield func(Fetch) error) error {
	return s.each(ctx, "status IN ('queued', 'in-progress')", yield)
}

func (s *Store) each(ctx context.Context, where string, yield func(Fetch) error) error {
	for last := int64(-1); ; {
		rows, err := s.pageAfter(ctx, where, last)
		if err != nil {
			return fmt.Errorf("cannot list fetches: %w", err)
		}
		for _, f := range rows {
			if err := yield(f); err != nil {
				return err
			}
			last = f.Seq
		}
		if len(rows) < page {
			return nil
		}
	}
}

func (s *Store) pageAfter(ctx context.Context, where string, last int64) ([]Fetch, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT `+listColumns+` FROM fetches WHERE seq > ? AND `+where+` ORDER BY seq LIMIT ?`, last, page)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Fetch
	for rows.Next() {
		f, err := scanFetch(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, rows.Err()
}
