package source_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

// TestHTTPResume: what is asked for depends on the validator, and what comes is believed only if it fits.
func TestHTTPResume(t *testing.T) {
	const from = 1000
	size := image.Size()
	good := fetchtest.Whole(image)
	strong := source.Validator{ETag: good.ETag, Modified: good.Modified.Format(http.TimeFormat), Size: size}
	dated := source.Validator{Modified: strong.Modified, Size: size}
	tail := outcome{Offset: from, Bytes: size - from, Head: true, Whole: true}
	whole := outcome{Bytes: size, Head: true, Whole: true}
	bad := failure(source.Permanent, "bad_resume", badResume)
	raw := func(lines string, body []byte) fetchtest.Handler {
		return func(x *fetchtest.Exchange) {
			x.Printf("HTTP/1.1 206 Partial Content\r\nDate: %s\r\nContent-Length: %d\r\n%s\r\n", time.Now().UTC().Format(http.TimeFormat), len(body), lines)
			_, _ = x.Write(body)
		}
	}
	with := func(change func(*fetchtest.File)) fetchtest.Handler {
		f := good
		change(&f)
		return f.Serve
	}
	rest := image.Bytes()[from:]
	for _, tc := range []struct {
		name string
		v    source.Validator
		h    fetchtest.Handler
		want outcome
		// ifRange is what was sent; "-" for no Range at all.
		ifRange string
	}{
		{"strong ETag", strong, good.Serve, tail, strong.ETag},
		{"date", dated, good.Serve, tail, strong.Modified},
		{"ETag without a size", source.Validator{ETag: strong.ETag, Size: -1}, good.Serve, tail, strong.ETag},
		{"date without a size proves nothing", source.Validator{Modified: strong.Modified, Size: -1}, good.Serve, whole, "-"},
		{"no validator", source.Validator{Size: size}, good.Serve, whole, "-"},
		{"no ranges", strong, with(func(f *fetchtest.File) { f.NoRange = true }), whole, strong.ETag},
		{"ETag changed", strong, with(func(f *fetchtest.File) { f.ETag = `"other"` }), whole, strong.ETag},
		{"ETag is weak now", strong, with(func(f *fetchtest.File) { f.ETag = "W/" + f.ETag }), whole, strong.ETag},
		{"date changed", dated, with(func(f *fetchtest.File) { f.Modified = f.Modified.Add(time.Hour) }), whole, strong.Modified},
		{"If-Range ignored, ETag changed", strong, with(func(f *fetchtest.File) { f.ETag, f.NoIfRange = `"other"`, true }), bad, strong.ETag},
		{"If-Range ignored, date changed", dated, with(func(f *fetchtest.File) {
			f.ETag, f.Modified, f.NoIfRange = "", f.Modified.Add(time.Hour), true
		}), bad, strong.Modified},
		{"If-Range ignored, ETag is weak now", strong, with(func(f *fetchtest.File) { f.ETag, f.NoIfRange = "W/"+f.ETag, true }), bad, strong.ETag},
		{"If-Range ignored, no ETag any more and date changed", strong, with(func(f *fetchtest.File) {
			f.ETag, f.Modified, f.NoIfRange = "", f.Modified.Add(time.Hour), true
		}), bad, strong.ETag},
		{"same ETag, date changed", strong, with(func(f *fetchtest.File) { f.Modified = f.Modified.Add(time.Hour) }), tail, strong.ETag},
		{"If-Range ignored, size changed", strong, func(x *fetchtest.Exchange) {
			f := fetchtest.Whole(fetchtest.NewImage(7, 70*kib))
			f.ETag, f.NoIfRange = strong.ETag, true
			f.Serve(x)
		}, bad, strong.ETag},
		{"206 without validators", strong, raw(fmt.Sprintf("Content-Range: bytes 1000-%d/%d\r\n", size-1, size), rest), tail, strong.ETag},
		{"wrong start", strong, raw(fmt.Sprintf("Content-Range: bytes 500-%d/%d\r\n", size-1, size), image.Bytes()[500:]), bad, strong.ETag},
		{"no Content-Range", strong, raw("", rest), bad, strong.ETag},
		{"other total", strong, raw(fmt.Sprintf("Content-Range: bytes 1000-%d/%d\r\n", size-1, size+1), rest), bad, strong.ETag},
		{"unknown total", strong, raw(fmt.Sprintf("Content-Range: bytes 1000-%d/*\r\n", size-1), rest), bad, strong.ETag},
		{"ends early", strong, raw(fmt.Sprintf("Content-Range: bytes 1000-1999/%d\r\n", size), rest[:1000]), bad, strong.ETag},
		{"length and range differ", strong, raw(fmt.Sprintf("Content-Range: bytes 1000-%d/%d\r\n", size-1, size), rest[1:]), bad, strong.ETag},
		{"multipart", strong, raw("Content-Type: multipart/byteranges; boundary=X\r\n", []byte("--X\r\nContent-Range: bytes 1000-1003/65536\r\n\r\nabcd\r\n--X--\r\n")), bad, strong.ETag},
		{"gzip", strong, raw(fmt.Sprintf("Content-Encoding: gzip\r\nContent-Range: bytes 1000-%d/%d\r\n", size-1, size), rest),
			failure(source.Permanent, "encoding", "The server insists on a content encoding, though the image was asked for as it is."), strong.ETag},
		{"416", strong, fetchtest.Status(416), failure(source.Permanent, "range", "The server answered 416 Requested Range Not Satisfiable for http://HOST/x.iso."), strong.ETag},
		{"cut in the rest", strong, with(func(f *fetchtest.File) { f.Fault, f.After = fetchtest.FIN, 500 }),
			outcome{Class: source.Temporary, Code: "broken", Message: broke, Offset: from, Bytes: 500, Head: true}, strong.ETag},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fetchtest.NewHTTP(t, nil)
			got, v := attempt(t, patient(), source.Request{URL: parse(t, s.Handle("/x.iso", tc.h))}, image, from, tc.v)
			wantOutcome(t, tc.want, got)
			if tc.want.Class == 0 && v.Size != size {
				t.Errorf("size of the stream %d, want that of the whole file", v.Size)
			}
			if tc.want.Class == 0 && !v.Resumable() {
				t.Errorf("cannot be resumed a second time: %+v", v)
			}
			h := s.Next(t).Header
			ifRange, rng := tc.ifRange, "bytes=1000-"
			if ifRange == "-" {
				ifRange, rng = "", ""
			}
			if h.Get("If-Range") != ifRange || h.Get("Range") != rng {
				t.Errorf("sent Range %q, If-Range %q", h.Get("Range"), h.Get("If-Range"))
			}
		})
	}
}

// TestHTTPValidator: what of an answer proves that a file is the same later.
func TestHTTPValidator(t *testing.T) {
	old := time.Date(2020, 5, 4, 8, 0, 1, 0, time.UTC)
	const stamp = "Mon, 04 May 2020 08:00:01 GMT"
	soon := time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
	for _, tc := range []struct {
		name      string
		file      fetchtest.File
		want      source.Validator
		resumable bool
	}{
		{"strong ETag and date", fetchtest.File{ETag: `"a"`, Modified: old}, source.Validator{ETag: `"a"`, Modified: stamp, Size: 64 * kib}, true},
		{"strong ETag", fetchtest.File{ETag: `"a"`}, source.Validator{ETag: `"a"`, Size: 64 * kib}, true},
		{"strong ETag, no length", fetchtest.File{ETag: `"a"`, Length: -1}, source.Validator{ETag: `"a"`, Size: -1}, true},
		{"weak ETag", fetchtest.File{ETag: `W/"a"`}, source.Validator{Size: 64 * kib}, false},
		{"weak ETag and date", fetchtest.File{ETag: `W/"a"`, Modified: old}, source.Validator{Modified: stamp, Size: 64 * kib}, true},
		{"date", fetchtest.File{Modified: old}, source.Validator{Modified: stamp, Size: 64 * kib}, true},
		{"date, no length", fetchtest.File{Modified: old, Length: -1}, source.Validator{Modified: stamp, Size: -1}, false},
		{"ETag without quotes", fetchtest.File{ETag: "a"}, source.Validator{Size: 64 * kib}, false},
		{"half an ETag", fetchtest.File{ETag: `"`}, source.Validator{Size: 64 * kib}, false},
		{"date not in the past", fetchtest.File{Header: []string{"Last-Modified: " + soon}}, source.Validator{Size: 64 * kib}, false},
		{"garbage date", fetchtest.File{Header: []string{"Last-Modified: yesterday"}}, source.Validator{Size: 64 * kib}, false},
		{"none", fetchtest.File{}, source.Validator{Size: 64 * kib}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fetchtest.NewHTTP(t, nil)
			tc.file.Image = image
			got, v := attempt(t, patient(), source.Request{URL: parse(t, s.Handle("/x.iso", tc.file.Serve))}, image, 0, source.Validator{})
			wantOutcome(t, good(image), got)
			tc.want.Origin = s.URL
			if v != tc.want || v.Resumable() != tc.resumable {
				t.Errorf("got %+v, resumable %v; want %+v", v, v.Resumable(), tc.want)
			}
		})
	}
}

// TestUnproved: where nobody proves that the parts belong together, only a strong entity tag lets a file come in parts.
func TestUnproved(t *testing.T) {
	const from = 1000
	good := fetchtest.Whole(image)
	dated := good
	dated.ETag = ""
	dumb := dated
	dumb.NoIfRange = true
	stamp := good.Modified.Format(http.TimeFormat)
	web := func(f fetchtest.File) string { return fetchtest.NewHTTP(t, nil).Handle("/x.iso", f.Serve) }
	ftp := fetchtest.NewFTP(t, fetchtest.Script{Files: map[string]*fetchtest.Image{"x.iso": image}, Modified: good.Modified}).URL + "/x.iso"
	for _, tc := range []struct {
		name, raw string
		v         source.Validator
		proved    int64 // where it begins if there is proof
		unproved  int64 // and if there is none; -1 for a refusal
	}{
		{"strong ETag", web(good), source.Validator{ETag: good.ETag, Modified: stamp, Size: image.Size()}, from, from},
		{"date", web(dated), source.Validator{Modified: stamp, Size: image.Size()}, from, 0},
		{"ETag that is not repeated", web(dumb), source.Validator{ETag: good.ETag, Modified: stamp, Size: image.Size()}, from, -1},
		{"FTP", ftp, source.Validator{Modified: good.Modified.Format(time.RFC3339), Size: image.Size()}, from, 0},
		{"another server now, behind a redirect", fetchtest.NewHTTP(t, nil).Handle("/x.iso", fetchtest.Redirect(web(good))),
			source.Validator{ETag: good.ETag, Modified: stamp, Size: image.Size(), Origin: "http://127.0.0.1:1"}, from, 0},
	} {
		for unproved, want := range map[bool]int64{false: tc.proved, true: tc.unproved} {
			if tc.v.Origin == "" {
				tc.v.Origin = source.Origin(parse(t, tc.raw))
			}
			s, err := client(t, patient()).Open(t.Context(), source.Request{URL: parse(t, tc.raw), Unproved: unproved}, from, tc.v)
			var e *source.Error
			switch {
			case want < 0 && (!errors.As(err, &e) || e.Code != "bad_resume"):
				t.Errorf("%s, unproved %v: %v", tc.name, unproved, err)
			case want >= 0 && (err != nil || s.Offset != want):
				t.Errorf("%s, unproved %v: %+v, %v, want offset %d", tc.name, unproved, s, err, want)
			}
			if s != nil {
				s.Close()
			}
		}
	}
}
