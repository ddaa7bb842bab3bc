package fetch_test

import (
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"testing"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/store"
)

// mirrored enqueues a fetch with mirrors.
func (b *box) mirrored(sha256 string, raw ...string) string {
	b.t.Helper()
	var all []*url.URL
	for _, r := range raw {
		u, err := url.Parse(r)
		if err != nil {
			b.t.Fatal(err)
		}
		all = append(all, u)
	}
	f, err := b.fetch.Enqueue(fetch.Request{URL: all[0], Mirrors: all[1:], SHA256: sha256}, admin)
	if err != nil {
		b.t.Fatal(err)
	}
	return f.Key
}

// TestDeadMirror has a server that is away for a moment, and mirrors that do not deliver: the partial is still there
// when the server is back.
func TestDeadMirror(t *testing.T) {
	img := fetchtest.NewImage(11, 8<<20)
	for name, mirror := range map[string]func(*fetchtest.HTTP) string{
		"refuses the connection": func(*fetchtest.HTTP) string { return "http://127.0.0.1:1/a.iso" },
		"has no such file":       func(s *fetchtest.HTTP) string { return s.URL + "/missing.iso" },
		"breaks off": func(s *fetchtest.HTTP) string {
			cut := fetchtest.Whole(img)
			cut.Fault, cut.After = fetchtest.FIN, 100_000
			return s.Handle("/b.iso", cut.Serve)
		},
		"has a login page": func(s *fetchtest.HTTP) string {
			return s.Handle("/b.iso", fetchtest.Raw("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n<html>Log in!</html>"))
		},
		"sends a part unasked": func(s *fetchtest.HTTP) string {
			return s.Handle("/b.iso", fetchtest.Raw("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 9-9/10\r\nContent-Length: 1\r\n\r\nx"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv, other := fetchtest.NewHTTP(t, nil), fetchtest.NewHTTP(t, nil)
			cut := fetchtest.Whole(img)
			cut.Fault, cut.After = fetchtest.FIN, 6<<20
			raw := srv.Handle("/a.iso", fetchtest.Sequence(cut.Serve, fetchtest.Status(503), fetchtest.Whole(img).Serve))
			b := newBox(t, t.TempDir(), nil)
			f := b.until(b.mirrored(img.SHA256(), raw, mirror(other)), final)
			if f.Status != store.Finished {
				t.Fatalf("got %+v", f)
			}
			b.holds(*f.SlotID, img.SHA256())
			seen := srv.Requests()
			if got := seen[len(seen)-1].Header.Get("Range"); got != "bytes=6291456-" {
				t.Errorf("6 MiB were here; the last request asked for %q", got)
			}
		})
	}
}

// TestResumeAtMirror stops the agent in the middle of what a mirror sends: it goes on at the mirror, though the first
// server is back.
func TestResumeAtMirror(t *testing.T) {
	img := fetchtest.NewImage(15, 8<<20)
	srv := fetchtest.NewHTTP(t, nil)
	first := srv.Handle("/a.iso", fetchtest.Sequence(fetchtest.Status(404), fetchtest.Whole(img).Serve))
	stall := fetchtest.Whole(img)
	stall.Fault, stall.After = fetchtest.Stall, 6<<20
	second := srv.Handle("/b.iso", fetchtest.Sequence(stall.Serve, fetchtest.Whole(img).Serve))
	dir := t.TempDir()
	b := newBox(t, dir, nil)
	key := b.mirrored(img.SHA256(), first, second)
	b.until(key, func(f store.Fetch) bool { return f.Attempts == 2 })
	b.arrives(key, 6<<20)
	b.close()
	b = newBox(t, dir, nil)
	f := b.until(key, final)
	if f.Status != store.Finished || f.Attempts != 3 {
		t.Fatalf("got %+v", f)
	}
	b.holds(*f.SlotID, img.SHA256())
	seen := srv.Requests()
	if last := seen[len(seen)-1]; last.URL.Path != "/b.iso" || last.Header.Get("Range") == "" {
		t.Errorf("the last request was for %s, %q", last.URL.Path, last.Header.Get("Range"))
	}
}

// TestMirrorThatFits has a first server that announces more than any disk holds.
func TestMirrorThatFits(t *testing.T) {
	img := fetchtest.NewImage(12, 1<<20)
	srv := fetchtest.NewHTTP(t, nil)
	long := fetchtest.Whole(img)
	long.Length = 9e18
	b := newBox(t, t.TempDir(), nil)
	f := b.until(b.mirrored(img.SHA256(), srv.Handle("/a.iso", long.Serve), srv.Handle("/b.iso", fetchtest.Whole(img).Serve)), final)
	if f.Status != store.Finished || f.Attempts != 2 {
		t.Fatalf("got %+v", f)
	}
	b.holds(*f.SlotID, img.SHA256())
}

// TestPartThatEndsEarly has parts that end before what they announced, in good order and in the middle of a block: each
// checkpoint is where direct I/O can go on, and nothing but the rest of a block is fetched twice.
func TestPartThatEndsEarly(t *testing.T) {
	img := fetchtest.NewImage(16, 1<<20)
	etag := fetchtest.Whole(img).ETag
	part := func(from, to int) fetchtest.Handler {
		return fetchtest.Raw(fmt.Sprintf("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\nETag: %s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n",
			from, img.Size()-1, img.Size(), etag, to-from, img.Bytes()[from:to]))
	}
	srv := fetchtest.NewHTTP(t, nil)
	cut := fetchtest.Whole(img)
	cut.Fault, cut.After = fetchtest.FIN, 256<<10
	var b *box
	var key string
	var offsets []int64
	h := &acting{message: "attempt failed"}
	h.act = func() { offsets = append(offsets, b.get(key).Checkpoint.Offset) }
	began := make(chan struct{})
	b = newBox(t, t.TempDir(), func(c *fetch.Config) {
		h.Handler = c.Log.Handler()
		c.Log = slog.New(h)
	})
	wait := func(x *fetchtest.Exchange) { <-began; cut.Serve(x) }
	key = b.enqueue(srv.Handle("/a.iso", fetchtest.Sequence(wait, part(256<<10, 512<<10+100), part(512<<10, 768<<10+100), fetchtest.Whole(img).Serve)), img.SHA256())
	close(began)
	f := b.until(key, final)
	if f.Status != store.Finished || !slices.Equal(offsets, []int64{256 << 10, 512 << 10, 768 << 10}) {
		t.Fatalf("checkpoints at %v, got %+v", offsets, f)
	}
	b.holds(*f.SlotID, img.SHA256())
}
