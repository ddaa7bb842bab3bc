package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// keptAttempts is how many attempts of a fetch stay: the newest.
const keptAttempts = 100

// Attempt is what one attempt of a fetch did and how it ended.
type Attempt struct {
	// Number is the fetch's count of attempts, from 1.
	Number int
	// URL and RedirectedTo are redacted; RedirectedTo is empty if there was no redirect.
	URL, RedirectedTo string
	// Proxy is host:port, Address ip:port; empty: none.
	Proxy, Address string
	// Ended is zero while the attempt runs, which no stored one does.
	Started, Ended time.Time
	// These are in milliseconds; nil: not needed, or not reached.
	DNS, Connect, TLS, FirstByte *int64
	// ResumedFrom is the offset at which it began; nil without a stream.
	ResumedFrom   *int64
	BytesReceived int64
	// Connections is how many were used at most at a time.
	Connections int
	// HTTPStatus is 0 without one.
	HTTPStatus int
	// ErrorCode, ErrorClass and Error are empty while it runs and when it succeeded. ErrorClass is also empty when nothing
	// was wrong with source or box.
	ErrorCode, ErrorClass, Error string
	// Bottleneck is network, hash, disk or limit; empty while nothing was measured.
	Bottleneck string
	// For so long each stage was at work, in milliseconds.
	Network, Hash, Disk, Limit int64
}

// AddAttempt stores an attempt that has ended, and lets go of the oldest of the fetch when there are too many. The fetch
// itself is not touched. [ErrNotFound] if there is none.
func (s *Store) AddAttempt(key string, a Attempt) error {
	err := s.update(func(tx *sql.Tx) error {
		r, err := tx.Exec(`INSERT OR REPLACE INTO attempts
			(fetch, number, url, redirected_to, proxy, address, started, ended, dns, connect, tls, first_byte, resumed_from, bytes_received, connections,
			 http_status, error_code, error_class, error, bottleneck, network, hash, disk, "limit")
			SELECT key, ?, ?, nullif(?, ''), nullif(?, ''), nullif(?, ''), ?, ?, ?, ?, ?, ?, ?, ?, ?,
			 nullif(?, 0), nullif(?, ''), nullif(?, ''), nullif(?, ''), nullif(?, ''), ?, ?, ?, ? FROM fetches WHERE key = ?`,
			a.Number, a.URL, a.RedirectedTo, a.Proxy, a.Address, millis(a.Started), millis(a.Ended), a.DNS, a.Connect, a.TLS, a.FirstByte, a.ResumedFrom,
			a.BytesReceived, a.Connections, a.HTTPStatus, a.ErrorCode, a.ErrorClass, a.Error, a.Bottleneck, a.Network, a.Hash, a.Disk, a.Limit, key)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 {
			return ErrNotFound
		}
		_, err = tx.Exec(`DELETE FROM attempts WHERE fetch = ? AND number <=
			(SELECT number FROM attempts WHERE fetch = ? ORDER BY number DESC LIMIT 1 OFFSET ?)`, key, key, keptAttempts)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot note attempt %d of fetch %s: %w", a.Number, key, err)
	}
	return nil
}

// Attempts lists what is stored of the attempts of a fetch, oldest first: none also if there is no such fetch.
func (s *Store) Attempts(ctx context.Context, key string) ([]Attempt, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT number, url, coalesce(redirected_to, ''), coalesce(proxy, ''), coalesce(address, ''), started, ended,
		dns, connect, tls, first_byte, resumed_from, bytes_received, connections, coalesce(http_status, 0), coalesce(error_code, ''),
		coalesce(error_class, ''), coalesce(error, ''), coalesce(bottleneck, ''), network, hash, disk, "limit"
		FROM attempts WHERE fetch = ? ORDER BY number`, key)
	if err != nil {
		return nil, fmt.Errorf("cannot read attempts: %w", err)
	}
	defer rows.Close()
	var out []Attempt
	for rows.Next() {
		var a Attempt
		var started, ended sql.NullInt64
		if err := rows.Scan(&a.Number, &a.URL, &a.RedirectedTo, &a.Proxy, &a.Address, &started, &ended, &a.DNS, &a.Connect, &a.TLS, &a.FirstByte,
			&a.ResumedFrom, &a.BytesReceived, &a.Connections, &a.HTTPStatus, &a.ErrorCode, &a.ErrorClass, &a.Error, &a.Bottleneck,
			&a.Network, &a.Hash, &a.Disk, &a.Limit); err != nil {
			return nil, fmt.Errorf("cannot read attempts: %w", err)
		}
		a.Started, a.Ended = moment(started), moment(ended)
		out = append(out, a)
	}
	return out, rows.Err()
}
