// Package store keeps what must survive in SQLite: the queue of fetches and its state machine, users, sessions,
// and the audit. It is the only package that knows SQL.
//
// One file, one writer connection (WAL, synchronous FULL, immediate transactions) and a pool of read-only ones.
// A method that changes something returns after the change is durable. Writes take no cancellable context: an
// interrupted statement can leave its transaction open (mattn/go-sqlite3#681, #764). All methods are safe for
// concurrent use, also by several processes on one file (the agent and an offline "slotfetchd user").
//
// An error from a write that is none of this package's sentinels may hide a COMMIT that is durable all the same.
// The caller then touches nothing and reads again.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/mattn/go-sqlite3"
	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound means that there is no such row.
	ErrNotFound = errors.New("not found")
	// ErrConflict means that the row is not in the state that the change expects: somebody else won.
	ErrConflict = errors.New("state has changed")
	// ErrExists means that a row of that name is there already.
	ErrExists = errors.New("exists already")
	// ErrNewer means that a newer version of the program wrote the database.
	ErrNewer = errors.New("database is newer than this program")
	// ErrCorrupt means that the file is no sound SQLite database of ours.
	ErrCorrupt = errors.New("database is corrupt")
)

// Options change how a database is opened.
type Options struct {
	// MustExist refuses to make a new database: other state shows that there was one.
	MustExist bool
	// KeepCopy has the database copied before it is migrated, see [Older]. Only one process at a time may ask for it.
	KeepCopy bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Store is an open database.
type Store struct {
	path  string
	w, r  *sql.DB
	now   func() time.Time
	turns turns
}

const (
	readers = 4
	// patience bounds the wait for a lock well below any client's.
	patience = 5 * time.Second
)

// Open opens or makes the database at path, checks its integrity and brings its schema up to date. The errors
// are [ErrCorrupt], [ErrNewer], fs.ErrNotExist (with MustExist), or what the system says.
func Open(path string, o Options) (*Store, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := checkFile(path, o.MustExist); err != nil {
		return nil, err
	}
	s := &Store{path: path, now: o.Now}
	busyTimeout := strconv.FormatInt(patience.Milliseconds(), 10)
	var err error
	if s.w, err = sql.Open("sqlite3", dsn(path, url.Values{
		"_journal_mode":  {"WAL"},
		"_synchronous":   {"FULL"},
		"_txlock":        {"immediate"},
		"_busy_timeout":  {busyTimeout},
		"_foreign_keys":  {"1"},
		"_secure_delete": {"on"},
		"_cache_size":    {"-4000"},
	})); err != nil {
		return nil, fmt.Errorf("cannot open database: %w", err)
	}
	s.w.SetMaxOpenConns(1)
	// While another process makes the same file a WAL one, SQLite answers "busy" at once, whatever the timeout.
	err = s.prepare(o.KeepCopy)
	for end := time.Now().Add(patience); Busy(err) && time.Now().Before(end); err = s.prepare(o.KeepCopy) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		s.w.Close()
		return nil, fmt.Errorf("cannot open database: %w", noInodes(path, corrupt(err)))
	}
	// The readers come after the writer, which makes the -shm file that they need.
	if s.r, err = sql.Open("sqlite3", dsn(path, url.Values{
		"mode": {"ro"}, "_query_only": {"1"}, "_busy_timeout": {busyTimeout}, "_cache_size": {"-1000"},
	})); err != nil {
		s.w.Close()
		return nil, fmt.Errorf("cannot open database: %w", err)
	}
	s.r.SetMaxOpenConns(readers)
	s.r.SetMaxIdleConns(readers)
	return s, nil
}

func dsn(path string, v url.Values) string {
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: v.Encode()}).String()
}

// checkFile catches what SQLite would take for a new database.
func checkFile(path string, mustExist bool) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !mustExist:
		// Made here, so that it is never readable by others, whatever the umask.
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("cannot create database: %w", err)
		}
		return f.Close()
	case err != nil:
		return fmt.Errorf("cannot open database: %w", err)
	case info.Size() == 0 && mustExist:
		return fmt.Errorf("cannot open database: %w: the file is empty", ErrCorrupt)
	case !info.Mode().IsRegular():
		return nil // SQLite says it better
	}
	// SQLite would open it for reading, and fail later, at the first change.
	if err := unix.Access(path, unix.W_OK); err != nil {
		return fmt.Errorf("cannot open database: cannot write %s: %w", path, err)
	}
	if err := checkHeader(path); err != nil {
		return fmt.Errorf("cannot open database: %w", err)
	}
	return nil
}

// noInodes adds to err that the log beside the database cannot be made for want of inodes, where that is so: SQLite only
// says that it cannot open a file.
func noInodes(path string, err error) error {
	var e sqlite3.Error
	var st unix.Statfs_t
	if errors.As(err, &e) && e.Code == sqlite3.ErrCantOpen && unix.Statfs(path, &st) == nil && st.Files > 0 && st.Ffree == 0 {
		return fmt.Errorf("the file system of %s has no inode left for its log; remove files that are not needed: %w", path, err)
	}
	return err
}

// prepare reads the settings back (a wrong one would lose acknowledged rows in a power cut), checks the file and
// migrates it.
func (s *Store) prepare(keepCopy bool) error {
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "secure_delete": "1"} {
		var got string
		if err := s.w.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil {
			return fmt.Errorf("cannot read PRAGMA %s: %w", pragma, err)
		}
		if got != want {
			return fmt.Errorf("cannot set PRAGMA %s: it is %q, not %q", pragma, got, want)
		}
	}
	if err := s.integrity("quick_check"); err != nil {
		return err
	}
	return s.migrate(keepCopy)
}

// Check runs SQLite's full integrity check, which reads the whole file.
func (s *Store) Check() error { return s.integrity("integrity_check") }

func (s *Store) integrity(pragma string) error {
	var verdict string
	if err := s.w.QueryRow("PRAGMA " + pragma + "(1)").Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return fmt.Errorf("%w: %s", ErrCorrupt, verdict)
	}
	return nil
}

// corrupt marks the errors by which SQLite says that the file is not sound.
func corrupt(err error) error {
	var e sqlite3.Error
	if errors.As(err, &e) && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

// Busy tells whether a write was given up because the database was locked for too long, or other writes came first.
func Busy(err error) bool {
	var e sqlite3.Error
	return errors.Is(err, errTurn) || errors.As(err, &e) && e.Code == sqlite3.ErrBusy
}

// Full tells whether a write failed because the disk is full.
func Full(err error) bool {
	var e sqlite3.Error
	return errors.As(err, &e) && e.Code == sqlite3.ErrFull
}

// SetAside renames a corrupt database, and what belongs to it, to the first free PATH.corrupt-N, and returns
// that name. Nothing is deleted.
func SetAside(path string) (string, error) { return setAside(path, "corrupt") }

func setAside(path, why string) (string, error) {
	for n := 1; ; n++ {
		aside := fmt.Sprintf("%s.%s-%d", path, why, n)
		if _, err := os.Lstat(aside); err == nil {
			continue
		}
		for _, suffix := range []string{"-wal", "-shm", ""} {
			if err := os.Rename(path+suffix, aside+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", fmt.Errorf("cannot set the database aside: %w", err)
			}
		}
		return aside, syncPath(filepath.Dir(path))
	}
}

// syncPath flushes a file, or the names in a directory.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Ping tells whether the database answers a read.
func (s *Store) Ping(ctx context.Context) error {
	var n int
	return s.r.QueryRowContext(ctx, "SELECT count(*) FROM users WHERE name = ''").Scan(&n)
}

// Backup writes a consistent copy to path, which must not exist yet, while the agent goes on. It is durable on return.
func (s *Store) Backup(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("cannot back up: %s exists already", path)
	}
	old, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("cannot back up: %w", err)
	}
	old.Close()
	if _, err = s.w.Exec("VACUUM INTO ?", path); err == nil {
		// Who has a backup may lose the original, and SQLite does not promise that copy and name are on the disk.
		err = errors.Join(syncPath(path), syncPath(filepath.Dir(path)))
	}
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("cannot back up: %w", err)
	}
	return nil
}

// Close flushes the write-ahead log into the database and closes it.
func (s *Store) Close() error {
	err1 := s.r.Close()
	err2 := s.write(func(c *sql.Conn) (err error) {
		// What optimize writes is statistics, which need no flush of their own: that of the checkpoint is theirs too.
		for _, pragma := range []string{"synchronous = NORMAL", "optimize", "synchronous = FULL", "wal_checkpoint(TRUNCATE)"} {
			_, perr := c.ExecContext(context.Background(), "PRAGMA "+pragma)
			err = errors.Join(err, perr)
		}
		return err
	})
	return errors.Join(err1, err2, s.w.Close())
}

// errTurn means that other writes held the connection for too long.
var errTurn = errors.New("the database is busy with other writes")

// write lends f the one connection that writes, if it is free in time: each write before it may have to wait for a
// lock, and their waits must not add up.
func (s *Store) write(f func(c *sql.Conn) error) error {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	c, err := s.w.Conn(ctx)
	stop()
	if errors.Is(err, context.DeadlineExceeded) {
		return errTurn
	}
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

// exec runs one statement that writes.
func (s *Store) exec(statement string, args ...any) error {
	return s.write(func(c *sql.Conn) error {
		_, err := c.ExecContext(context.Background(), statement, args...)
		return err
	})
}

// update runs f in one immediate transaction.
func (s *Store) update(f func(tx *sql.Tx) error) error {
	return s.write(func(c *sql.Conn) error {
		tx, err := c.BeginTx(context.Background(), nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() //nolint:errcheck // after a commit it has nothing to do
		if err := f(tx); err != nil {
			return err
		}
		return tx.Commit()
	})
}

// scrub empties the write-ahead log, where the old content of erased secrets would stay.
func (s *Store) scrub() {
	// A reader may keep the log alive; the next scrub, or Close, does it then.
	_ = s.exec("PRAGMA wal_checkpoint(TRUNCATE)")
}

func millis(t time.Time) int64 { return t.UnixMilli() }

func moment(ms sql.NullInt64) time.Time {
	if !ms.Valid {
		return time.Time{}
	}
	return time.UnixMilli(ms.Int64)
}
