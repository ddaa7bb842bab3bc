package main_test

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

// TestMigrationPoints starts the agent on a database of each older version, with all that newPointLab makes in it, as an
// agent of then left it when it was killed. It kills the start at its nth call of each kind by which a database changes, or
// has that call fail; the next start has everything, in a database of today's version. SLOTFETCH_POINTS and SLOTFETCH_SEED as for TestKillPoints.
func TestMigrationPoints(t *testing.T) {
	t.Parallel()
	needStrace(t)
	seed := setting(t, "SLOTFETCH_SEED", uint64(time.Now().UnixNano()))
	t.Logf("SLOTFETCH_SEED=%d", seed)
	scripts := migrationScripts(t)
	l := newPointLab(t, seed)
	l.today = filepath.Join(t.TempDir(), "today")
	copyTree(t, l.pristine, l.today)
	for version := 1; version < len(scripts); version++ {
		t.Run(fmt.Sprintf("from_%d", version), func(t *testing.T) {
			l.renewed = func(t *testing.T) {
				copyTree(t, l.today, l.pristine)
				older(t, filepath.Join(l.today, "slotfetch.db"), filepath.Join(l.pristine, "slotfetch.db"), scripts[:version])
			}
			l.renewed(t)
			x := l.begin(t)
			if v := x.a.schema(t); v != version {
				t.Fatalf("the database has version %d, not %d", v, version)
			}
			x.a.under = countCalls(l.trace)
			x.a.start(t)
			x.a.stop(t, syscall.SIGTERM)
			calls := callsOf(x.a.traced(t, l.trace))
			x.a.under = nil
			changing := map[string]int{}
			for _, call := range []string{"write", "pwrite64", "fsync", "fdatasync", "ftruncate", "unlink"} {
				changing[call] = calls[call]
			}
			all := choose(t, seed, changing, append(failures(), "signal=KILL"), 8)
			before := 0
			for _, p := range all {
				t.Run(p.String(), func(t *testing.T) {
					if l.migrate(t, p) == version {
						before++
					}
				})
			}
			t.Logf("RAN %d points, %d of them before a migration was durable; calls of a thread: %v", len(all), before, changing)
		})
	}
}

// migrate is one start with harm at p, and the next one without. It gives the version that the first one left.
func (l *pointLab) migrate(t *testing.T, p point) (left int) {
	x := l.begin(t)
	defer func() {
		x.a.kill()
		if t.Failed() {
			t.Logf("the agent's log:\n%s", x.a.log)
		}
	}()
	x.closeGate()
	x.a.under = p.strace(l.trace)
	x.fault = strings.HasPrefix(p.harm, "error=") // the interrupted fetch may be the one whose call fails
	if x.a.launch(t) {
		_ = x.a.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
	}
	fetchtest.Await(t, "the agent's end", x.a.done)
	x.a.under = nil
	left = x.a.schema(t)
	x.verifyAfter()
	if v, want := x.a.schema(t), len(migrationScripts(t)); v != want {
		t.Errorf("the database has version %d, not %d", v, want)
	}
	if aside, err := filepath.Glob(x.a.database() + ".corrupt-*"); err != nil || aside != nil {
		t.Errorf("set aside: %v, %v", aside, err)
	}
	return left
}

// schema is the version of a copy of the database: to look at the file itself would be to repair it.
func (a *agent) schema(t *testing.T) (version int) {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copy.db")
	for _, suffix := range []string{"", "-wal"} {
		text, err := os.ReadFile(a.database() + suffix)
		if suffix != "" && errors.Is(err, os.ErrNotExist) {
			continue
		}
		check(t, err)
		check(t, os.WriteFile(copied+suffix, text, 0o600))
	}
	db, err := sql.Open("sqlite3", "file:"+copied)
	check(t, err)
	defer db.Close()
	check(t, db.QueryRow("PRAGMA user_version").Scan(&version))
	return version
}

// migrationScripts are the migrations, in their order.
func migrationScripts(t *testing.T) (scripts []string) {
	t.Helper()
	names, err := filepath.Glob("../../store/migrations/*.sql")
	check(t, err)
	for _, name := range names {
		text, err := os.ReadFile(name)
		check(t, err)
		scripts = append(scripts, string(text))
	}
	if len(scripts) < 2 {
		t.Fatal("no migrations")
	}
	return scripts
}

// older makes the database that has seen scripts only, with the rows of today's as far as it has room for them, and its
// write-ahead log as a kill leaves it.
func older(t *testing.T, today, file string, scripts []string) {
	t.Helper()
	draft := filepath.Join(t.TempDir(), "draft.db")
	db, err := sql.Open("sqlite3", "file:"+draft+"?_journal_mode=WAL")
	check(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	exec := func(query string, args ...any) {
		t.Helper()
		_, err := db.Exec(query, args...)
		check(t, err)
	}
	text := func(query string, args ...any) (s string) {
		t.Helper()
		check(t, db.QueryRow(query, args...).Scan(&s))
		return s
	}
	for _, script := range scripts {
		exec(script)
	}
	exec("ATTACH ? AS today", today)
	for table := range strings.SplitSeq(text(`SELECT group_concat(name) FROM main.sqlite_schema WHERE type = 'table'`), ",") {
		columns := text(`SELECT group_concat('"' || name || '"') FROM pragma_table_info(?, 'main')`, table)
		exec(fmt.Sprintf("DELETE FROM main.%s", table))
		exec(fmt.Sprintf("INSERT INTO main.%[1]s (%[2]s) SELECT %[2]s FROM today.%[1]s", table, columns))
	}
	exec(fmt.Sprintf("PRAGMA main.application_id = %s", text("PRAGMA today.application_id")))
	exec(fmt.Sprintf("PRAGMA main.user_version = %d", len(scripts)))
	exec("DETACH today")
	for _, suffix := range []string{"-wal", "-shm"} {
		check(t, os.RemoveAll(file+suffix))
	}
	for _, suffix := range []string{"", "-wal"} {
		text, err := os.ReadFile(draft + suffix)
		check(t, err)
		check(t, os.WriteFile(file+suffix, text, 0o600))
	}
}
