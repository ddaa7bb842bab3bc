package source_test

import (
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

const (
	malformed = "The server sent a malformed answer."
	broke     = "The connection broke."
	silent    = "The server sent no data in time."
	badResume = "The server does not resume correctly."
)

// TestHTTPAnswers has the rows of the chaos tables that one answer decides.
func TestHTTPAnswers(t *testing.T) {
	with := func(change func(*fetchtest.File)) fetchtest.Handler {
		f := fetchtest.Whole(image)
		change(&f)
		return f.Serve
	}
	ok := good(image)
	bad := failure(source.Permanent, "malformed_answer", malformed)
	gone := failure(source.Temporary, "broken", broke)
	status := func(class source.Class, code, text, more string) outcome {
		return failure(class, "http_"+code, "The server answered "+text+" for http://HOST/x.iso."+more)
	}
	for _, tc := range []struct {
		name string
		h    fetchtest.Handler
		want outcome
	}{
		{"whole", fetchtest.Whole(image).Serve, ok},
		{"length too long, FIN", with(func(f *fetchtest.File) { f.Length = 70 * kib }), after(64*kib, gone)},
		{"length too short", with(func(f *fetchtest.File) { f.Length = 1000 }), outcome{Bytes: 1000, Head: true}},
		{"length of 9e18", with(func(f *fetchtest.File) { f.Length = 9e18 }), after(64*kib, gone)},
		{"no length", with(func(f *fetchtest.File) { f.Length = -1 }), ok},
		{"no length, early FIN", with(func(f *fetchtest.File) { f.Length, f.Fault, f.After = -1, fetchtest.FIN, 1000 }), outcome{Bytes: 1000, Head: true}},
		{"HTTP/1.0, no length", with(func(f *fetchtest.File) { f.Length, f.HTTP10 = -1, true }), ok},
		{"chunked", with(func(f *fetchtest.File) { f.Chunked = true }), ok},
		{"chunked, no terminator", with(func(f *fetchtest.File) { f.Chunked, f.Fault, f.After = true, fetchtest.FIN, 64*kib }), after(64*kib, gone)},
		{"chunked, bad size", fetchtest.Raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n"), bad},
		{"two lengths", fetchtest.Raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), bad},
		{"negative length", fetchtest.Raw("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"), bad},
		// net/http takes the chunks and hides the length: for the digest to find out.
		{"length and chunked", fetchtest.Raw("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), outcome{Bytes: 3}},
		{"unknown transfer encoding", fetchtest.Raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc"), bad},
		{"unasked 206", fetchtest.Raw("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-2/9\r\nContent-Length: 3\r\n\r\nabc"),
			failure(source.Permanent, "bad_resume", badResume)},
		{"204", fetchtest.Status(204), failure(source.Permanent, "http_204", "The server answered 204 No Content and no file for http://HOST/x.iso.")},
		{"201", fetchtest.Status(201), failure(source.Permanent, "http_201", "The server answered 201 Created and no file for http://HOST/x.iso.")},
		{"300", fetchtest.Status(300), status(source.Permanent, "300", "300 Multiple Choices", "")},
		{"304", fetchtest.Status(304), status(source.Permanent, "304", "304 Not Modified", "")},
		{"gzip", with(func(f *fetchtest.File) { f.Header = []string{"Content-Encoding: gzip"} }),
			failure(source.Permanent, "encoding", "The server insists on a content encoding, though the image was asked for as it is.")},
		{"identity", with(func(f *fetchtest.File) { f.Header = []string{"Content-Encoding: identity"} }), ok},
		{"401", fetchtest.Status(401), status(source.Human, "401", "401 Unauthorized", " Give credentials that may read it.")},
		{"403", fetchtest.Status(403), status(source.Human, "403", "403 Forbidden", " Give credentials that may read it.")},
		{"404", fetchtest.Status(404), status(source.Permanent, "404", "404 Not Found", "")},
		{"410", fetchtest.Status(410), status(source.Permanent, "410", "410 Gone", "")},
		{"499", fetchtest.Status(499), status(source.Permanent, "499", "499", "")},
		{"408", fetchtest.Status(408), status(source.Temporary, "408", "408 Request Timeout", "")},
		{"429", fetchtest.Status(429), status(source.Temporary, "429", "429 Too Many Requests", "")},
		{"500", fetchtest.Status(500), status(source.Temporary, "500", "500 Internal Server Error", "")},
		{"503", fetchtest.Status(503), status(source.Temporary, "503", "503 Service Unavailable", "")},
		{"407 without a proxy", fetchtest.Status(407), failure(source.Human, "http_407", "The proxy wants credentials. Set them in the agent's configuration.")},
		{"closes at once", fetchtest.Raw(""), gone},
		{"garbage", fetchtest.Raw("HELLO\r\n\r\n"), bad},
		{"SSH banner", fetchtest.Raw("SSH-2.0-OpenSSH_9.2p1\r\n"), bad},
		{"NUL in a header", fetchtest.Raw("HTTP/1.1 200 OK\r\nETag: \"a\x00b\"\r\nContent-Length: 0\r\n\r\n"), bad},
		{"bad status code", fetchtest.Raw("HTTP/1.1 2000 OK\r\n\r\n"), bad},
		{"header of 1 MB", fetchtest.Raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 1<<20) + "\r\nContent-Length: 0\r\n\r\n"), bad},
		{"header without end", fetchtest.Flood("HTTP/1.1 200 OK\r\n", "X: y\r\n"), bad},
		{"flood of 100-continue", fetchtest.Flood("", "HTTP/1.1 100 Continue\r\n\r\n"), bad},
		{"cookies and other temptations", with(func(f *fetchtest.File) {
			f.Header = []string{"Set-Cookie: a=b", "Refresh: 0; url=http://127.0.0.1:1/", "Link: </y>; rel=preload", "Strict-Transport-Security: max-age=1"}
		}), ok},
		{"redirect without Location", fetchtest.Status(302), failure(source.Permanent, "redirect", "The server redirected without saying where.")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fetchtest.NewHTTP(t, nil)
			req := source.Request{URL: parse(t, s.Handle("/x.iso", tc.h))}
			got, _ := attempt(t, patient(), req, image, 0, source.Validator{})
			wantOutcome(t, tc.want, got)
			if n := len(s.Requests()); n != 1 {
				t.Errorf("%d requests in one attempt", n)
			}
		})
	}
}

// TestHTTPTimeouts has the rows in which the server takes its time.
func TestHTTPTimeouts(t *testing.T) {
	const stall = 250 * time.Millisecond
	dripHeaders := func(x *fetchtest.Exchange) {
		x.Printf("HTTP/1.1 200 OK\r\n")
		for x.Pause(stall / 10) {
			x.Printf("X: y\r\n")
		}
	}
	drip := fetchtest.Whole(image)
	drip.Fault, drip.After, drip.Pause = fetchtest.Drip, 100, stall/20
	stalled := fetchtest.Whole(image)
	stalled.Fault, stalled.After = fetchtest.Stall, 1000
	for _, tc := range []struct {
		name  string
		h     fetchtest.Handler
		want  outcome
		bytes bool // some, how many is up to the clock
	}{
		{"mute", fetchtest.Mute, failure(source.Temporary, "stalled", silent), false},
		{"headers without end, slowly", dripHeaders, failure(source.Temporary, "stalled", silent), false},
		{"body stalls", stalled.Serve, after(1000, failure(source.Temporary, "stalled", silent)), false},
		{"a byte at a time", drip.Serve, failure(source.Temporary, "low_speed", "The transfer was slower than 1024 bytes a second for 250ms."), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fetchtest.NewHTTP(t, nil)
			cfg := quick(stall)
			cfg.LowSpeedTime = stall
			got, _ := attempt(t, cfg, source.Request{URL: parse(t, s.Handle("/x.iso", tc.h))}, image, 0, source.Validator{})
			if tc.bytes {
				if !got.Head || got.Bytes < 100 {
					t.Errorf("got %d bytes", got.Bytes)
				}
				got.Bytes, got.Head = 0, false
			}
			wantOutcome(t, tc.want, got)
			fetchtest.Await(t, "the end of the connection", s.Next(t).Closed)
		})
	}
}

// TestHTTPFloodMemory: what a server says without end is not kept.
func TestHTTPFloodMemory(t *testing.T) {
	for name, h := range map[string]fetchtest.Handler{
		"header":       fetchtest.Flood("HTTP/1.1 200 OK\r\n", "X: y\r\n"),
		"100-continue": fetchtest.Flood("", "HTTP/1.1 100 Continue\r\n\r\n"),
		"trailer":      fetchtest.Flood("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", "X: y\r\n"),
		"chunk header": fetchtest.Flood("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "0"),
		"gzip bomb":    fetchtest.Flood("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08", strings.Repeat("\x00", 1000)),
	} {
		t.Run(name, func(t *testing.T) {
			s := fetchtest.NewHTTP(t, nil)
			url := parse(t, s.Handle("/x.iso", h))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got, _ := attempt(t, patient(), source.Request{URL: url}, image, 0, source.Validator{})
			runtime.ReadMemStats(&after)
			if got.Class == 0 {
				t.Errorf("got %+v", got)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
}

// TestHTTPErrorBody: an answer that is none is not waited for, whatever it promises.
func TestHTTPErrorBody(t *testing.T) {
	s := fetchtest.NewHTTP(t, nil)
	for _, code := range []int{http.StatusNotFound, http.StatusServiceUnavailable, http.StatusFound} {
		s.Handle("/x.iso", func(x *fetchtest.Exchange) {
			x.Printf("HTTP/1.1 %d X\r\nLocation: /y.iso\r\nContent-Length: 4000\r\n\r\n", code)
			x.Stall()
		})
		start := time.Now()
		got, _ := attempt(t, patient(), source.Request{URL: parse(t, s.URL+"/x.iso")}, image, 0, source.Validator{})
		if got.Code == "" || time.Since(start) > fetchtest.Patience/4 {
			t.Errorf("%d: got %+v after %s", code, got, time.Since(start))
		}
	}
}

func TestHTTPRetryAfter(t *testing.T) {
	for _, tc := range []struct {
		name, header string
		least, most  time.Duration
	}{
		{"none", "", 0, 0},
		{"seconds", "2", 2 * time.Second, 2 * time.Second},
		{"blank", " 7 ", 7 * time.Second, 7 * time.Second},
		{"ten years", "315360000", 10 * time.Minute, 10 * time.Minute},
		{"more than a number holds", "99999999999999999999", 10 * time.Minute, 10 * time.Minute},
		{"date", time.Now().Add(time.Minute).UTC().Format(http.TimeFormat), 30 * time.Second, time.Minute},
		{"date in ten years", time.Now().AddDate(10, 0, 0).UTC().Format(http.TimeFormat), 10 * time.Minute, 10 * time.Minute},
		{"date in the past", "Mon, 04 May 2020 08:00:01 GMT", 0, 0},
		{"negative", "-5", 0, 0},
		{"garbage", "soon", 0, 0},
		{"fraction", "1.5", 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fetchtest.NewHTTP(t, nil)
			url := parse(t, s.Handle("/x.iso", fetchtest.Status(503, "Retry-After: "+tc.header)))
			_, err := client(t, patient()).Open(t.Context(), source.Request{URL: url}, 0, source.Validator{})
			e, ok := err.(*source.Error)
			if !ok || e.RetryAfter < tc.least || e.RetryAfter > tc.most {
				t.Errorf("got %+v, want %s to %s", e, tc.least, tc.most)
			}
		})
	}
}

// TestHTTPAfter503: the next attempt succeeds, which is what Temporary means.
func TestHTTPAfter503(t *testing.T) {
	s := fetchtest.NewHTTP(t, nil)
	url := s.Handle("/x.iso", fetchtest.Sequence(fetchtest.Status(503), fetchtest.Status(503), fetchtest.Whole(image).Serve))
	for i, want := range []string{"http_503", "http_503", ""} {
		got, _ := attempt(t, patient(), source.Request{URL: parse(t, url)}, image, 0, source.Validator{})
		if got.Code != want {
			t.Errorf("attempt %d: got %+v", i, got)
		}
	}
}

// TestHTTPRequest looks at what is sent.
func TestHTTPRequest(t *testing.T) {
	s := fetchtest.NewHTTP(t, nil)
	url := s.Handle("/a b/ü.iso", fetchtest.Whole(image).Serve)
	cfg := patient()
	cfg.UserAgent = "slotfetchd/1.0"
	url = strings.NewReplacer(" ", "%20", "ü", "%C3%BC").Replace(url) + "?sig=a%2Fb"
	str, err := client(t, cfg).Open(t.Context(), source.Request{URL: parse(t, url), Credentials: credentials()}, 0, source.Validator{})
	if err != nil {
		t.Fatal(err)
	}
	defer str.Close()
	if _, err := io.Copy(io.Discard, str); err != nil {
		t.Fatal(err)
	}
	x := s.Next(t)
	user, password, _ := x.Auth()
	for what, pair := range map[string][2]string{
		"path":       {"/a%20b/%C3%BC.iso?sig=a%2Fb", x.URL.RequestURI()},
		"user agent": {"slotfetchd/1.0", x.Header.Get("User-Agent")},
		"encoding":   {"identity", x.Header.Get("Accept-Encoding")},
		"range":      {"", x.Header.Get("Range") + x.Header.Get("If-Range")},
		"user":       {"admin", user},
		"password":   {"s3cret", password},
		"cookies":    {"", x.Header.Get("Cookie")},
		"referer":    {"", x.Header.Get("Referer")},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: got %q, want %q", what, pair[1], pair[0])
		}
	}
}

func TestHTTPFirstAddressDead(t *testing.T) {
	s := fetchtest.NewHTTP(t, nil) // on 127.0.0.1 only; localhost is ::1 first where it is both
	s.Handle("/x.iso", fetchtest.Whole(image).Serve)
	url := strings.Replace(s.URL, "127.0.0.1", "localhost", 1) + "/x.iso"
	got, _ := attempt(t, patient(), source.Request{URL: parse(t, url)}, image, 0, source.Validator{})
	wantOutcome(t, good(image), got)
}
