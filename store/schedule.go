package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// This file holds when, in which order and how fast fetches run, and how that changes.

// Schedule is what may be changed of a fetch until it is final.
type Schedule struct {
	// Priority is 0 for most; of those that wait, the highest goes first.
	Priority int
	// Paused keeps a fetch queued until it is resumed.
	Paused bool
	// NotBefore is the earliest start, zero for none; Window is a daily "HH:MM-HH:MM", empty for none.
	NotBefore time.Time
	Window    string
	// EligibleAt is what those two come to: the moment from which a worker may take the fetch; zero: now.
	EligibleAt time.Time
	// RateLimit is in bytes a second, 0 for none.
	RateLimit int64
}

const scheduleColumns = `coalesce(checksum_url, ''), priority, paused, not_before, coalesce("window", ''), eligible_at, coalesce(rate_limit, 0)`

const (
	// waiting are the rows whose turn may come, order is theirs; both as in the index fetches_queue.
	waiting = `status = 'queued' AND paused = 0`
	order   = `priority DESC, coalesce(rank, seq), seq`
)

// Place is a place in the queue among the fetches of the same priority.
type Place struct {
	// First or Last of all; else before the fetch with the key Before, whose priority it takes.
	First, Last bool
	Before      string
}

// ErrNoPlace means that the fetch to be before is not in the queue.
var ErrNoPlace = errors.New("no such place in the queue")

// Reschedule changes the schedule of a fetch that is not final and not installing, and its place if it is queued; else it is
// [ErrConflict]. change is given the row and returns what it should be; it is called within the transaction.
func (s *Store) Reschedule(key string, change func(f Fetch) (Schedule, error), place *Place, detail string, by Actor) (f Fetch, err error) {
	err = s.update(func(tx *sql.Tx) error {
		if f, err = scanFetch(tx.QueryRow(`SELECT `+fetchColumns+` FROM fetches WHERE key = ?`, key)); err != nil {
			return err
		}
		if f.Status.Final() || f.Phase == Installing || f.CancelRequested || place != nil && f.Status != Queued {
			return ErrConflict
		}
		c, err := change(f)
		if err != nil {
			return err
		}
		if place != nil {
			if c.Priority, err = move(tx, f, c.Priority, *place); err != nil {
				return err
			}
		}
		if f, err = scanFetch(tx.QueryRow(`UPDATE fetches SET priority = ?, paused = ?, not_before = ?, "window" = nullif(?, ''), eligible_at = ?,
			rate_limit = nullif(?, 0) WHERE key = ? RETURNING `+fetchColumns,
			c.Priority, c.Paused, nullMillis(c.NotBefore), c.Window, nullMillis(c.EligibleAt), c.RateLimit, key)); err != nil {
			return err
		}
		return s.event(tx, by, "fetch.change", key, detail)
	})
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrConflict) && !errors.Is(err, ErrNoPlace) {
		err = fmt.Errorf("cannot change fetch %s: %w", key, err)
	}
	return f, err
}

// move gives f its rank and returns the priority that goes with it. Ranks of neighbours lie 1 apart at first; when halving
// has used up the room between two, all are numbered anew.
func move(tx *sql.Tx, f Fetch, priority int, place Place) (int, error) {
	const others = `FROM fetches WHERE status = 'queued' AND key <> ? AND priority = ?`
	for renumbered := false; ; renumbered = true {
		var at float64 // the rank of what comes after f: of the next order, if f goes to the end
		var before sql.NullFloat64
		var err error
		switch {
		case place.First:
			err = tx.QueryRow(`SELECT coalesce(min(coalesce(rank, seq)), 1) `+others, f.Key, priority).Scan(&at)
		case place.Last:
			err = tx.QueryRow(`SELECT seq + 1 FROM sqlite_sequence WHERE name = 'fetches'`).Scan(&at)
		default:
			err = tx.QueryRow(`SELECT priority, coalesce(rank, seq) FROM fetches WHERE status = 'queued' AND key = ? AND key <> ?`, place.Before, f.Key).
				Scan(&priority, &at)
			if errors.Is(err, sql.ErrNoRows) {
				return 0, ErrNoPlace
			}
		}
		if err == nil {
			err = tx.QueryRow(`SELECT max(coalesce(rank, seq)) `+others+` AND coalesce(rank, seq) < ?`, f.Key, priority, at).Scan(&before)
		}
		if err != nil {
			return 0, err
		}
		rank := at - 1
		if before.Valid {
			rank = before.Float64 + (at-before.Float64)/2
		}
		if rank < at && (!before.Valid || rank > before.Float64) || renumbered {
			_, err := tx.Exec(`UPDATE fetches SET rank = ? WHERE key = ?`, rank, f.Key)
			return priority, err
		}
		if _, err := tx.Exec(`UPDATE fetches SET rank = n FROM (SELECT seq AS s, row_number() OVER (ORDER BY coalesce(rank, seq), seq) AS n
			FROM fetches WHERE status = 'queued') WHERE seq = s`); err != nil {
			return 0, err
		}
	}
}

// Postpone notes from when the fetches with these keys may run or go on; the zero time is now. Final ones are left alone.
func (s *Store) Postpone(eligible map[string]time.Time) error {
	err := s.update(func(tx *sql.Tx) error {
		for key, at := range eligible {
			if _, err := tx.Exec(`UPDATE fetches SET eligible_at = ? WHERE key = ? AND status IN ('queued', 'in-progress')`, nullMillis(at), key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot postpone fetches: %w", err)
	}
	return nil
}

// NextEligible is when a queued fetch that has to wait for its time may run, the first if there are several; ok is false if
// none has to. It may be in the past by now.
func (s *Store) NextEligible(ctx context.Context) (at time.Time, ok bool, err error) {
	var ms sql.NullInt64
	err = s.r.QueryRowContext(ctx, `SELECT min(eligible_at) FROM fetches WHERE `+waiting+` AND eligible_at IS NOT NULL`).Scan(&ms)
	if err != nil {
		return time.Time{}, false, fmt.Errorf("cannot read the schedule: %w", err)
	}
	return moment(ms), ms.Valid, nil
}

// Position is the place in the queue, from 1, of the fetch with that key; 0 if its turn cannot come.
func (s *Store) Position(ctx context.Context, key string) (n int, err error) {
	err = s.r.QueryRowContext(ctx, `SELECT count(*) FROM fetches f, fetches q WHERE f.key = ? AND f.status = 'queued' AND f.paused = 0
		AND q.status = 'queued' AND q.paused = 0 AND (-q.priority, coalesce(q.rank, q.seq), q.seq) <= (-f.priority, coalesce(f.rank, f.seq), f.seq)`, key).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("cannot read the queue: %w", err)
	}
	return n, nil
}

// Positions are the places in the queue, from 1, of the fetches whose turn may come, by Seq.
func (s *Store) Positions(ctx context.Context) (map[int64]int, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT seq FROM fetches WHERE `+waiting+` ORDER BY `+order)
	if err != nil {
		return nil, fmt.Errorf("cannot read the queue: %w", err)
	}
	defer rows.Close()
	out := map[int64]int{}
	for rows.Next() {
		var seq int64
		if err := rows.Scan(&seq); err != nil {
			return nil, fmt.Errorf("cannot read the queue: %w", err)
		}
		out[seq] = len(out) + 1
	}
	return out, rows.Err()
}

// SetDigest notes the SHA-256 of a fetch that began without one, and its policy for certificates. It may be repeated.
func (s *Store) SetDigest(key, sha256 string, tlsVerify *bool) (Fetch, error) {
	return s.change("note the digest of", key, `sha256 = ?1, tls_verify = ?2`, running+` AND coalesce(sha256, ?1) = ?1`, sha256, tlsVerify)
}

// nullMillis is t for a column; the zero time is NULL.
func nullMillis(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return millis(t)
}
