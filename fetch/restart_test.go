package fetch_test

import (
	"database/sql"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/store"
)

// locked takes the write lock of the box's database, as another program may, and gives the function that ends that.
func locked(t *testing.T, dir string) (unlock func()) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, "slotfetch.db")+"?_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("BEGIN IMMEDIATE"); err != nil {
		t.Error(err)
	}
	return func() {
		if _, err := db.Exec("ROLLBACK"); err != nil {
			t.Error(err)
		}
	}
}

// TestRestartForgets changes from a partial of one source to another source: the row's checkpoint is gone, durably,
// before the first byte of the partial is.
func TestRestartForgets(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(64, 8<<20)
	srv := fetchtest.NewHTTP(t, nil)
	cut := fetchtest.Whole(img)
	cut.Fault, cut.After = fetchtest.FIN, 6<<20
	dir := t.TempDir()
	var unlock func()
	whole := func(x *fetchtest.Exchange) {
		unlock = locked(t, dir)
		fetchtest.Whole(img).Serve(x)
	}
	refused := make(chan struct{})
	b := newBox(t, dir, func(c *fetch.Config) {
		c.Log = slog.New(&awaited{Handler: c.Log.Handler(), message: "cannot record that the fetch is starting at byte 0", seen: refused})
	})
	key := b.mirrored(img.SHA256(), srv.Handle("/a.iso", fetchtest.Sequence(cut.Serve, fetchtest.Status(404))), srv.Handle("/b.iso", whole))
	fetchtest.Await(t, "the checkpoint to stay", refused)
	partial := filepath.Join(dir, "slots", ".part", key+".partial")
	info, err := os.Stat(partial)
	f := b.get(key)
	if err != nil || info.Size() < 6<<20 || f.Checkpoint.Offset != 6<<20 {
		t.Errorf("checkpoint at %d, partial %+v, %v", f.Checkpoint.Offset, info, err)
	}
	unlock()
	if f := b.until(key, final); f.Status != store.Finished || f.Attempts != 3 {
		t.Errorf("got %+v", f)
	}
}
