package store

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

//go:embed migrations/*.sql
var migrations embed.FS

// applicationID marks our files ("slot" in ASCII), so that another program's database is not taken for ours.
const applicationID = 0x736c6f74

// migrate applies the embedded migrations that the file has not seen, each with its user_version in one
// transaction. The number before the underscore of a file name is the version that it leads to.
func (s *Store) migrate() error {
	var app, version int
	if err := errors.Join(
		s.w.QueryRow("PRAGMA application_id").Scan(&app),
		s.w.QueryRow("PRAGMA user_version").Scan(&version)); err != nil {
		return err
	}
	if app != applicationID && (app != 0 || version != 0) {
		return fmt.Errorf("%w: it belongs to another program (application_id %#x)", ErrCorrupt, app)
	}
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return err
	}
	if version > len(names) {
		return fmt.Errorf("%w: it has schema version %d, this program knows up to %d; install the newer program, or restore a backup",
			ErrNewer, version, len(names))
	}
	for _, name := range names {
		number, _, _ := strings.Cut(path.Base(name), "_")
		n, err := strconv.Atoi(number)
		if err != nil {
			return fmt.Errorf("cannot read migration %s: %w", name, err)
		}
		if n <= version {
			continue
		}
		text, err := migrations.ReadFile(name)
		if err != nil {
			return err
		}
		tx, err := s.w.Begin()
		if err != nil {
			return err
		}
		_, err = tx.Exec(fmt.Sprintf("%s;\nPRAGMA application_id = %d;\nPRAGMA user_version = %d", text, applicationID, n))
		if err == nil {
			err = tx.Commit()
		}
		if err != nil {
			_ = tx.Rollback()
			return fmt.Errorf("cannot migrate to schema %d: %w", n, err)
		}
	}
	return nil
}
