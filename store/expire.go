package store

import (
	"database/sql"
	"fmt"
	"time"
)

// expireBatch is how many rows one transaction of Expire removes.
const expireBatch = 200

// Expire removes the entries of fetches that ended before the moment before, if it is not zero, and all but the newest
// keep, if that is above 0: the oldest first, each with a line in the audit. It returns how many.
func (s *Store) Expire(before time.Time, keep int, by Actor) (n int, err error) {
	for {
		k := 0
		err := s.update(func(tx *sql.Tx) (err error) {
			k, err = s.expire(tx, nullMillis(before), keep, by)
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

func (s *Store) expire(tx *sql.Tx, before any, keep int, by Actor) (int, error) {
	rows, err := tx.Query(`SELECT key, end_time < ?1 AS old FROM
		(SELECT key, seq, end_time, row_number() OVER (ORDER BY end_time DESC, seq DESC) AS place FROM fetches
			WHERE status IN ('finished', 'failed', 'cancelled'))
		WHERE end_time < ?1 OR ?2 > 0 AND place > ?2 ORDER BY end_time, seq LIMIT ?3`, before, keep, expireBatch)
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
