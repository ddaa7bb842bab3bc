package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mattn/go-sqlite3"

	"slotfetch/store"
)

var (
	t0    = time.UnixMilli(1_790_000_000_123)
	admin = store.Actor{Name: "ann", Address: "192.0.2.1"}
)

func open(t testing.TB, path string) *store.Store {
	t.Helper()
	s, err := store.Open(path, store.Options{Now: func() time.Time { return t0 }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() }) // again after a test's own Close: harmless
	return s
}

func fresh(t testing.TB) (*store.Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "slotfetch.db")
	return open(t, path), path
}

// raw opens the file behind the store's back, with the driver's defaults.
func raw(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func exec(t testing.TB, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.Exec(query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal(t testing.TB, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("-want +got:\n%s", d)
	}
}

// all reads every row as a whole.
func all(t testing.TB, s *store.Store) []store.Fetch {
	t.Helper()
	var out []store.Fetch
	ok(t, s.Fetches(t.Context(), func(f store.Fetch) error {
		f, err := s.Fetch(t.Context(), f.Key)
		out = append(out, f)
		return err
	}))
	return out
}

func TestOpenNew(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"slotfetch.db", "a b.db", "what?mode=memory&x#y%41.db"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, name)
			s := open(t, path)
			ok(t, s.Ping(t.Context()))
			ok(t, s.Check())
			must[store.Fetch](t)(s.Enqueue(store.Fetch{Key: "k", URL: "https://h/x"}, admin))
			entries := must[[]os.DirEntry](t)(os.ReadDir(dir))
			var names []string
			for _, e := range entries {
				names = append(names, e.Name())
				if mode := must[fs.FileInfo](t)(e.Info()).Mode(); mode != 0o600 {
					t.Errorf("%s has mode %o", e.Name(), mode)
				}
			}
			equal(t, []string{name, name + "-shm", name + "-wal"}, names)
			ok(t, s.Close())
			if entries = must[[]os.DirEntry](t)(os.ReadDir(dir)); len(entries) != 1 {
				t.Errorf("after Close there are %v", entries)
			}
			again, err := store.Open(path, store.Options{MustExist: true})
			ok(t, err)
			defer again.Close()
			if got := all(t, again); len(got) != 1 || got[0].Key != "k" {
				t.Errorf("after reopening there are %v", got)
			}
		})
	}
}

// The agent's first start and a "slotfetchd user" may meet on a database that is not there yet.
func TestOpenNewTogether(t *testing.T) {
	t.Parallel()
	for range 20 {
		path := filepath.Join(t.TempDir(), "slotfetch.db")
		const n = 4
		errs := make(chan error, n)
		start := make(chan struct{})
		for i := range n {
			go func() {
				<-start
				s, err := store.Open(path, store.Options{})
				if err == nil {
					err = errors.Join(s.Audit(admin, "x", fmt.Sprint(i), ""), s.Close())
				}
				errs <- err
			}()
		}
		close(start)
		for range n {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		equal(t, n, len(must[[]store.Event](t)(open(t, path).Events(t.Context(), 10))))
	}
}

func TestPragmas(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	pragmas := func(db interface {
		QueryRowContext(context.Context, string, ...any) *sql.Row
	}, names ...string) map[string]string {
		out := map[string]string{}
		for _, n := range names {
			var v string
			ok(t, db.QueryRowContext(t.Context(), "PRAGMA "+n).Scan(&v))
			out[n] = v
		}
		return out
	}
	writer := map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "secure_delete": "1",
		"busy_timeout": "5000", "query_only": "0", "application_id": "1936486260", "user_version": "8"}
	names := []string{"journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout", "query_only", "application_id", "user_version"}
	equal(t, writer, pragmas(s.Writer(), names...))
	equal(t, 1, s.Writer().Stats().MaxOpenConnections)

	// A connection that is lost is replaced by one with the same settings.
	c := must[*sql.Conn](t)(s.Writer().Conn(t.Context()))
	if err := c.Raw(func(any) error { return driver.ErrBadConn }); !errors.Is(err, driver.ErrBadConn) {
		t.Fatal(err)
	}
	c.Close()
	equal(t, writer, pragmas(s.Writer(), names...))

	equal(t, 4, s.Reader().Stats().MaxOpenConnections)
	for n := range 4 { // all held at once, so each is another connection
		c := must[*sql.Conn](t)(s.Reader().Conn(t.Context()))
		defer c.Close()
		equal(t, map[string]string{"query_only": "1", "busy_timeout": "5000"}, pragmas(c, "query_only", "busy_timeout"))
		exec := func(q string) error { _, err := c.ExecContext(t.Context(), q); return err }
		insert := `INSERT INTO events (at, actor, address, action, object) VALUES (1, '', '', '', '')`
		var e sqlite3.Error
		if err := exec(insert); !errors.As(err, &e) || e.Code != sqlite3.ErrReadonly {
			t.Errorf("reader %d: a write gives %v", n, err)
		}
		ok(t, exec("PRAGMA query_only = 0")) // the file itself is read-only too
		if err := exec(insert); !errors.As(err, &e) || e.Code != sqlite3.ErrReadonly {
			t.Errorf("reader %d without query_only: a write gives %v", n, err)
		}
	}
}

func TestWritesAreImmediate(t *testing.T) {
	t.Parallel()
	s, path := fresh(t)
	tx := must[*sql.Tx](t)(s.Writer().Begin())
	defer tx.Rollback() //nolint:errcheck // only ends the test
	_, err := raw(t, path+"?_busy_timeout=0").Exec("BEGIN IMMEDIATE")
	var e sqlite3.Error
	if !errors.As(err, &e) || e.Code != sqlite3.ErrBusy {
		t.Errorf("a second writer gets %v, not busy", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	// sound makes a database with enough rows for some pages, and closes it.
	sound := func(t *testing.T, path string) {
		s := open(t, path)
		exec(t, s.Writer(), seed, 500, "queued", nil, strings.Repeat("x", 100))
		ok(t, s.Close())
	}
	pragma := func(text string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			sound(t, path)
			db := raw(t, path)
			exec(t, db, text)
			ok(t, db.Close())
		}
	}
	// other is a database that is not ours, with the journal mode that SQLite starts with.
	other := func(text string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			db := raw(t, path)
			exec(t, db, text)
			ok(t, db.Close())
		}
	}
	write := func(content string) func(*testing.T, string) {
		return func(t *testing.T, path string) { ok(t, os.WriteFile(path, []byte(content), 0o600)) }
	}
	tests := []struct {
		name      string
		mustExist bool
		make      func(*testing.T, string)
		want      error
		text      string
		logged    bool // part of the content is in a log, which SQLite brings into the file
	}{
		{name: "missing, must exist", mustExist: true, make: func(*testing.T, string) {}, want: fs.ErrNotExist},
		{name: "zero length, must exist", mustExist: true, make: write(""), want: store.ErrCorrupt, text: "empty"},
		{name: "zero length", make: write("")},
		{name: "sound, must exist", mustExist: true, make: sound},
		{name: "garbage", make: write(strings.Repeat("no database, ", 1000)), want: store.ErrCorrupt},
		{name: "short garbage", make: write("hello"), want: store.ErrCorrupt},
		{name: "flipped page", make: func(t *testing.T, path string) {
			sound(t, path)
			b := must[[]byte](t)(os.ReadFile(path))
			at := bytes.LastIndex(b, []byte("https://")) &^ 4095
			for i := range 256 {
				b[at+i] ^= 0xff
			}
			ok(t, os.WriteFile(path, b, 0o600))
		}, want: store.ErrCorrupt},
		{name: "cut", make: func(t *testing.T, path string) {
			sound(t, path)
			ok(t, os.Truncate(path, must[fs.FileInfo](t)(os.Stat(path)).Size()/8192*4096))
		}, want: store.ErrCorrupt},
		{name: "newer schema", make: pragma("PRAGMA user_version = 1000"), want: store.ErrNewer, text: "1000"},
		{name: "foreign application", make: pragma("PRAGMA application_id = 42"), want: store.ErrCorrupt, text: "0x2a"},
		{name: "unmarked, with a schema", make: pragma("PRAGMA application_id = 0"), want: store.ErrCorrupt, text: "another program"},
		{name: "another program's", make: other("CREATE TABLE t (x)"), want: store.ErrCorrupt, text: "another program"},
		{name: "another program's, in WAL mode, not checkpointed", make: func(t *testing.T, path string) {
			// The header of the file itself still says "empty": the tables are in the log only.
			db := raw(t, path+"?_journal_mode=WAL")
			db.SetMaxOpenConns(1)
			exec(t, db, "CREATE TABLE t (x)")
			for _, suffix := range []string{"-wal", ""} {
				b := must[[]byte](t)(os.ReadFile(path + suffix))
				ok(t, os.WriteFile(path+".copy"+suffix, b, 0o600))
			}
			ok(t, db.Close())
			ok(t, os.Rename(path+".copy", path))
			ok(t, os.Rename(path+".copy-wal", path+"-wal"))
		}, want: store.ErrCorrupt, text: "another program", logged: true},
		{name: "another program's, marked", make: other("PRAGMA application_id = 42; CREATE TABLE t (x)"), want: store.ErrCorrupt, text: "0x2a"},
		{name: "no folder", make: func(t *testing.T, path string) { ok(t, os.Remove(filepath.Dir(path))) }, want: fs.ErrNotExist, text: "cannot create database"},
		{name: "a folder", make: func(t *testing.T, path string) { ok(t, os.Mkdir(path, 0o700)) }, want: sqlite3.ErrCantOpen, text: "cannot open database"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "slotfetch.db")
			tt.make(t, path)
			before, _ := os.ReadFile(path)
			s, err := store.Open(path, store.Options{MustExist: tt.mustExist})
			if err == nil {
				defer s.Close()
			}
			var e sqlite3.Error
			if errors.As(err, &e) && errors.Is(e.Code, tt.want) {
				err = e.Code
			} else if err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %q does not say %q", err, tt.text)
			}
			if !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			for _, other := range []error{store.ErrCorrupt, store.ErrNewer} {
				if other != tt.want && errors.Is(err, other) {
					t.Errorf("error %v is also %v", err, other)
				}
			}
			if after, _ := os.ReadFile(path); err != nil && !tt.logged && !bytes.Equal(before, after) {
				t.Error("the refused file has changed")
			}
			if errors.Is(err, store.ErrNewer) || !errors.Is(err, store.ErrCorrupt) {
				return
			}
			for n := 1; n <= 2; n++ { // twice: the second must not replace the first
				ok(t, os.WriteFile(path+"-wal", []byte("log"), 0o600))
				aside := must[string](t)(store.SetAside(path))
				equal(t, fmt.Sprintf("%s.corrupt-%d", path, n), aside)
				equal(t, "log", string(must[[]byte](t)(os.ReadFile(aside+"-wal"))))
				if got := must[[]byte](t)(os.ReadFile(aside)); n == 1 && !tt.logged && !bytes.Equal(before, got) {
					t.Error("what was set aside has changed")
				}
				clean := open(t, path)
				ok(t, clean.Check())
				equal(t, 0, len(all(t, clean)))
				ok(t, clean.Close())
			}
		})
	}
}

// An unprivileged user's view of folders without write permission. Root ignores those, so the thread gives up root
// for files only; it is not unlocked and ends with the goroutine.
func TestOpenReadOnlyFolder(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	ok(t, os.Chmod(filepath.Dir(top), 0o755))
	ok(t, os.Chmod(top, 0o755))
	old := filepath.Join(top, "old.db")
	ok(t, open(t, old).Close())
	ok(t, os.Chmod(old, 0o444))
	ok(t, os.Chmod(top, 0o555))
	defer os.Chmod(top, 0o755) //nolint:errcheck // for the clean-up
	done := make(chan struct{})
	var created, opened error
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if os.Geteuid() == 0 {
			syscall.RawSyscall(syscall.SYS_SETFSUID, 65534, 0, 0)
		}
		_, created = store.Open(filepath.Join(top, "new.db"), store.Options{})
		_, opened = store.Open(old, store.Options{})
	}()
	<-done
	if !errors.Is(created, fs.ErrPermission) || !strings.Contains(created.Error(), "cannot create database") {
		t.Errorf("new: %v", created)
	}
	if opened == nil || errors.Is(opened, store.ErrCorrupt) || !strings.Contains(opened.Error(), "cannot open database") {
		t.Errorf("old: %v", opened)
	}
}

func TestLocked(t *testing.T) {
	t.Parallel()
	s, path := fresh(t)
	c := must[*sql.Conn](t)(raw(t, path).Conn(t.Context()))
	defer c.Close()
	must[sql.Result](t)(c.ExecContext(t.Context(), "BEGIN IMMEDIATE"))
	start := time.Now()
	_, err := s.Enqueue(store.Fetch{Key: "k", URL: "https://h/x"}, admin)
	var e sqlite3.Error
	if !errors.As(err, &e) || e.Code != sqlite3.ErrBusy {
		t.Errorf("error %v, want busy", err)
	}
	if store.Full(err) {
		t.Error("busy is taken for a full disk")
	}
	if d := time.Since(start); d < 4*time.Second || d > 12*time.Second {
		t.Errorf("it took %v", d)
	}
	if _, err := s.Fetch(t.Context(), "k"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("reading meanwhile gives %v", err)
	}
	must[sql.Result](t)(c.ExecContext(t.Context(), "ROLLBACK"))
	must[store.Fetch](t)(s.Enqueue(store.Fetch{Key: "k", URL: "https://h/x"}, admin))
}

// TestLockedForMany has many writers wait for a lock at the same time: they give up together, not one after the other.
func TestLockedForMany(t *testing.T) {
	t.Parallel()
	s, path := fresh(t)
	c := must[*sql.Conn](t)(raw(t, path).Conn(t.Context()))
	defer c.Close()
	must[sql.Result](t)(c.ExecContext(t.Context(), "BEGIN IMMEDIATE"))
	start := time.Now()
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			if _, err := s.Enqueue(store.Fetch{Key: fmt.Sprint(i), URL: "https://h/x"}, admin); !store.Busy(err) {
				t.Errorf("error %v, want busy", err)
			}
		})
	}
	wg.Wait()
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
	must[sql.Result](t)(c.ExecContext(t.Context(), "ROLLBACK"))
	must[store.Fetch](t)(s.Enqueue(store.Fetch{Key: "k", URL: "https://h/x"}, admin))
	equal(t, 1, len(all(t, s)))
}

func TestFull(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	exec(t, s.Writer(), "PRAGMA max_page_count = 1")
	_, err := s.Enqueue(store.Fetch{Key: "k", URL: "https://h/" + strings.Repeat("x", 100_000)}, admin)
	if !store.Full(err) {
		t.Errorf("error %v is not taken for a full disk", err)
	}
	equal(t, 0, len(all(t, s)))
	exec(t, s.Writer(), "PRAGMA max_page_count = 100000")
	must[store.Fetch](t)(s.Enqueue(store.Fetch{Key: "k", URL: "https://h/x"}, admin))
}

func TestTwoHandles(t *testing.T) {
	t.Parallel()
	agent, path := fresh(t)
	command := open(t, path)
	must[store.Fetch](t)(agent.Enqueue(store.Fetch{Key: "k", URL: "https://h/x"}, admin))
	ok(t, command.AddUser(store.User{Name: "bob", PasswordHash: "h", Role: "viewer"}, admin))
	if u := must[store.User](t)(agent.User(t.Context(), "bob")); u.Role != "viewer" {
		t.Errorf("the agent sees %+v", u)
	}
	if f := must[store.Fetch](t)(command.Fetch(t.Context(), "k")); f.Status != store.Queued {
		t.Errorf("the command sees %+v", f)
	}
	errs := make(chan error, 2)
	for n, s := range []*store.Store{agent, command} {
		go func() {
			var err error
			for i := range 50 {
				err = errors.Join(err, s.Audit(admin, "slot.delete", fmt.Sprint(n), fmt.Sprint(i)))
			}
			errs <- err
		}()
	}
	ok(t, errors.Join(<-errs, <-errs))
	ok(t, command.Close())
	equal(t, 102, len(must[[]store.Event](t)(agent.Events(t.Context(), 1000))))
	ok(t, agent.Audit(admin, "x", "", "")) // still works after the other has closed
}

func TestBackup(t *testing.T) {
	t.Parallel()
	s, path := fresh(t)
	exec(t, s.Writer(), seed, 300, "queued", nil, "x")
	ok(t, s.AddUser(store.User{Name: "bob", PasswordHash: "h", Role: "viewer"}, admin))
	target := filepath.Join(filepath.Dir(path), "it's a backup.db")
	ok(t, s.Backup(target))
	if mode := must[fs.FileInfo](t)(os.Stat(target)).Mode(); mode != 0o600 {
		t.Errorf("mode %o", mode)
	}
	for _, there := range []string{target, path} {
		before := must[[]byte](t)(os.ReadFile(there))
		if err := s.Backup(there); err == nil || !strings.Contains(err.Error(), "exists already") {
			t.Errorf("onto %s: %v", there, err)
		}
		if !bytes.Equal(before, must[[]byte](t)(os.ReadFile(there))) {
			t.Errorf("%s has changed", there)
		}
	}
	if err := s.Backup(filepath.Join(target, "x")); err == nil {
		t.Error("a backup into no folder succeeds")
	}
	copied, err := store.Open(target, store.Options{MustExist: true})
	ok(t, err)
	defer copied.Close()
	ok(t, copied.Check())
	equal(t, all(t, s), all(t, copied))
	equal(t, must[[]store.User](t)(s.Users(t.Context())), must[[]store.User](t)(copied.Users(t.Context())))
	equal(t, must[[]store.Event](t)(s.Events(t.Context(), 1000)), must[[]store.Event](t)(copied.Events(t.Context(), 1000)))
}

func TestAudit(t *testing.T) {
	t.Parallel()
	s, path := fresh(t)
	ok(t, s.Audit(admin, "slot.delete", "2", "was 1.2.3"))
	ok(t, s.Audit(store.Actor{Name: "bob"}, "slot.activate", "1", ""))
	want := []store.Event{
		{At: t0, Actor: "bob", Action: "slot.activate", Object: "1"},
		{At: t0, Actor: "ann", Address: "192.0.2.1", Action: "slot.delete", Object: "2", Detail: "was 1.2.3"},
	}
	equal(t, want, must[[]store.Event](t)(s.Events(t.Context(), 10)))
	equal(t, want[:1], must[[]store.Event](t)(s.Events(t.Context(), 1)))
	for _, q := range []string{"UPDATE events SET actor = 'eve'", "DELETE FROM events", "DELETE FROM events WHERE id = 1"} {
		if _, err := raw(t, path).Exec(q); err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: %v", q, err)
		}
	}
	equal(t, want, must[[]store.Event](t)(s.Events(t.Context(), 10)))
}

// The audit is bounded: logins alone would fill the disk. What is left is append-only still.
func TestAuditLimit(t *testing.T) {
	t.Parallel()
	s, path := fresh(t)
	const keep = 100_000
	exec(t, s.Writer(), `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
		INSERT INTO events (at, actor, address, action, object) SELECT i, 'ann', '', 'session.login', 'ann' FROM n`, keep+2999)
	span := func() (lowest, highest, count int) {
		t.Helper()
		ok(t, s.Reader().QueryRow("SELECT min(id), max(id), count(*) FROM events").Scan(&lowest, &highest, &count))
		return lowest, highest, count
	}
	if low, high, n := span(); low != 2001 || high != keep+2999 || n != high-low+1 {
		t.Errorf("%d rows from %d to %d", n, low, high)
	}
	ok(t, s.Audit(admin, "slot.delete", "2", ""))
	if low, high, n := span(); low != 3001 || high != keep+3000 || n != keep {
		t.Errorf("after one more: %d rows from %d to %d", n, low, high)
	}
	for _, q := range []string{"DELETE FROM events", "DELETE FROM events WHERE id = 3001"} {
		if _, err := raw(t, path).Exec(q); err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: %v", q, err)
		}
	}
}
