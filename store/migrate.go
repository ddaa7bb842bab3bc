package store

import (
	"database/sql"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// migrations lead from one version of the schema to the next: the files in the order of their names, without a gap.
//
//go:embed migrations/*.sql
var migrations embed.FS

// applicationID marks our files ("slot" in ASCII), so that another program's database is not taken for ours.
const applicationID = 0x736c6f74

// migrate applies the embedded migrations that the file has not seen. keep has it copied before the first one.
func (s *Store) migrate(keep bool) error {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return err
	}
	for {
		version, err := schemaVersion(s.w)
		if err != nil {
			return err
		}
		switch {
		case version > len(names):
			return fmt.Errorf("%w: it has schema version %d, this program knows up to %d; install the newer program, or restore a backup",
				ErrNewer, version, len(names))
		case version == len(names):
			return nil
		}
		text, err := migrations.ReadFile(names[version])
		if err != nil {
			return err
		}
		if version > 0 && keep {
			// A disk that has no room for it should not keep the agent from starting, nor the image of which it is a part.
			if err := s.keepCopy(version); err != nil && !Full(err) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
				return fmt.Errorf("cannot copy the database before migrating it: %w", err)
			}
		}
		keep = false // what is made anew needs no copy
		if err := s.update(func(tx *sql.Tx) error { return step(tx, version, string(text)) }); err != nil {
			return fmt.Errorf("cannot migrate to schema %d: %w", version+1, err)
		}
	}
}

// step leads from version to the next, unless another process, which may open the file at the same time, has done so.
func step(tx *sql.Tx, version int, text string) error {
	now, err := schemaVersion(tx)
	if err != nil || now != version {
		return err
	}
	_, err = tx.Exec(fmt.Sprintf("%s;\nPRAGMA application_id = %d;\nPRAGMA user_version = %d", text, applicationID, version+1))
	return err
}

// schemaVersion is the number of migrations that the file has seen. A file with content that is not ours is refused.
func schemaVersion(db interface {
	QueryRow(query string, args ...any) *sql.Row
}) (int, error) {
	var app, version, content int
	if err := db.QueryRow("SELECT a.application_id, v.user_version, (SELECT count(*) FROM sqlite_schema) FROM pragma_application_id a, pragma_user_version v").
		Scan(&app, &version, &content); err != nil {
		return 0, err
	}
	if app != applicationID && (app != 0 || version != 0 || content != 0) {
		return 0, foreign(uint32(app))
	}
	return version, nil
}

func foreign(app uint32) error {
	return fmt.Errorf("%w: it belongs to another program (application_id %#x)", ErrCorrupt, app)
}

// checkHeader refuses another program's file before SQLite opens it and makes it a WAL one. It sees the file only,
// not the write-ahead log that may say more; that is left to migrate. (Offsets: sqlite.org/fileformat2.html, 1.3.)
func checkHeader(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var header [100]byte
	if _, err := io.ReadFull(f, header[:]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil // empty is new; too short is for SQLite to judge
	} else if err != nil {
		return err
	}
	number := func(offset int) uint32 { return binary.BigEndian.Uint32(header[offset:]) }
	schemaCookie, userVersion, app := number(40), number(60), number(68)
	if string(header[:16]) == "SQLite format 3\x00" && app != applicationID && (app != 0 || userVersion != 0 || schemaCookie != 0) {
		return foreign(app)
	}
	return nil
}

// copySuffix, and the version of its schema, is behind the name of a copy.
const copySuffix = ".schema"

// keepCopy copies the database as it is, for a program that knows no later version: a box may go back to the firmware before.
// The copies before it are not needed any more.
func (s *Store) keepCopy(version int) error {
	name := s.path + copySuffix + strconv.Itoa(version)
	draft := name + ".new"
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.Backup(draft); err != nil {
		return err
	}
	old, err := copies(s.path)
	if err != nil {
		return err
	}
	if err := os.Rename(draft, name); err != nil {
		return err
	}
	for _, c := range old {
		if c.name != name {
			if err := os.Remove(c.name); err != nil {
				return err
			}
		}
	}
	return syncPath(filepath.Dir(s.path))
}

// copied is a database that was copied before a migration.
type copied struct {
	name    string
	version int
}

func copies(path string) (out []copied, err error) {
	names, err := filepath.Glob(path + copySuffix + "*")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if n, err := strconv.Atoi(strings.TrimPrefix(name, path+copySuffix)); err == nil {
			out = append(out, copied{name, n})
		}
	}
	return out, nil
}

// Older sets a database aside that a newer program has migrated, and puts the newest copy of before in its place that this
// program knows. It returns what the newer one is called now, and fs.ErrNotExist if there is no such copy.
func Older(path string) (aside string, err error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return "", err
	}
	all, err := copies(path)
	if err != nil {
		return "", err
	}
	best := copied{}
	for _, c := range all {
		if c.version <= len(names) && c.version > best.version {
			best = c
		}
	}
	if best.version == 0 {
		return "", fmt.Errorf("no copy of the database is old enough: %w", fs.ErrNotExist)
	}
	if aside, err = setAside(path, "newer"); err != nil {
		return "", err
	}
	if err := os.Rename(best.name, path); err != nil {
		return aside, err
	}
	return aside, syncPath(filepath.Dir(path))
}
