package fetch_test

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
	"slotfetch/store"
)

// An ending is what comes of a fetch whose server misbehaves.
type ending struct {
	status store.Status
	// says is the whole error; URL stands for the fetch's own.
	says string
	// attempts are how many there were: more than one for what may work later, or for another way.
	attempts int
	// from is where the last one began; -1: somewhere.
	from int64
}

// given is the end of what no further attempt helps, borne of what may work later and never does.
func given(says string) ending { return ending{store.Failed, says, 1, 0} }

func borne(says string) ending { return ending{store.Failed, says, rounds, 0} }

// got is the image in so many attempts, the last of which began at from.
func got(attempts int, from int64) ending { return ending{store.Finished, "", attempts, from} }

const (
	rounds = 2 // without progress before a fetch fails
	half   = 1 << 20
	limit  = time.Second // for which the agent waits where a test waits for that
)

var iso = fetchtest.NewImage(90, 2*half)

// misbehave runs one fetch and looks at everything that it may leave behind.
func misbehave(t *testing.T, raw string, want ending, change func(*source.Config, *fetch.Request)) {
	t.Helper()
	cfg := source.Config{Egress: fetchtest.Loopback()}
	u, cred, err := source.ParseURL(raw)
	if err != nil {
		t.Fatalf("ParseURL: expected %v", err)
	}
	q := fetch.Request{URL: u, SHA256: iso.SHA256(), Secrets: fetch.Secrets{URL: cred}}
	if change != nil {
		change(&cfg, &q)
	}
	client, err := source.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b := newBox(t, t.TempDir(), func(c *fetch.Config) {
		c.Source, c.Retry.Rounds, c.CheckpointBytes = client, rounds, 1
	})
	accepted, err := b.fetch.Enqueue(q, admin)
	if err != nil {
		t.Fatal(err)
	}
	f := b.until(accepted.Key, final)
	ended := ending{f.Status, strings.ReplaceAll(f.Error, (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String(), "URL"), f.Attempts, f.ResumedFrom}
	if want.from < 0 {
		ended.from = want.from
	}
	if ended != want {
		t.Errorf("got  %+v\nwant %+v", ended, want)
	}
	b.noPartials()
	list, err := b.slots.List()
	if err != nil || (list[0].Manifest != nil) != (want.status == store.Finished) {
		t.Errorf("slot 1 is %+v, %v", list[0], err)
	}
	if want.status == store.Finished {
		b.holds(*f.SlotID, iso.SHA256())
	}
}

// TestHTTPMisbehaviour has what HTTP servers do wrong, and what comes of the fetch: each by http and by https.
func TestHTTPMisbehaviour(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) }) // after boxes and servers are gone
	with := func(change func(*fetchtest.File)) fetchtest.Handler {
		f := fetchtest.Whole(iso)
		change(&f)
		return f.Serve
	}
	raw, status := fetchtest.Raw, fetchtest.Status
	whole := fetchtest.Whole(iso).Serve
	cut := func(fault fetchtest.Fault) fetchtest.Handler {
		return with(func(f *fetchtest.File) { f.Fault, f.After = fault, half })
	}
	// once is good the second time; after comes where the first half is there already.
	once := func(h fetchtest.Handler) []fetchtest.Handler { return []fetchtest.Handler{h, whole} }
	after := func(h fetchtest.Handler) []fetchtest.Handler {
		return []fetchtest.Handler{cut(fetchtest.FIN), h, whole}
	}
	always := func(h fetchtest.Handler) []fetchtest.Handler { return []fetchtest.Handler{h} }
	part := func(lines, body string) fetchtest.Handler {
		return raw(fmt.Sprintf("HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\n%s\r\n\r\n%s", len(body), lines, body))
	}
	to := func(location string) []fetchtest.Handler { return always(fetchtest.Redirect(location)) }
	const (
		malformed = "The server sent a malformed answer."
		noResume  = "The server does not resume correctly."
		encoding  = "The server insists on a content encoding, though the image was asked for as it is."
		broke     = "The connection broke."
		silent    = "The server sent no data in time."
		page      = "<!DOCTYPE html><title>Log in</title>"
	)
	mismatch := func(data []byte) string {
		return fmt.Sprintf("SHA-256 mismatch: expected %s, got %x. The file was discarded.", iso.SHA256(), sha256.Sum256(data))
	}
	says := func(text string) string { return "The server answered " + text + " for URL." }
	stall := func(c *source.Config, _ *fetch.Request) { c.HeaderTimeout, c.IdleTimeout = limit, limit }
	for _, tc := range []struct {
		name   string
		serve  []fetchtest.Handler
		want   ending
		change func(*source.Config, *fetch.Request)
	}{
		{"length too long, FIN", once(with(func(f *fetchtest.File) { f.Length, f.Fault, f.After = 3*half, fetchtest.FIN, half })), got(3, 0), nil}, // it was another file, by its size
		{"length too long, always", always(with(func(f *fetchtest.File) { f.ETag, f.Modified, f.Length = "", time.Time{}, 3*half })),
			ending{store.Failed, "The connection broke after 2097152 of 3145728 bytes.", 3, 0}, nil},
		{"early FIN", once(cut(fetchtest.FIN)), got(2, half), nil},
		{"RST", once(cut(fetchtest.RST)), got(2, -1), nil},
		{"length too short", always(with(func(f *fetchtest.File) { f.Length = half })), given(mismatch(iso.Bytes()[:half])), nil},
		{"no length, early FIN", always(with(func(f *fetchtest.File) { f.Length, f.Fault, f.After = -1, fetchtest.FIN, half })),
			given(mismatch(iso.Bytes()[:half])), nil},
		{"HTTP/1.0, no length", always(with(func(f *fetchtest.File) { f.Length, f.HTTP10 = -1, true })), got(1, 0), nil},
		{"chunked, no terminator", once(with(func(f *fetchtest.File) { f.Chunked, f.Fault, f.After = true, fetchtest.FIN, half })), got(2, half), nil},
		{"chunked, bad size", always(raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n")), given(malformed), nil},
		{"two lengths", always(raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")), given(malformed), nil},
		{"negative length", always(raw("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n")), given(malformed), nil},
		// net/http takes the chunks, as RFC 9112 has it; the digest is the judge of them.
		{"length and chunked", always(raw("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")),
			given(mismatch([]byte("abc"))), nil},
		{"200 to a Range", after(with(func(f *fetchtest.File) { f.NoRange = true })), got(2, 0), nil},
		{"206, wrong start, once", after(part(fmt.Sprintf("Content-Range: bytes 5-7/%d", iso.Size()), "abc")), got(3, 0), nil},
		{"206, no Content-Range, once", after(part("X: y", "abc")), got(3, 0), nil},
		{"206, multipart, once", after(part("Content-Type: multipart/byteranges; boundary=X", "--X--")), got(3, 0), nil},
		{"206, other total, once", after(part(fmt.Sprintf("Content-Range: bytes %d-%d/%d", half, half+2, half+3), "abc")), got(3, 0), nil},
		{"206, wrong start, always", []fetchtest.Handler{cut(fetchtest.FIN), part(fmt.Sprintf("Content-Range: bytes 5-7/%d", iso.Size()), "abc")},
			ending{store.Failed, noResume, 3, 0}, nil},
		{"206 unasked", always(part("Content-Range: bytes 0-2/9", "abc")), ending{store.Failed, noResume, 2, 0}, nil},
		{"416", after(status(416)), got(3, 0), nil},
		{"416, always", []fetchtest.Handler{cut(fetchtest.FIN), status(416)}, ending{store.Failed, says("416 Requested Range Not Satisfiable"), 3, 0}, nil},
		{"ETag changed", after(with(func(f *fetchtest.File) { f.ETag = `"other"` })), got(2, 0), nil},
		{"date changed", []fetchtest.Handler{with(func(f *fetchtest.File) { f.ETag, f.Fault, f.After = "", fetchtest.FIN, half }),
			with(func(f *fetchtest.File) { f.ETag, f.Modified = "", f.Modified.Add(time.Hour) })}, got(2, 0), nil},
		{"weak ETag and nothing else", []fetchtest.Handler{with(func(f *fetchtest.File) {
			f.ETag, f.Modified, f.Fault, f.After = `W/"a"`, time.Time{}, fetchtest.FIN, half
		}), whole}, got(2, 0), nil},
		{"204", always(status(204)), given("The server answered 204 No Content and no file for URL."), nil},
		{"304", always(status(304)), given(says("304 Not Modified")), nil},
		{"302 without Location", always(status(302)), given("The server redirected without saying where."), nil},
		{"gzip", always(with(func(f *fetchtest.File) { f.Header = []string{"Content-Encoding: gzip"} })), given(encoding), nil},
		{"gzip bomb", always(fetchtest.Flood("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08", strings.Repeat("\x00", 1000))), given(encoding), nil},
		{"redirect loop", to("/x.iso"), given("More than 5 redirects."), nil},
		{"redirect to file", to("file:///etc/passwd"), given("Redirected to a scheme that is not allowed."), nil},
		{"redirect to ftp", to("ftp://127.0.0.1/x.iso"), given("Redirected to a scheme that is not allowed."), nil},
		{"redirect to javascript", to("javascript:alert(1)"), given("Redirected to a scheme that is not allowed."), nil},
		{"redirect to metadata", to("//169.254.169.254/x.iso"), given("The address 169.254.169.254 is not allowed by egress policy. If it should be, add it to egress.allow in the agent's configuration and restart the agent."), nil},
		{"401", always(status(401)), given(says("401 Unauthorized") + " Give credentials that may read it."), nil},
		{"403", always(status(403)), given(says("403 Forbidden") + " Give credentials that may read it."), nil},
		{"404", always(status(404)), given(says("404 Not Found")), nil},
		{"410", always(status(410)), given(says("410 Gone")), nil},
		{"408", once(status(408)), got(2, 0), nil},
		{"429", once(status(429, "Retry-After: garbage")), got(2, 0), nil},
		{"500", once(status(500)), got(2, 0), nil},
		{"503, always", always(status(503)), borne(says("503 Service Unavailable")), nil},
		{"closes at once", once(raw("")), got(2, 0), nil},
		{"closes at once, always", always(raw("")), borne(broke), nil},
		{"garbage", always(raw("HELLO\r\n\r\n")), given(malformed), nil},
		{"SSH banner", always(raw("SSH-2.0-OpenSSH_9.2p1\r\n")), given(malformed), nil},
		{"NUL in a header", always(raw("HTTP/1.1 200 OK\r\nETag: \"a\x00b\"\r\nContent-Length: 0\r\n\r\n")), given(malformed), nil},
		{"mute", always(fetchtest.Mute), borne(silent), stall},
		{"body stalls", once(cut(fetchtest.Stall)), got(2, half), stall},
		{"a byte at a time", once(with(func(f *fetchtest.File) { f.Fault, f.After, f.Pause = fetchtest.Drip, half, limit/20 })), got(2, -1),
			func(c *source.Config, _ *fetch.Request) { c.LowSpeedTime = limit }},
		{"body without end", always(fetchtest.Flood("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("x", 1000))),
			given("The image has more bytes; fetch.max_size allows 3145728. Raise fetch.max_size in the agent's configuration if it should be allowed."),
			func(c *source.Config, _ *fetch.Request) { c.MaxSize = 3 * half }},
		{"header of 11 MB", always(fetchtest.Flood("HTTP/1.1 200 OK\r\n", "X: y\r\n")), given(malformed), nil},
		{"flood of 100-continue", always(fetchtest.Flood("", "HTTP/1.1 100 Continue\r\n\r\n")), given(malformed), nil},
		{"cookies and other temptations", always(with(func(f *fetchtest.File) {
			f.Header = []string{"Set-Cookie: a=b", "Refresh: 0; url=/", "Link: </y>; rel=preload", "Strict-Transport-Security: max-age=1"}
		})), got(1, 0), nil},
		{"login page", always(raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(page), page))),
			given(mismatch([]byte(page)) + " It looks like an HTML page: check the URL, and whether a login page is in the way."), nil},
	} {
		for scheme, conf := range map[string]*tls.Config{"http": nil, "https": fetchtest.NewCA().TLS(fetchtest.Good)} {
			t.Run(scheme+" "+tc.name, func(t *testing.T) {
				t.Parallel()
				s := fetchtest.NewHTTP(t, conf)
				misbehave(t, s.Handle("/x.iso", fetchtest.Sequence(tc.serve...)), tc.want, tc.change)
			})
		}
	}
}

// TestFTPMisbehaviour has what FTP servers do wrong, and what comes of the fetch: each by ftp and by ftps.
func TestFTPMisbehaviour(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	saturday := time.Date(2020, 5, 2, 8, 0, 1, 0, time.UTC)
	files := map[string]*fetchtest.Image{"x.iso": iso}
	whole := fetchtest.Script{Files: files, Modified: saturday}
	with := func(change func(*fetchtest.Script)) fetchtest.Script {
		s := whole
		change(&s)
		return s
	}
	reply := func(verb, text string) fetchtest.Script {
		return with(func(s *fetchtest.Script) { s.Reply = map[string]string{verb: text} })
	}
	pasv := func(text string) fetchtest.Script {
		return with(func(s *fetchtest.Script) { s.Reply = map[string]string{"EPSV": "500 no", "PASV": text} })
	}
	broken := func(done string) fetchtest.Script {
		return with(func(s *fetchtest.Script) { s.Fault, s.After, s.Done = fetchtest.FIN, half, done })
	}
	once := func(s fetchtest.Script) fetchtest.Script { s.Then = &whole; return s }
	after := func(then fetchtest.Script) fetchtest.Script {
		s := broken("426 aborted")
		s.Then = &then
		return s
	}
	const (
		malformed = "The server sent a malformed answer."
		login     = "The FTP server refused the login. Check the credentials."
		surplus   = "The FTP server sent more than it announced."
		silent    = "The server sent no data in time."
	)
	later := func(code int) string { return fmt.Sprintf("The FTP server answered %d and may work later.", code) }
	noFile := func(code int) ending { return given(fmt.Sprintf("The FTP server has no such file (%d).", code)) }
	port := func(n int) ending {
		return given(fmt.Sprintf("The FTP server named data port %d, which is not allowed.", n))
	}
	for _, tc := range []struct {
		name   string
		script fetchtest.Script
		want   ending
		stalls bool
	}{
		{"421 banner", once(with(func(s *fetchtest.Script) { s.Banner = "421 too many users" })), got(2, 0), false},
		{"425", once(reply("RETR", "425 no data connection")), got(2, 0), false},
		{"450, always", reply("RETR", "450 busy"), borne(later(450)), false},
		{"426 in mid-transfer", once(broken("426 aborted")), got(2, half), false},
		{"421 in mid-transfer", once(broken("421 going down")), got(2, half), false},
		{"530", reply("PASS", "530 wrong"), given(login), false},
		{"550", reply("RETR", "550 no such file"), noFile(550), false},
		{"553", reply("RETR", "553 bad name"), noFile(553), false},
		{"mute at PASS", reply("PASS", fetchtest.Silent), borne(silent), true},
		{"mute at RETR", once(reply("RETR", fetchtest.Silent)), got(2, 0), true},
		{"data stalls", once(with(func(s *fetchtest.Script) { s.Fault, s.After = fetchtest.Stall, half })), got(2, half), true},
		{"226 after half the data", once(broken("226 done")), got(2, half), false},
		{"226 after half the data, no SIZE", with(func(s *fetchtest.Script) {
			s.Reply, s.Fault, s.After = map[string]string{"SIZE": "502 no"}, fetchtest.FIN, half
		}), given(fmt.Sprintf("SHA-256 mismatch: expected %s, got %x. The file was discarded.", iso.SHA256(), sha256.Sum256(iso.Bytes()[:half]))), false},
		{"data without an end", with(func(s *fetchtest.Script) { s.Fault, s.After = fetchtest.Stall, iso.Size() }), got(1, 0), true},
		{"no reply after the data", with(func(s *fetchtest.Script) { s.Done = fetchtest.Silent }), got(1, 0), true},
		{"451 after the data", with(func(s *fetchtest.Script) { s.Done = "451 disk trouble" }), got(1, 0), false},
		{"control closed, data flows on", with(func(s *fetchtest.Script) { s.HangUp, s.After = true, half }), got(1, 0), false},
		{"no SIZE", reply("SIZE", "502 no"), got(1, 0), false},
		{"SIZE of -1", reply("SIZE", "213 -1"), got(1, 0), false},
		{"SIZE too large for a number", reply("SIZE", "213 99999999999999999999"), got(1, 0), false},
		{"SIZE too small", reply("SIZE", "213 1000"), ending{store.Failed, surplus, 2, 0}, false},
		{"REST not known", after(reply("REST", "502 no")), got(2, 0), false},
		{"REST accepted but ignored", after(with(func(s *fetchtest.Script) { s.NoRest = true })), got(3, 0), false},
		{"PASV names another host", pasv("227 ok (127,0,0,9,{p1},{p2})"), got(1, 0), false},
		{"PASV names metadata", pasv("227 ok (169,254,169,254,{p1},{p2})"), got(1, 0), false},
		{"PASV garbage", pasv("227 what"), given(malformed), false},
		{"PASV port 256743", pasv("227 ok (127,0,0,1,999,999)"), given(malformed), false},
		{"PASV that makes the library panic", pasv("227 )x("), given(malformed), false},
		{"PASV port 22", pasv("227 ok (127,0,0,1,0,22)"), port(22), false},
		{"EPSV port 22", reply("EPSV", "229 ok (|||22|)"), port(22), false},
		{"reply of 300 MB", with(func(s *fetchtest.Script) { s.Flood = "PASS" }), given(malformed), false},
		{"a directory", with(func(s *fetchtest.Script) {
			s.Reply = map[string]string{"SIZE": "550 not a plain file", "RETR": "550 not a plain file"}
		}), noFile(550), false},
	} {
		for scheme, conf := range map[string]*tls.Config{"ftp": nil, "ftps": fetchtest.NewCA().TLS(fetchtest.Good)} {
			t.Run(scheme+" "+tc.name, func(t *testing.T) {
				t.Parallel()
				script := tc.script
				script.TLS = conf
				if script.Then != nil {
					then := *script.Then
					then.TLS, script.Then = conf, &then
				}
				misbehave(t, fetchtest.NewFTP(t, script).URL+"/x.iso", tc.want, func(c *source.Config, _ *fetch.Request) {
					if tc.stalls {
						c.IdleTimeout = limit
					}
				})
			})
		}
	}
}
