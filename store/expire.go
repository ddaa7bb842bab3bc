package store

import (
	"database/sql"
	"fmt"
	"time"
)

// expireBatch is how many rows one transaction of Expire removes.
const expireBatch = 200

// Spared is how long the entry of an ended fetch stays at least: who started it asks what became of it, perhaps once a minute.
const Spared = 300 * time.Second

// Expire removes the entries of fetches that ended before the moment before, if it is not zero, and all but the newest
// keep, if that is above 0: the oldest first, each with a line in the audit. Those that ended within [Spared] before now
// stay. It returns how many.
func (s *Store) Expire(before time.Time, keep int, now time.Time, by Actor) (n int, err error) {
	for {
		k := 0
		err := s.update(func(tx *sql.Tx) (err error) {
			k, err = s.expire(tx, nullMillis(before), keep, now, by)
			return err
		})
		if err != nil {
			return n, fmt.Errorf("cannot expire fetches: %w", err)
		}
		if n += k; k < expireBatch {
			return n, nil
		}
	}
}

func (s *Store) expire(tx *sql.Tx, before any, keep int, now time.Time, by Actor) (int, error) {
	rows, err := tx.Query(`SELECT key, end_time < ?1 AS old FROM
		(SELECT key, seq, end_time, row_number() OVER (ORDER BY end_time DESC, seq DESC) AS place FROM fetches
			WHERE status IN ('finished', 'failed', 'cancelled'))
		WHERE (end_time < ?1 OR ?2 > 0 AND place > ?2) AND NOT (end_time > ?4 AND end_time <= ?5) ORDER BY end_time, seq LIMIT ?3`,
		before, keep, expireBatch, millis(now.Add(-Spared)), millis(now))
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	why := map[string]string{}
	var keys []string
	for rows.Next() {
		var key string
		var old sql.NullBool
		if err := rows.Scan(&key, &old); err != nil {
			return 0, err
		}
		keys = append(keys, key)
		if why[key] = "keep_count"; old.Bool {
			why[key] = "keep_age"
		}
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	for _, key := range keys {
		if _, err := tx.Exec(`DELETE FROM fetches WHERE key = ? AND status IN ('finished', 'failed', 'cancelled')`, key); err != nil {
			return 0, err
		}
		if err := s.event(tx, by, "fetch.expire", key, why[key]); err != nil {
			return 0, err
		}
	}
	return len(keys), nil
}
