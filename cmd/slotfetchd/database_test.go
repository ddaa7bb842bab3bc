package main_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"

	"slotfetch/fetch/fetchtest"
)

func (a *agent) database() string { return filepath.Join(a.state, "slotfetch.db") }

// refuse starts the agent, which must not serve, and gives its exit code and what it said.
func (a *agent) refuse(t *testing.T) (code int, said string) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), fetchtest.Patience)
	defer stop()
	out, err := exec.CommandContext(ctx, program, "--config", a.config, "serve").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || strings.Contains(string(out), "agent ready") {
		t.Fatalf("the agent started: %v\n%s", err, out)
	}
	return exit.ExitCode(), string(out)
}

// newPassword reads the first password again, after the users are gone.
func (a *agent) newPassword(t *testing.T) {
	t.Helper()
	password, err := os.ReadFile(filepath.Join(a.state, "initial-admin-password"))
	check(t, err)
	a.admin = strings.TrimSpace(string(password))
}

// TestUnusableDatabase damages the database in all ways: the agent sets it aside and serves; slots need no database.
func TestUnusableDatabase(t *testing.T) {
	t.Parallel()
	for _, damage := range []struct {
		name string
		do   func(text []byte) []byte
	}{
		{"garbage for a header", func(text []byte) []byte { return append(bytes.Repeat([]byte("garbage!"), 16), text[128:]...) }},
		{"garbage for a page in the middle", func(text []byte) []byte {
			copy(text[len(text)/2/4096*4096:], bytes.Repeat([]byte("garbage!"), 512))
			return text
		}},
		{"truncated", func(text []byte) []byte { return text[:len(text)/2/4096*4096] }},
		{"truncated within the header", func(text []byte) []byte { return text[:50] }},
		{"empty", func([]byte) []byte { return nil }},
		{"another file", func([]byte) []byte { return []byte("This is no database.\n") }},
	} {
		t.Run(damage.name, func(t *testing.T) {
			t.Parallel()
			a := startAgent(t, "")
			c := a.loginAdmin(t)
			c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished")
			a.stop(t, syscall.SIGTERM)
			unusable(t, a, c, damage.do)
		})
	}
}

func unusable(t *testing.T, a *agent, old *client, damage func([]byte) []byte) {
	t.Helper()
	for n := range 2 {
		text, err := os.ReadFile(a.database())
		check(t, err)
		bad := damage(text)
		check(t, os.WriteFile(a.database(), bad, 0o600))
		a.start(t)
		old.do(t, "GET", slotsPath, "").want(t, 401)
		a.newPassword(t)
		c := a.loginAdmin(t)
		c.do(t, "GET", slotsPath+"/1", "").want(t, 200).is(t, "body.sha256", small.SHA256())
		a.holds(t, "1", small)
		c.do(t, "GET", fetches, "").want(t, 200).is(t, "items", []any{})
		c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished").is(t, "body.slot_id", 2+n)
		kept, err := os.ReadFile(fmt.Sprintf("%s.corrupt-%d", a.database(), n+1))
		check(t, err)
		if !bytes.Equal(kept, bad) {
			t.Errorf("what was set aside is not the damaged file")
		}
		if !strings.Contains(a.log.String(), "the database was unusable") {
			t.Error("the log does not tell")
		}
		a.stop(t, syscall.SIGTERM)
	}
}

// TestUnusableDatabaseWithCredentials: with systemd's credentials there is no seal.key in the state directory.
func TestUnusableDatabaseWithCredentials(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "seal.key"), bytes.Repeat([]byte{7}, 32), 0o600))
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	for name, damage := range map[string]func([]byte) []byte{
		"garbage": func(text []byte) []byte { return bytes.Repeat([]byte("garbage!"), 1024) },
		"empty":   func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			a := startAgent(t, "")
			c := a.loginAdmin(t)
			c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished")
			a.stop(t, syscall.SIGTERM)
			unusable(t, a, c, damage)
		})
	}
}

// TestMissingDatabase is a start after somebody removed it.
func TestMissingDatabase(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished")
	a.stop(t, syscall.SIGTERM)
	check(t, os.Remove(a.database()))
	a.start(t)
	a.newPassword(t)
	a.loginAdmin(t).do(t, "GET", slotsPath+"/1", "").want(t, 200).is(t, "body.sha256", small.SHA256())
	if !strings.Contains(a.log.String(), "the database was unusable") {
		t.Error("the log does not tell")
	}
}

// TestRefusedDatabase has databases that must be left alone.
func TestRefusedDatabase(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, a *agent)
		code int
		says []string
	}{
		{"of a newer version", func(t *testing.T, a *agent) {
			db := a.sqlite(t)
			_, err := db.Exec("PRAGMA user_version = 99")
			check(t, errors.Join(err, db.Close()))
		}, 78, []string{"newer than this program", "schema version 99", "install the newer program, or restore a backup"}},
		{"a directory", func(t *testing.T, a *agent) {
			check(t, os.Rename(a.database(), a.database()+".old"))
			check(t, os.Mkdir(a.database(), 0o700))
		}, 1, []string{"cannot open database", "directory"}},
		{"unwritable", func(t *testing.T, a *agent) { immutable(t, a.database()) }, 1, []string{"cannot open database: cannot write ", "slotfetch.db: operation not permitted"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := startAgent(t, "")
			a.stop(t, syscall.SIGTERM)
			before, _ := os.ReadFile(a.database())
			tt.do(t, a)
			if tt.code == 78 {
				before, _ = os.ReadFile(a.database())
			}
			code, said := a.refuse(t)
			for _, want := range tt.says {
				if code != tt.code || !strings.Contains(said, want) {
					t.Errorf("exit code %d, want %d with %q:\n%s", code, tt.code, want, said)
				}
			}
			if strings.Contains(said, "panic") || strings.Count(said, "\n") > 3 {
				t.Errorf("not a clear message:\n%s", said)
			}
			if left, err := filepath.Glob(a.database() + ".corrupt-*"); err != nil || left != nil {
				t.Errorf("set aside: %v, %v", left, err)
			}
			if after, _ := os.ReadFile(a.database()); tt.name != "a directory" && !bytes.Equal(after, before) {
				t.Error("the database was changed")
			}
		})
	}
}

// immutable keeps even root from changing path until the test is over.
func immutable(t *testing.T, path string) (undo func()) {
	t.Helper()
	if out, err := exec.Command("chattr", "+i", path).CombinedOutput(); err != nil {
		t.Skipf("nothing here keeps root from writing: chattr: %v %s", err, out)
	}
	undo = sync.OnceFunc(func() {
		if out, err := exec.Command("chattr", "-i", path).CombinedOutput(); err != nil {
			t.Errorf("chattr: %v %s", err, out)
		}
	})
	t.Cleanup(undo)
	return undo
}

// sqlite is a second process's view of the database, as good as.
func (a *agent) sqlite(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+a.database()+"?_busy_timeout=10000")
	check(t, err)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	return db
}

// TestLockedDatabase has another process hold the database's lock for longer than the agent waits for it: reads go on,
// writes are refused within bounds, a fetch waits with its next step, and nothing that was accepted is lost.
func TestLockedDatabase(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	server, slow := serveStalling(t, small)
	running := c.fetch(t, slow, small.SHA256())
	x := server.Next(t)
	c.awaitPhase(t, running, "downloading")
	queued := c.fetch(t, serveSmall(t), small.SHA256())

	db := a.sqlite(t)
	_, err := db.Exec("BEGIN EXCLUSIVE")
	check(t, err)
	began := time.Now()
	x.Release() // the running fetch goes on to verify and to install, which it has to record
	const callers = 24
	url := serveSmall(t)
	answers := make(chan reply, callers)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			c := &client{a: a, cookie: c.cookie, http: c.http}
			r, err := c.try("POST", fetches, order(url, small.SHA256()))
			if err != nil {
				t.Error(err)
			}
			answers <- r
		})
	}
	c.do(t, "GET", fetches, "").want(t, 200).is(t, "items.2", nil)
	c.do(t, "GET", queued, "").want(t, 200).is(t, "body.status", "queued")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("reading took %s", took)
	}
	c.do(t, "DELETE", queued, "").fails(t, 503, "ServiceUnavailable", "")
	a.stranger(t).do(t, "GET", "/api/authentication", "", "Authorization", basic("admin", a.admin)).fails(t, 503, "ServiceUnavailable", "")
	wg.Wait()
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("refusing took %s", took)
	}
	for range callers {
		(<-answers).fails(t, 503, "ServiceUnavailable", "")
	}
	c.do(t, "GET", running, "").want(t, 200).is(t, "body.status", "in-progress", "body.error", nil)

	_, err = db.Exec("ROLLBACK")
	check(t, err)
	c.awaitStatus(t, running, "finished")
	c.awaitStatus(t, queued, "finished")
	c.awaitStatus(t, c.fetch(t, url, small.SHA256()), "finished")
	c.do(t, "GET", fetches, "").want(t, 200).is(t, "items.3", nil)
	if left := a.partials(t); left != nil {
		t.Errorf("left behind: %v", left)
	}

	// A start meanwhile: the agent serves, and recovers when it can.
	running = c.fetch(t, slow, small.SHA256())
	server.Next(t)
	c.awaitPhase(t, running, "downloading")
	a.stop(t, syscall.SIGKILL)
	_, err = db.Exec("BEGIN EXCLUSIVE")
	check(t, err)
	a.start(t)
	c.do(t, "GET", running, "").want(t, 200).is(t, "body.status", "in-progress")
	if log := a.log.String(); !strings.Contains(log, "no fetch runs until it can be done") {
		t.Error("the log does not tell")
	}
	_, err = db.Exec("ROLLBACK")
	check(t, err)
	server.Next(t).Release()
	c.awaitStatus(t, running, "finished")
}

// TestSharedSlots: two agents with a state directory each must not share their slots.
func TestSharedSlots(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	extra := fmt.Sprintf("[slots]\ndir = %q\n", dir)
	a := startAgent(t, extra)
	c := a.loginAdmin(t)
	b := newAgent(t, extra)
	if code, said := b.refuse(t); code != 1 || !strings.Contains(said, "cannot open slots in "+dir+": directory is locked by another agent") {
		t.Errorf("exit code %d: %s", code, said)
	}
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished")
	a.stop(t, syscall.SIGKILL) // the kernel gives the lock back
	b.start(t)
	b.newPassword(t)
	b.loginAdmin(t).do(t, "GET", slotsPath+"/1", "").want(t, 200).is(t, "body.sha256", small.SHA256())
	b.stop(t, syscall.SIGTERM)
}
