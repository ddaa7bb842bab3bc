package fetch_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
	"slotfetch/store"
)

// metalink is a document with one file; places come in this order of priority.
func metalink(sha256 string, places ...string) string {
	var b strings.Builder
	b.WriteString(`<?xml version="1.0"?><metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="a.iso">`)
	if sha256 != "" {
		fmt.Fprintf(&b, `<hash type="sha-256">%s</hash>`, sha256)
	}
	for i, p := range places {
		fmt.Fprintf(&b, `<url priority="%d">%s</url>`, i+1, p)
	}
	return b.String() + "</file></metalink>"
}

func text(body string) fetchtest.Handler {
	return func(x *fetchtest.Exchange) {
		x.Printf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
}

func TestMetalink(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(90, 2<<20)
	other := strings.Repeat("ab", 32)
	server := fetchtest.NewHTTP(t, nil)
	whole := server.Handle("/a.iso", fetchtest.Whole(img).Serve)
	broken := fetchtest.Whole(img)
	broken.Fault, broken.After = fetchtest.FIN, 1<<20
	breaks := server.Handle("/breaks.iso", fetchtest.Sequence(broken.Serve, fetchtest.Whole(img).Serve))
	dead := "http://127.0.0.1:1/a.iso"
	for _, tc := range []struct {
		name    string
		h       fetchtest.Handler
		mirrors []string
		status  store.Status
		code    string
	}{
		{"one place", text(metalink(img.SHA256(), whole)), nil, store.Finished, ""},
		{"the first is dead", text(metalink(img.SHA256(), dead, whole)), nil, store.Finished, ""},
		{"a place breaks off and goes on", text(metalink(img.SHA256(), breaks)), nil, store.Finished, ""},
		{"no digest in it", text(metalink("", whole)), nil, store.Finished, ""},
		{"another digest", text(metalink(other, whole)), nil, store.Failed, "metalink"},
		{"another digest, but a mirror", text(metalink(other, whole)), []string{whole}, store.Finished, ""},
		{"its digest is right, its place is not", text(metalink(img.SHA256(), server.Handle("/other.iso", fetchtest.Whole(fetchtest.NewImage(91, 1000)).Serve))), nil, store.Failed, "digest"},
		{"places that may not be", text(metalink(img.SHA256(), "file:///etc/passwd", "gopher://h/x", "http://127.0.0.1/x.meta4")), nil, store.Failed, "metalink"},
		{"no XML", text("hello"), nil, store.Failed, "metalink"},
		{"endless", fetchtest.Flood("HTTP/1.1 200 OK\r\n\r\n<metalink xmlns=\"urn:ietf:params:xml:ns:metalink\">", "<!-- -->"), nil, store.Failed, "metalink"},
		{"missing", fetchtest.Status(404), nil, store.Failed, "http_404"},
		{"busy at first", fetchtest.Sequence(fetchtest.Status(503), text(metalink(img.SHA256(), whole))), nil, store.Finished, ""},
		{"cut off at first", fetchtest.Sequence(fetchtest.Raw("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n<metal"), text(metalink(img.SHA256(), whole))), nil, store.Finished, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := fetchtest.NewHTTP(t, nil)
			b := newBox(t, t.TempDir(), nil)
			q := fetch.Request{URL: mustURL(t, s.Handle("/a.meta4", tc.h)), SHA256: img.SHA256()}
			for _, m := range tc.mirrors {
				q.Mirrors = append(q.Mirrors, mustURL(t, m))
			}
			f, err := b.fetch.Enqueue(q, admin)
			if err != nil {
				t.Fatal(err)
			}
			f = b.until(f.Key, final)
			if f.Status != tc.status || f.ErrorCode != tc.code {
				t.Fatalf("it is %s: %s %s", f.Status, f.ErrorCode, f.Error)
			}
			if f.Status == store.Finished {
				b.holds(*f.SlotID, img.SHA256())
			}
			b.noPartials()
		})
	}
}

// Credentials go to the origin of the Metalink and to places there, not elsewhere, and a restart goes on at the place
// that the partial is from.
func TestMetalinkCredentialsAndResume(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(92, 4<<20)
	here, there := fetchtest.NewHTTP(t, nil), fetchtest.NewHTTPAt(t, "127.0.0.2:0", nil)
	stall := fetchtest.Whole(img)
	stall.Fault, stall.After = fetchtest.Stall, 3<<20
	dead := there.Handle("/dead.iso", fetchtest.Status(404))
	place := here.Handle("/a.iso", fetchtest.Protected("u", "p", fetchtest.Sequence(stall.Serve, fetchtest.Whole(img).Serve)))
	link := here.Handle("/a.meta4", fetchtest.Protected("u", "p", text(metalink(img.SHA256(), strings.Replace(dead, "://", "://x:y@", 1), place))))
	dir := t.TempDir()
	small := func(c *fetch.Config) { c.CheckpointBytes = 1 << 20 }
	b := newBox(t, dir, small)
	f, err := b.fetch.Enqueue(fetch.Request{URL: mustURL(t, link), SHA256: img.SHA256(),
		Secrets: fetch.Secrets{URL: &source.Credentials{Username: "u", Password: "p"}}}, admin)
	if err != nil {
		t.Fatal(err)
	}
	b.checkpointed(f.Key, 2<<20)
	b.close()
	b = newBox(t, dir, small)
	f = b.until(f.Key, final)
	if f.Status != store.Finished || f.ResumedFrom < 1<<20 {
		t.Errorf("it is %s (%s), resumed from %d", f.Status, f.Error, f.ResumedFrom)
	}
	for _, x := range there.Requests() {
		if got := x.Header.Get("Authorization"); got != "" {
			t.Errorf("the other host saw %q", got)
		}
	}
	if n := len(there.Requests()); n != 1 {
		t.Errorf("the dead place was asked %d times", n)
	}
}

func mustURL(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
