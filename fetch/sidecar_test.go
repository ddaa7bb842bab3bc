package fetch_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
	"slotfetch/store"
)

// alone enqueues a fetch whose request says nothing of a digest, and which goes on without.
func (b *box) alone(raw string, change func(*fetch.Request)) string {
	b.t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		b.t.Fatal(err)
	}
	q := fetch.Request{URL: u, Sidecar: fetch.SidecarOptional}
	if change != nil {
		change(&q)
	}
	f, err := b.fetch.Enqueue(q, admin)
	if err != nil {
		b.t.Fatal(err)
	}
	return f.Key
}

// TestImplausible: without a digest, what is certainly no image, or perhaps not all of it, gets into no slot.
func TestImplausible(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(140, 300_000)
	file := func(change func(*fetchtest.File)) fetchtest.Handler {
		f := fetchtest.Whole(img)
		change(&f)
		return f.Serve
	}
	for _, tc := range []struct {
		name   string
		h      fetchtest.Handler
		status store.Status
		code   string
	}{
		{"a file", file(func(*fetchtest.File) {}), store.Finished, ""},
		{"in chunks", file(func(f *fetchtest.File) { f.Chunked = true }), store.Finished, ""},
		{"in chunks, cut", file(func(f *fetchtest.File) { f.Chunked, f.Fault, f.After = true, fetchtest.FIN, 100_000 }), store.Failed, "broken"},
		{"without a length", file(func(f *fetchtest.File) { f.Length = -1 }), store.Failed, "no_end"},
		{"without a length, cut", file(func(f *fetchtest.File) { f.Length, f.Fault, f.After = -1, fetchtest.FIN, 100_000 }), store.Failed, "no_end"},
		{"a login page", text("\n<!DOCTYPE html><title>Log in</title>"), store.Failed, "html"},
		{"nothing", text(""), store.Failed, "empty"},
		{"nothing in chunks", fetchtest.Raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), store.Failed, "empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, t.TempDir(), nil)
			f := b.until(b.alone(fetchtest.NewHTTP(t, nil).Handle("/a.iso", tc.h), nil), final)
			if f.Status != tc.status || f.ErrorCode != tc.code {
				t.Fatalf("got %s %s %q", f.Status, f.ErrorCode, f.Error)
			}
			if f.Status == store.Finished {
				b.holds(*f.SlotID, img.SHA256())
				return
			}
			list, err := b.slots.List()
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range list {
				if s.Manifest != nil {
					t.Errorf("slot %d has %+v", s.ID, s.Manifest)
				}
			}
		})
	}
}

// TestPageForImage: a page where the image should be is named, whatever digest was wanted.
func TestPageForImage(t *testing.T) {
	t.Parallel()
	b := newBox(t, t.TempDir(), nil)
	want := fetchtest.NewImage(141, 1000).SHA256()
	f := b.until(b.enqueue(fetchtest.NewHTTP(t, nil).Handle("/a.iso", text("<html>Log in")), want), final)
	if f.ErrorCode != "html" || !strings.HasPrefix(f.Error, fmt.Sprintf("SHA-256 mismatch: expected %s, got ", want)) || !strings.Contains(f.Error, "login page") {
		t.Errorf("got %s %q", f.ErrorCode, f.Error)
	}
}

// TestTwoFiles: without a digest, a file that was exchanged for another of the same size and date is never continued; a
// strong entity tag is proof enough.
func TestTwoFiles(t *testing.T) {
	t.Parallel()
	const half = 4 << 20
	one, two := fetchtest.NewImage(142, 2*half), fetchtest.NewImage(143, 2*half)
	dated := func(img *fetchtest.Image, fault fetchtest.Fault) fetchtest.Handler {
		f := fetchtest.Whole(img)
		f.ETag, f.Fault, f.After = "", fault, half
		return f.Serve
	}
	tagged := func(fault fetchtest.Fault) fetchtest.Handler {
		f := fetchtest.Whole(one)
		f.Fault, f.After = fault, half
		return f.Serve
	}
	untold := fetchtest.Whole(two)
	untold.ETag, untold.NoIfRange = "", true
	web := func(handlers ...fetchtest.Handler) func(*testing.T) string {
		return func(t *testing.T) string {
			return fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Sequence(handlers...))
		}
	}
	for _, tc := range []struct {
		name string
		raw  func(*testing.T) string
		stop bool // the agent, in the middle
		want *fetchtest.Image
		from int64
	}{
		{"HTTP breaks", web(dated(one, fetchtest.FIN), dated(two, fetchtest.None)), false, two, 0},
		{"HTTP, the agent stops", web(dated(one, fetchtest.Stall), dated(two, fetchtest.None)), true, two, 0},
		{"HTTP with a tag breaks", web(tagged(fetchtest.FIN), tagged(fetchtest.None)), false, one, half},
		{"HTTP with a tag, the agent stops", web(tagged(fetchtest.Stall), tagged(fetchtest.None)), true, one, half},
		{"HTTP, a tag that is not repeated", web(tagged(fetchtest.FIN), untold.Serve), false, two, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, t.TempDir(), nil)
			key := b.alone(tc.raw(t), nil)
			if tc.stop {
				b.arrives(key, half)
				b.close()
				b = newBox(t, b.dir, nil)
			}
			f := b.until(key, final)
			if f.Status != store.Finished || f.ResumedFrom != tc.from {
				t.Fatalf("got %+v", f)
			}
			b.holds(*f.SlotID, tc.want.SHA256())
		})
	}
}

// TestAloneTwice: what turns out to be in a slot already fills no second one, unless that is asked for.
func TestAloneTwice(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(144, 300_000)
	raw := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve)
	b := newBox(t, t.TempDir(), nil)
	two := 2
	for _, tc := range []struct {
		change func(*fetch.Request)
		slot   int
		there  bool
	}{
		{nil, 1, false},
		{nil, 1, true},
		{func(q *fetch.Request) { q.Slot = &two }, 2, false},
		{func(q *fetch.Request) { q.Force = true }, 3, false},
	} {
		key := b.alone(raw, tc.change)
		f := b.until(key, final)
		if f.Status != store.Finished || *f.SlotID != tc.slot || f.Deduplicated != tc.there || f.SHA256 != img.SHA256() || f.BytesDownloaded != img.Size() {
			t.Errorf("want slot %d, there %v; got %+v", tc.slot, tc.there, f)
		}
		if left, err := filepath.Glob(filepath.Join(b.dir, "slots", ".part", key+"*")); err != nil || len(left) != 0 {
			t.Errorf("left %v, %v", left, err)
		}
	}
	// The slot that was reserved for the second is free again.
	if f := b.until(b.alone(fetchtest.NewHTTP(t, nil).Handle("/b.iso", fetchtest.Whole(fetchtest.NewImage(145, 1000)).Serve), nil), final); *f.SlotID != 4 {
		t.Errorf("got %+v", f)
	}
}

// TestNothingOfUse: whatever a server has in the place of a checksum file, if it is no trouble, is none.
func TestNothingOfUse(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(146, 1000)
	for name, h := range map[string]fetchtest.Handler{
		"204":        fetchtest.Raw("HTTP/1.1 204 No Content\r\n\r\n"),
		"compressed": fetchtest.Raw("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx"),
		"too large":  fetchtest.Raw("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nx"),
	} {
		srv := fetchtest.NewHTTP(t, nil)
		raw := srv.Handle("/d/a.iso", fetchtest.Whole(img).Serve)
		srv.Handle("/d/a.iso.sha256", h)
		b := newBox(t, t.TempDir(), func(c *fetch.Config) {
			var err error
			if c.Source, err = source.New(source.Config{Egress: fetchtest.Loopback(), MaxSize: 10_000}); err != nil {
				t.Fatal(err)
			}
		})
		required := func(q *fetch.Request) { q.Sidecar = fetch.SidecarRequired }
		f := b.until(b.alone(raw, required), final)
		if f.ErrorCode != "no_checksum" || !strings.Contains(f.Error, "tried a.iso.sha256 ("+name+") and SHA256SUMS (404)") {
			t.Errorf("%s: got %s %s %q", name, f.Status, f.ErrorCode, f.Error)
		}
		srv.Handle("/d/SHA256SUMS", text(img.SHA256()+"  a.iso\n"))
		if f := b.until(b.alone(raw, required), final); f.Status != store.Finished {
			t.Errorf("%s: got %s %s %q", name, f.Status, f.ErrorCode, f.Error)
		}
	}
	// A directory is in its place.
	dir := t.TempDir()
	img.WriteFile(t, dir, "a.iso", time.Now())
	if err := os.Mkdir(filepath.Join(dir, "a.iso.sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(img.SHA256()+"  a.iso\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBox(t, t.TempDir(), func(c *fetch.Config) {
		var err error
		if c.Source, err = source.New(source.Config{FileRoots: []string{dir}}); err != nil {
			t.Fatal(err)
		}
	})
	if f := b.until(b.alone("file://"+filepath.Join(dir, "a.iso"), nil), final); f.Status != store.Finished {
		t.Errorf("got %s %s %q", f.Status, f.ErrorCode, f.Error)
	}
}

// TestTypedURL: what an FTP URL says of the kind of transfer is no part of a name.
func TestTypedURL(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(147, 1000)
	srv := fetchtest.NewFTP(t, fetchtest.Script{Files: map[string]*fetchtest.Image{"d/a.iso": img}})
	b := newBox(t, t.TempDir(), nil)
	f := b.until(b.alone(srv.URL+"/d/a.iso;type=i", func(q *fetch.Request) { q.Sidecar = fetch.SidecarRequired }), final)
	if f.ErrorCode != "no_checksum" || !strings.HasPrefix(f.Error, "No SHA-256 for a.iso: tried a.iso.sha256 (550) and SHA256SUMS (550).") {
		t.Errorf("got %s %s %q", f.Status, f.ErrorCode, f.Error)
	}
	f = b.until(b.alone(srv.URL+"/d/a.iso;type=I", nil), final)
	if f.Status != store.Finished {
		t.Fatalf("got %s %s %q", f.Status, f.ErrorCode, f.Error)
	}
	b.holds(*f.SlotID, img.SHA256())
	list, err := b.slots.List()
	if err != nil {
		t.Fatal(err)
	}
	if m := list[0].Manifest; m == nil || m.Name != "a.iso" {
		t.Errorf("got %+v", m)
	}
	asked := map[string]bool{}
	for _, s := range srv.Sessions() {
		for _, c := range s.Commands() {
			asked[c] = true
		}
	}
	for _, c := range []string{"RETR d/a.iso.sha256", "RETR d/SHA256SUMS", "RETR d/a.iso"} {
		if !asked[c] {
			t.Errorf("no %s in %v", c, asked)
		}
	}
}
