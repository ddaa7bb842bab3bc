package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// UpgradeStatus is how far an upgrade has come.
type UpgradeStatus string

const (
	// UpgradeRequested is before the boot loader knows.
	UpgradeRequested UpgradeStatus = "requested"
	// UpgradeActivated waits for the reboot.
	UpgradeActivated UpgradeStatus = "activated"
	// UpgradeBooted runs, and has yet to prove healthy.
	UpgradeBooted UpgradeStatus = "booted"
	// UpgradeReverting has the boot loader forget it.
	UpgradeReverting UpgradeStatus = "reverting"
	// UpgradeConfirmed runs for good.
	UpgradeConfirmed UpgradeStatus = "confirmed"
	// UpgradeFailed does not; Reason says why.
	UpgradeFailed UpgradeStatus = "failed"
)

// Final tells whether nothing more happens.
func (s UpgradeStatus) Final() bool { return s == UpgradeConfirmed || s == UpgradeFailed }

// keptUpgrades is how many are kept; the oldest go.
const keptUpgrades = 1000

// Upgrade is one activation of a slot.
type Upgrade struct {
	ID     string
	Status UpgradeStatus
	// Request is the id of what the root side was asked last.
	Request string
	// BootID is the boot in which the status was reached.
	BootID string
	// From is nil if it was unknown which slot ran.
	From               *int
	FromVersion        string
	FromSHA256         string // of the image that ran; empty if unknown
	To                 int
	ToVersion, SHA256  string
	Message, Reboot    string
	Rollback           bool
	Reason             string
	CreatedBy          string
	CreatedAt, EndTime time.Time // EndTime is zero unless final
}

// AddUpgrade stores a new one, which begins as requested. [ErrConflict] if another is under way.
func (s *Store) AddUpgrade(u Upgrade, by Actor) error {
	err := s.update(func(tx *sql.Tx) error {
		res, err := tx.Exec(`INSERT INTO upgrades (id, status, request, boot_id, from_slot, from_version, from_sha256, to_slot, to_version, sha256, message, reboot, rollback,
			created_by, created_at) SELECT ?, 'requested', ?, ?, ?, ?, nullif(?, ''), ?, ?, ?, ?, ?, ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM upgrades WHERE end_time IS NULL)`,
			u.ID, u.Request, u.BootID, u.From, u.FromVersion, u.FromSHA256, u.To, u.ToVersion, u.SHA256, u.Message, u.Reboot, u.Rollback, by.Name, millis(s.now()))
		if err := one(res, err); err != nil {
			return err
		}
		if _, err := tx.Exec(`DELETE FROM upgrades WHERE seq <= (SELECT max(seq) FROM upgrades) - ?`, keptUpgrades); err != nil {
			return err
		}
		return s.event(tx, by, "upgrade.request", u.ID, fmt.Sprintf("slot %d, version %s: %s", u.To, u.ToVersion, u.Message))
	})
	if errors.Is(err, ErrNotFound) {
		return ErrConflict
	}
	if err != nil {
		return fmt.Errorf("cannot store upgrade: %w", err)
	}
	return nil
}

// MoveUpgrade takes an upgrade from one status to that of u, with u's request, boot and reason. [ErrConflict] if it has
// another status by now.
func (s *Store) MoveUpgrade(u Upgrade, from UpgradeStatus, by Actor) error {
	err := s.update(func(tx *sql.Tx) error {
		var end any
		if u.Status.Final() {
			end = millis(s.now())
		}
		res, err := tx.Exec(`UPDATE upgrades SET status = ?, request = ?, boot_id = ?, reason = nullif(?, ''), end_time = ? WHERE id = ? AND status = ?`,
			u.Status, u.Request, u.BootID, u.Reason, end, u.ID, from)
		if err := one(res, err); err != nil {
			return err
		}
		return s.event(tx, by, "upgrade."+string(u.Status), u.ID, u.Reason)
	})
	if errors.Is(err, ErrNotFound) {
		return ErrConflict
	}
	if err != nil {
		return fmt.Errorf("cannot change upgrade %s: %w", u.ID, err)
	}
	return nil
}

const upgradeColumns = `SELECT id, status, request, boot_id, from_slot, from_version, coalesce(from_sha256, ''), to_slot, to_version, sha256, message, reboot, rollback,
	coalesce(reason, ''), created_by, created_at, end_time FROM upgrades `

// Upgrades lists all that are kept, newest first.
func (s *Store) Upgrades(ctx context.Context) ([]Upgrade, error) {
	return s.upgrades(ctx, `ORDER BY seq DESC`)
}

// Upgrade reads one; [ErrNotFound] if there is none.
func (s *Store) Upgrade(ctx context.Context, id string) (Upgrade, error) {
	return first(s.upgrades(ctx, `WHERE id = ?`, id))
}

// LiveUpgrade is the one under way; [ErrNotFound] if none is.
func (s *Store) LiveUpgrade(ctx context.Context) (Upgrade, error) {
	return first(s.upgrades(ctx, `WHERE end_time IS NULL`))
}

// LastUpgradeTo is the last one that brought the box to a slot; [ErrNotFound] if none did.
func (s *Store) LastUpgradeTo(ctx context.Context, slot int) (Upgrade, error) {
	return first(s.upgrades(ctx, `WHERE to_slot = ? AND status = 'confirmed' ORDER BY seq DESC LIMIT 1`, slot))
}

func first(list []Upgrade, err error) (Upgrade, error) {
	if err == nil && len(list) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return Upgrade{}, err
	}
	return list[0], nil
}

func (s *Store) upgrades(ctx context.Context, where string, args ...any) ([]Upgrade, error) {
	rows, err := s.r.QueryContext(ctx, upgradeColumns+where, args...)
	if err != nil {
		return nil, fmt.Errorf("cannot read upgrades: %w", err)
	}
	defer rows.Close()
	var out []Upgrade
	for rows.Next() {
		var u Upgrade
		var created, ended sql.NullInt64
		if err := rows.Scan(&u.ID, &u.Status, &u.Request, &u.BootID, &u.From, &u.FromVersion, &u.FromSHA256, &u.To, &u.ToVersion, &u.SHA256, &u.Message, &u.Reboot,
			&u.Rollback, &u.Reason, &u.CreatedBy, &created, &ended); err != nil {
			return nil, fmt.Errorf("cannot read upgrades: %w", err)
		}
		u.CreatedAt, u.EndTime = moment(created), moment(ended)
		out = append(out, u)
	}
	return out, rows.Err()
}
