package store_test

import (
	"errors"
	"path/filepath"
	"testing"
	"sync"

	"slotfetch/store"
)

func TestExpConcurrentOpen(t *testing.T) {
	for round := range 20 {
		path := filepath.Join(t.TempDir(), "x.db")
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				s, err := store.Open(path, store.Options{})
				if err != nil {
					t.Error(round, err)
					return
				}
				s.Close()
			})
		}
		wg.Wait()
	}
}

func TestExpForeign(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db := raw(t, path)
	exec(t, db, "CREATE TABLE a (b)")
	db.Close()
	_, err := store.Open(path, store.Options{})
	t.Log("app 0 version 0 with tables:", err, errors.Is(err, store.ErrCorrupt))
	path = filepath.Join(t.TempDir(), "y.db")
	db = raw(t, path)
	exec(t, db, "CREATE TABLE a (b); PRAGMA application_id=42")
	db.Close()
	_, err = store.Open(path, store.Options{})
	var m string
	db = raw(t, path)
	ok(t, db.QueryRow("PRAGMA journal_mode").Scan(&m))
	t.Log("foreign:", err, m)
}
