package fetch_test

import (
	"bytes"
	"database/sql"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/slots"
	"slotfetch/store"
)

// TestUploadWaitsForRecovery: what removes the partials that nobody owns, after a crash, must not meet that of an upload.
func TestUploadWaitsForRecovery(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(81, 64<<10)
	c := &crashed{t: t, dir: t.TempDir(), url: fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve), img: img}
	var err error
	if c.store, err = store.Open(filepath.Join(c.dir, "slotfetch.db"), store.Options{}); err != nil {
		t.Fatal(err)
	}
	c.row(recoverKey)
	c.claim()
	c.do(nil, c.store.Close())
	c.partial(otherKey, 4096)
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(c.dir, "slotfetch.db"))
	c.do(nil, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	c.do(db.Exec("BEGIN IMMEDIATE"))
	b := newBox(t, c.dir, nil)
	upload := func() (slots.Slot, error) {
		return b.fetch.Upload(fetch.Upload{Body: img.Reader(), Length: img.Size()}, admin)
	}
	if _, err := upload(); err == nil || !strings.Contains(err.Error(), "not brought together") {
		t.Errorf("got %v", err)
	}
	c.do(db.Exec("COMMIT"))
	if f := b.until(recoverKey, final); f.Status != store.Finished {
		t.Errorf("got %+v", f)
	}
	if slot, err := upload(); err != nil || slot.ID != 2 || slot.Manifest.SHA256 != img.SHA256() {
		t.Errorf("got %+v, %v", slot, err)
	}
	b.noPartials()
}

// TestUploadPanics: a body that panics costs its request, as any handler's panic does, and no slot.
func TestUploadPanics(t *testing.T) {
	t.Parallel()
	b := newBox(t, t.TempDir(), nil)
	for range 5 { // more than there may be at a time
		func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			_, _ = b.fetch.Upload(fetch.Upload{Body: io.MultiReader(bytes.NewReader(make([]byte, 5<<20)), panics{}), Length: -1}, admin)
		}()
		b.noPartials()
	}
	img := fetchtest.NewImage(82, 3<<20+1)
	slot, err := b.fetch.Upload(fetch.Upload{Body: img.Reader(), Header: http.Header{}, Length: -1}, admin)
	if err != nil || slot.ID != 1 {
		t.Errorf("got %+v, %v", slot, err)
	}
	b.holds(1, img.SHA256())
	m := b.fetch
	b.close()
	if _, err := m.Upload(fetch.Upload{Body: img.Reader(), Length: -1}, admin); err == nil || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("after the end: %v", err)
	}
}

type panics struct{}

func (panics) Read([]byte) (int, error) { panic("in a body") }
