package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Session is a login. The token itself is nowhere, only its hash.
type Session struct {
	TokenHash           []byte
	User, Role          string
	CreatedAt, LastSeen time.Time
	Address, Agent      string
}

// AddSession stores a new session of a user who has shown the password of passwordHash and, if the user then has
// more than most, ends the longest idle ones. [ErrConflict] means that the user was removed, shut out or given
// another password since.
func (s *Store) AddSession(n Session, passwordHash string, most int) error {
	err := s.update(func(tx *sql.Tx) error {
		res, err := tx.Exec(`INSERT INTO sessions (token_hash, user, created_at, last_seen, address, agent)
			SELECT ?, name, ?, ?, ?, ? FROM users WHERE name = ? AND password_hash = ? AND disabled = 0`,
			n.TokenHash, millis(n.CreatedAt), millis(n.LastSeen), n.Address, n.Agent, n.User, passwordHash)
		if err := one(res, err); err != nil {
			return err
		}
		if _, err := tx.Exec(`DELETE FROM sessions WHERE user = ?1 AND token_hash NOT IN
			(SELECT token_hash FROM sessions WHERE user = ?1 ORDER BY last_seen DESC, rowid DESC LIMIT ?2)`, n.User, most); err != nil {
			return err
		}
		return s.event(tx, Actor{Name: n.User, Address: n.Address}, "session.login", n.User, "")
	})
	if errors.Is(err, ErrNotFound) {
		return ErrConflict
	}
	if err != nil {
		return fmt.Errorf("cannot store session: %w", err)
	}
	return nil
}

// Session reads the session of an enabled user, with the role that the user has now; [ErrNotFound] if there is none.
func (s *Store) Session(ctx context.Context, tokenHash []byte) (Session, error) {
	var n Session
	var created, seen sql.NullInt64
	err := s.r.QueryRowContext(ctx, `SELECT s.token_hash, s.user, u.role, s.created_at, s.last_seen, s.address, s.agent
		FROM sessions s JOIN users u ON u.name = s.user WHERE s.token_hash = ? AND u.disabled = 0`, tokenHash).
		Scan(&n.TokenHash, &n.User, &n.Role, &created, &seen, &n.Address, &n.Agent)
	if errors.Is(err, sql.ErrNoRows) {
		return n, ErrNotFound
	}
	if err != nil {
		return n, fmt.Errorf("cannot read session: %w", err)
	}
	n.CreatedAt, n.LastSeen = moment(created), moment(seen)
	return n, nil
}

// TouchSessions notes when sessions were last used, by the hashes of their tokens. A session that is gone stays gone.
func (s *Store) TouchSessions(last map[string]time.Time) error {
	if len(last) == 0 {
		return nil
	}
	return s.update(func(tx *sql.Tx) error {
		for hash, at := range last {
			if _, err := tx.Exec(`UPDATE sessions SET last_seen = max(last_seen, ?) WHERE token_hash = ?`, millis(at), []byte(hash)); err != nil {
				return err
			}
		}
		return nil
	})
}

// EndSession removes one session; [ErrNotFound] if it was gone already.
func (s *Store) EndSession(tokenHash []byte, by Actor) error {
	err := s.update(func(tx *sql.Tx) error {
		res, err := tx.Exec(`DELETE FROM sessions WHERE token_hash = ?`, tokenHash)
		if err := one(res, err); err != nil {
			return err
		}
		return s.event(tx, by, "session.logout", by.Name, "")
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("cannot end session: %w", err)
	}
	return err
}

// ExpireSessions removes those that were not seen since idle, or were made before created.
func (s *Store) ExpireSessions(idle, created time.Time) error {
	if err := s.exec(`DELETE FROM sessions WHERE last_seen < ? OR created_at < ?`, millis(idle), millis(created)); err != nil {
		return fmt.Errorf("cannot expire sessions: %w", err)
	}
	return nil
}
