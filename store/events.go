package store

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"
)

// Event is one line of the audit: who did what, when, from where.
type Event struct {
	At             time.Time
	Actor, Address string
	// Action is like fetch.enqueue, fetch.cancel, fetch.prune, slot.delete, user.add, session.login.
	Action string
	// Object is the key, slot number or user name that it was done to.
	Object, Detail string
}

func (s *Store) event(tx *sql.Tx, by Actor, action, object, detail string) error {
	if by.App != "" {
		detail = strings.TrimSpace(detail + " app=" + by.App)
	}
	_, err := tx.Exec(`INSERT INTO events (at, actor, address, action, object, detail) VALUES (?, ?, ?, ?, ?, ?)`,
		millis(s.now()), by.Name, by.Address, action, object, detail)
	return err
}

// Audit adds an event for something that happens outside the database, such as a slot that is emptied.
func (s *Store) Audit(by Actor, action, object, detail string) error {
	if err := s.update(func(tx *sql.Tx) error { return s.event(tx, by, action, object, detail) }); err != nil {
		return fmt.Errorf("cannot write audit: %w", err)
	}
	return nil
}

// Events lists the newest events first, at most limit.
func (s *Store) Events(ctx context.Context, limit int) ([]Event, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT at, actor, address, action, object, detail FROM events ORDER BY id DESC LIMIT ?`, limit)
	if err != nil {
		return nil, fmt.Errorf("cannot read audit: %w", err)
	}
	defer rows.Close()
	var out []Event
	for rows.Next() {
		var e Event
		var at sql.NullInt64
		if err := rows.Scan(&at, &e.Actor, &e.Address, &e.Action, &e.Object, &e.Detail); err != nil {
			return nil, fmt.Errorf("cannot read audit: %w", err)
		}
		e.At = moment(at)
		out = append(out, e)
	}
	return out, rows.Err()
}
