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

func TestChecksumFile(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(130, 1<<20)
	sum, other := img.SHA256(), strings.Repeat("ab", 32)
	meta := metalink(sum, "http://127.0.0.1:1/elsewhere.iso")
	for _, tc := range []struct {
		name, file string
		h          fetchtest.Handler
		status     store.Status
		code       string
	}{
		{"a list", "SHA256SUMS", text(fmt.Sprintf("%s  b.iso\n%s *a.iso\n", other, strings.ToUpper(sum))), store.Finished, ""},
		{"a sidecar", "a.iso.sha256", text(sum + "\n"), store.Finished, ""},
		{"BSD form", "CHECKSUM", text("SHA256 (a.iso) = " + sum + "\n"), store.Finished, ""},
		{"a Metalink with one file", "a.meta4", text(meta), store.Finished, ""},
		{"a Metalink with two", "all.meta4", text(strings.Replace(meta, "</metalink>", `<file name="b.iso"><hash type="sha-256">`+other+`</hash></file></metalink>`, 1)), store.Finished, ""},
		{"a Metalink without it", "b.meta4", text(strings.Replace(metalink("", "http://h/a.iso"), "a.iso", "c.iso", 1)), store.Failed, "checksum_file"},
		{"no XML", "c.meta4", text("hello"), store.Failed, "metalink"},
		{"another name", "SHA256SUMS", text(other + "  b.iso\n"), store.Failed, "checksum_file"},
		{"contradictions", "SHA256SUMS", text(other + "  a.iso\n" + sum + "  a.iso\n"), store.Failed, "checksum_file"},
		{"a page", "SHA256SUMS", text("<!DOCTYPE html><html>" + sum + "</html>"), store.Failed, "checksum_file"},
		{"nothing", "SHA256SUMS", text(""), store.Failed, "checksum_file"},
		{"endless", "SHA256SUMS", fetchtest.Flood("HTTP/1.1 200 OK\r\n\r\n", sum+"  b.iso\n"), store.Failed, "checksum_file"},
		{"not there", "SHA256SUMS", fetchtest.Status(404), store.Failed, "http_404"},
		{"there later", "SHA256SUMS", fetchtest.Sequence(fetchtest.Status(503), text(sum+"  a.iso\n")), store.Finished, ""},
		{"never there", "SHA256SUMS", fetchtest.Status(503), store.Failed, "http_503"},
		{"a wrong digest", "SHA256SUMS", text(other + "  a.iso\n"), store.Failed, "digest"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			srv := fetchtest.NewHTTP(t, nil)
			image := srv.Handle("/a.iso", fetchtest.Whole(img).Serve)
			b := newBox(t, t.TempDir(), nil)
			f := b.until(b.summed(image, srv.Handle("/"+tc.file, tc.h), nil), final)
			if f.Status != tc.status || f.ErrorCode != tc.code {
				t.Fatalf("got %s %s %q", f.Status, f.ErrorCode, f.Error)
			}
			if f.Status == store.Finished {
				b.holds(*f.SlotID, sum)
				if f.SHA256 != sum || f.ChecksumURL == "" {
					t.Errorf("got %+v", f)
				}
			}
			for _, r := range srv.Requests() {
				if r.URL.Path == "/a.iso" && tc.code != "" && tc.code != "digest" {
					t.Error("the image was asked for without a digest to hold it to")
				}
			}
		})
	}
}

// summed enqueues a fetch whose digest is elsewhere.
func (b *box) summed(image, sums string, change func(*fetch.Request)) string {
	b.t.Helper()
	u, err1 := url.Parse(image)
	s, err2 := url.Parse(sums)
	if err1 != nil || err2 != nil {
		b.t.Fatal(err1, err2)
	}
	q := fetch.Request{URL: u, ChecksumURL: s}
	if change != nil {
		change(&q)
	}
	f, err := b.fetch.Enqueue(q, admin)
	if err != nil {
		b.t.Fatal(err)
	}
	return f.Key
}

// The digest is found once. A fetch that is interrupted afterwards knows it, and an image that a slot has by that digest is
// not downloaded.
func TestChecksumFileOnce(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(131, 4<<20)
	srv, image := stalled(t, img)
	sums := srv.Handle("/SHA256SUMS", fetchtest.Sequence(text(img.SHA256()+"  a.iso\n"), fetchtest.Status(410)))
	b := newBox(t, t.TempDir(), nil)
	key := b.summed(image, sums, nil)
	b.arrives(key, 2<<20)
	b.close()
	b = newBox(t, b.dir, nil)
	if f := b.until(key, final); f.Status != store.Finished || f.ResumedFrom != 2<<20 {
		t.Fatalf("got %+v", f)
	}
	again := b.summed("http://127.0.0.1:1/a.iso", srv.Handle("/again/SHA256SUMS", text(img.SHA256()+"  a.iso\n")), nil)
	if f := b.until(again, final); f.Status != store.Finished || !f.Deduplicated {
		t.Fatalf("got %+v", f)
	}
}

// Credentials of the image go to the checksum file of the same origin only, and a certificate that does not verify is not
// made up for by a digest that comes through it.
func TestChecksumFileTrust(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(132, 64<<10)
	srv, other := fetchtest.NewHTTP(t, nil), fetchtest.NewHTTP(t, nil)
	image := srv.Handle("/a.iso", fetchtest.Whole(img).Serve)
	list := text(img.SHA256() + "  a.iso\n")
	cred := &source.Credentials{Username: "u", Password: "p"}
	b := newBox(t, t.TempDir(), nil)
	for _, tc := range []struct {
		server *fetchtest.HTTP
		own    *source.Credentials
		want   string
	}{{srv, nil, "u:p"}, {other, nil, ""}, {other, &source.Credentials{Username: "v", Password: "q"}, "v:q"}} {
		path := fmt.Sprintf("/%p/SHA256SUMS", tc.server)
		if tc.own != nil {
			path = "/own" + path
		}
		key := b.summed(image, tc.server.Handle(path, list), func(q *fetch.Request) {
			q.Secrets = fetch.Secrets{URL: cred, Checksum: tc.own}
			q.Force = true
		})
		if f := b.until(key, final); f.Status != store.Finished {
			t.Fatalf("got %+v", f)
		}
		for _, r := range tc.server.Requests() {
			if r.URL.Path != path {
				continue
			}
			got := ""
			if user, password, ok := r.Auth(); ok {
				got = user + ":" + password
			}
			if got != tc.want {
				t.Errorf("%s got %q, want %q", path, got, tc.want)
			}
		}
	}
	secret := fetchtest.NewHTTP(t, fetchtest.NewCA().TLS(fetchtest.Good))
	sums := secret.Handle("/SHA256SUMS", list)
	no := false
	for verify, want := range map[*bool]store.Status{nil: store.Failed, &no: store.Finished} {
		f := b.until(b.summed(image, sums, func(q *fetch.Request) { q.TLSVerify, q.Force = verify, true }), final)
		if f.Status != want || want == store.Failed && f.ErrorCode != "certificate" {
			t.Errorf("got %s %s %q", f.Status, f.ErrorCode, f.Error)
		}
	}
	// A digest that anybody on the way could change does not make up for the certificate of the image.
	tlsImage := fetchtest.NewHTTP(t, fetchtest.NewCA().TLS(fetchtest.Good)).Handle("/a.iso", fetchtest.Whole(img).Serve)
	f := b.until(b.summed(tlsImage, srv.Handle("/plain/SHA256SUMS", list), func(q *fetch.Request) { q.Force = true }), final)
	if f.Status != store.Failed || f.ErrorCode != "certificate" {
		t.Errorf("got %s %s %q", f.Status, f.ErrorCode, f.Error)
	}
}
