package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/mattn/go-sqlite3"
)

// User is somebody who may log in.
type User struct {
	Name string
	// PasswordHash is an argon2id PHC string.
	PasswordHash string
	// Role is admin, operator or viewer.
	Role      string
	Disabled  bool
	CreatedAt time.Time
}

const userColumns = `name, password_hash, role, disabled, created_at`

func scanUser(row interface{ Scan(...any) error }) (User, error) {
	var u User
	var created sql.NullInt64
	err := row.Scan(&u.Name, &u.PasswordHash, &u.Role, &u.Disabled, &created)
	if errors.Is(err, sql.ErrNoRows) {
		return u, ErrNotFound
	}
	u.CreatedAt = moment(created)
	return u, err
}

// AddUser adds u; [ErrExists] if the name is taken.
func (s *Store) AddUser(u User, by Actor) error {
	err := s.update(func(tx *sql.Tx) error {
		now := millis(s.now())
		if _, err := tx.Exec(`INSERT INTO users (name, password_hash, role, created_at, changed_at) VALUES (?, ?, ?, ?, ?)`,
			u.Name, u.PasswordHash, u.Role, now, now); err != nil {
			return err
		}
		return s.event(tx, by, "user.add", u.Name, u.Role)
	})
	var e sqlite3.Error
	if errors.As(err, &e) && e.Code == sqlite3.ErrConstraint && e.ExtendedCode == sqlite3.ErrConstraintPrimaryKey {
		return ErrExists
	}
	if err != nil {
		return fmt.Errorf("cannot add user: %w", err)
	}
	return nil
}

// User reads one user; [ErrNotFound] if there is none.
func (s *Store) User(ctx context.Context, name string) (User, error) {
	u, err := scanUser(s.r.QueryRowContext(ctx, `SELECT `+userColumns+` FROM users WHERE name = ?`, name))
	if err != nil && !errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("cannot read user: %w", err)
	}
	return u, err
}

// Users lists all users by name.
func (s *Store) Users(ctx context.Context) ([]User, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT `+userColumns+` FROM users ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("cannot list users: %w", err)
	}
	defer rows.Close()
	var out []User
	for rows.Next() {
		u, err := scanUser(rows)
		if err != nil {
			return nil, fmt.Errorf("cannot list users: %w", err)
		}
		out = append(out, u)
	}
	return out, rows.Err()
}

// SetPassword changes the hash and ends all sessions of the user.
func (s *Store) SetPassword(name, hash string, by Actor) error {
	return s.changeUser(name, "user.passwd", "", by, true, `password_hash = ?`, hash)
}

// SetRole changes the role; sessions go on with the new one.
func (s *Store) SetRole(name, role string, by Actor) error {
	return s.changeUser(name, "user.role", role, by, false, `role = ?`, role)
}

// SetDisabled shuts a user out, which ends the user's sessions, or lets the user in again. Both end them: a login
// that was under way when the user was shut out must not come alive later.
func (s *Store) SetDisabled(name string, disabled bool, by Actor) error {
	action := "user.enable"
	if disabled {
		action = "user.disable"
	}
	return s.changeUser(name, action, "", by, true, `disabled = ?`, disabled)
}

func (s *Store) changeUser(name, action, detail string, by Actor, endSessions bool, set string, arg any) error {
	err := s.update(func(tx *sql.Tx) error {
		res, err := tx.Exec(`UPDATE users SET changed_at = ?, `+set+` WHERE name = ?`, millis(s.now()), arg, name)
		if err := one(res, err); err != nil {
			return err
		}
		if endSessions {
			if _, err := tx.Exec(`DELETE FROM sessions WHERE user = ?`, name); err != nil {
				return err
			}
		}
		return s.event(tx, by, action, name, detail)
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("cannot change user: %w", err)
	}
	return err
}

// RemoveUser removes the user and the user's sessions.
func (s *Store) RemoveUser(name string, by Actor) error {
	err := s.update(func(tx *sql.Tx) error {
		res, err := tx.Exec(`DELETE FROM users WHERE name = ?`, name)
		if err := one(res, err); err != nil {
			return err
		}
		return s.event(tx, by, "user.remove", name, "")
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("cannot remove user: %w", err)
	}
	return err
}

func one(res sql.Result, err error) error {
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n > 0 {
		return err
	}
	return ErrNotFound
}
