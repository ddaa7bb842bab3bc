package store_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"slotfetch/store"
)

// TestOlder: what a newer program has migrated is set aside for the copy of before, if there is one.
func TestOlder(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "slotfetch.db")
	s := open(t, path)
	ok(t, s.AddUser(store.User{Name: "ann", PasswordHash: "x", Role: "admin"}, admin))
	ok(t, s.Backup(path+".schema4")) // the newest that this program knows; it opens it all the same
	ok(t, s.Close())
	if _, err := store.Older(filepath.Join(t.TempDir(), "none.db")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a copy: %v", err)
	}
	db := raw(t, path)
	_, err := db.Exec("PRAGMA user_version = 1000")
	ok(t, err)
	ok(t, db.Close())
	ok(t, os.WriteFile(path+".schema999", []byte("of a newer one"), 0o600))
	if _, err := store.Open(path, store.Options{}); !errors.Is(err, store.ErrNewer) {
		t.Fatal(err)
	}
	aside := must[string](t)(store.Older(path))
	equal(t, path+".newer-1", aside)
	users := must[[]store.User](t)(open(t, path).Users(t.Context()))
	equal(t, "ann", users[0].Name)
	if _, err := os.Stat(aside); err != nil {
		t.Error(err)
	}
}

// TestKeepCopy: a migration leaves a copy of before, and of several only the last.
func TestKeepCopy(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "slotfetch.db")
	text := must[[]byte](t)(os.ReadFile("migrations/0001_core.sql"))
	db := raw(t, path)
	for _, statement := range []string{string(text), "PRAGMA application_id = 1936486260", "PRAGMA user_version = 1"} {
		_, err := db.Exec(statement)
		ok(t, err)
	}
	ok(t, db.Close())
	ok(t, os.WriteFile(path+".schema0", nil, 0o600))
	s := must[*store.Store](t)(store.Open(path, store.Options{KeepCopy: true}))
	ok(t, s.Close())
	copies := must[[]string](t)(filepath.Glob(path + ".schema*"))
	equal(t, []string{path + ".schema1"}, copies)
	s = must[*store.Store](t)(store.Open(path, store.Options{KeepCopy: true})) // nothing to migrate
	ok(t, s.Close())
	fresh := filepath.Join(t.TempDir(), "new.db")
	ok(t, must[*store.Store](t)(store.Open(fresh, store.Options{KeepCopy: true})).Close())
	if none := must[[]string](t)(filepath.Glob(fresh + ".schema*")); none != nil {
		t.Errorf("a new database has %v", none)
	}
	old := raw(t, copies[0])
	var version int
	ok(t, old.QueryRow("PRAGMA user_version").Scan(&version))
	equal(t, 1, version)
	ok(t, old.Close())
}
