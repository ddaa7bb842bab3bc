package fetchtest

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"strings"
	"testing"
	"time"

	"slotfetch/fetch/source"
)

// Misbehaviour is something that a server does wrong, and what has to come of a fetch from it.
type Misbehaviour struct {
	Name string
	Want Ending
	// Need is what the fetch has to be configured with.
	Need Need

	http []Handler // by request, the last one for all further ones
	ftp  *Script
	size int64 // of the image
}

// Ending is what comes of a fetch.
type Ending struct {
	Finished bool
	// Says is the whole error; URL stands for the fetch's own.
	Says string
	// Attempts are how many there were: more than one for what may work later, or for another way.
	Attempts int
	// From is where the last one began; -1: somewhere.
	From int64
}

// Need is a limit that a [Misbehaviour] runs into.
type Need int

const (
	NoNeed        Need = iota
	NeedsIdle          // short timeouts for silence
	NeedsLowSpeed      // a short time in which too few bytes come
	NeedsMaxSize       // no image of more than one and a half times the size
)

// BriefLimit is for how long the client waits where a test waits for that.
const BriefLimit = time.Second

// Rounds without progress before a fetch fails are what attempts are counted by.
const Rounds = 2

// Configure sets the limits that m needs.
func (m Misbehaviour) Configure(c *source.Config) {
	switch m.Need {
	case NeedsIdle:
		c.HeaderTimeout, c.IdleTimeout = BriefLimit, BriefLimit
	case NeedsLowSpeed:
		c.LowSpeedTime = BriefLimit
	case NeedsMaxSize:
		c.MaxSize = m.size + m.size/2
	}
}

// Serve starts a server that misbehaves so, with TLS if conf is not nil, and gives the URL of the image.
func (m Misbehaviour) Serve(t testing.TB, conf *tls.Config) string {
	t.Helper()
	if m.ftp == nil {
		return NewHTTP(t, conf).Handle("/x.iso", Sequence(m.http...))
	}
	script := *m.ftp
	script.TLS = conf
	if script.Then != nil {
		then := *script.Then
		then.TLS, script.Then = conf, &then
	}
	return NewFTP(t, script).URL + "/x.iso"
}

// given is the end of what no further attempt helps, borne of what may work later and never does.
func given(says string) Ending { return Ending{false, says, 1, 0} }

func borne(says string) Ending { return Ending{false, says, Rounds, 0} }

// got is the image in so many attempts, the last of which began at from.
func got(attempts int, from int64) Ending { return Ending{true, "", attempts, from} }

// HTTPMisbehaviour has what HTTP servers do wrong with img, which is about 2 MiB.
func HTTPMisbehaviour(img *Image) []Misbehaviour {
	half := img.Size() / 2
	with := func(change func(*File)) Handler {
		f := Whole(img)
		change(&f)
		return f.Serve
	}
	raw, status := Raw, Status
	whole := Whole(img).Serve
	cut := func(fault Fault) Handler {
		return with(func(f *File) { f.Fault, f.After = fault, half })
	}
	// once is good the second time; after comes where the first half is there already.
	once := func(h Handler) []Handler { return []Handler{h, whole} }
	after := func(h Handler) []Handler {
		return []Handler{cut(FIN), h, whole}
	}
	always := func(h Handler) []Handler { return []Handler{h} }
	part := func(lines, body string) Handler {
		return raw(fmt.Sprintf("HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\n%s\r\n\r\n%s", len(body), lines, body))
	}
	to := func(location string) []Handler { return always(Redirect(location)) }
	const (
		malformed = "The server sent a malformed answer."
		noResume  = "The server does not resume correctly."
		encoding  = "The server insists on a content encoding, though the image was asked for as it is."
		broke     = "The connection broke."
		silent    = "The server sent no data in time."
		page      = "<!DOCTYPE html><title>Log in</title>"
	)
	mismatch := func(data []byte) string {
		return fmt.Sprintf("SHA-256 mismatch: expected %s, got %x. The file was discarded.", img.SHA256(), sha256.Sum256(data))
	}
	says := func(text string) string { return "The server answered " + text + " for URL." }
	var all []Misbehaviour
	for _, m := range []struct {
		name  string
		serve []Handler
		want  Ending
		need  Need
	}{
		{"length too long, FIN", once(with(func(f *File) { f.Length, f.Fault, f.After = 3*half, FIN, half })), got(3, 0), NoNeed}, // it was another file, by its size
		{"length too long, always", always(with(func(f *File) { f.ETag, f.Modified, f.Length = "", time.Time{}, 3*half })),
			Ending{false, fmt.Sprintf("The connection broke after %d of %d bytes.", img.Size(), 3*half), 3, 0}, NoNeed},
		{"early FIN", once(cut(FIN)), got(2, half), NoNeed},
		{"RST", once(cut(RST)), got(2, -1), NoNeed},
		{"length too short", always(with(func(f *File) { f.Length = half })), given(mismatch(img.Bytes()[:half])), NoNeed},
		{"no length, early FIN", always(with(func(f *File) { f.Length, f.Fault, f.After = -1, FIN, half })),
			given(mismatch(img.Bytes()[:half])), NoNeed},
		{"HTTP/1.0, no length", always(with(func(f *File) { f.Length, f.HTTP10 = -1, true })), got(1, 0), NoNeed},
		{"chunked, no terminator", once(with(func(f *File) { f.Chunked, f.Fault, f.After = true, FIN, half })), got(2, half), NoNeed},
		{"chunked, bad size", always(raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n")), given(malformed), NoNeed},
		{"two lengths", always(raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")), given(malformed), NoNeed},
		{"negative length", always(raw("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n")), given(malformed), NoNeed},
		// net/http takes the chunks, as RFC 9112 has it; the digest is the judge of them.
		{"length and chunked", always(raw("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")),
			given(mismatch([]byte("abc"))), NoNeed},
		{"200 to a Range", after(with(func(f *File) { f.NoRange = true })), got(2, 0), NoNeed},
		{"206, wrong start, once", after(part(fmt.Sprintf("Content-Range: bytes 5-7/%d", img.Size()), "abc")), got(3, 0), NoNeed},
		{"206, no Content-Range, once", after(part("X: y", "abc")), got(3, 0), NoNeed},
		{"206, multipart, once", after(part("Content-Type: multipart/byteranges; boundary=X", "--X--")), got(3, 0), NoNeed},
		{"206, other total, once", after(part(fmt.Sprintf("Content-Range: bytes %d-%d/%d", half, half+2, half+3), "abc")), got(3, 0), NoNeed},
		{"206, wrong start, always", []Handler{cut(FIN), part(fmt.Sprintf("Content-Range: bytes 5-7/%d", img.Size()), "abc")},
			Ending{false, noResume, 3, 0}, NoNeed},
		{"206 unasked", always(part("Content-Range: bytes 0-2/9", "abc")), Ending{false, noResume, 2, 0}, NoNeed},
		{"416", after(status(416)), got(3, 0), NoNeed},
		{"416, always", []Handler{cut(FIN), status(416)}, Ending{false, says("416 Requested Range Not Satisfiable"), 3, 0}, NoNeed},
		{"ETag changed", after(with(func(f *File) { f.ETag = `"other"` })), got(2, 0), NoNeed},
		{"date changed", []Handler{with(func(f *File) { f.ETag, f.Fault, f.After = "", FIN, half }),
			with(func(f *File) { f.ETag, f.Modified = "", f.Modified.Add(time.Hour) })}, got(2, 0), NoNeed},
		{"weak ETag and nothing else", []Handler{with(func(f *File) {
			f.ETag, f.Modified, f.Fault, f.After = `W/"a"`, time.Time{}, FIN, half
		}), whole}, got(2, 0), NoNeed},
		{"204", always(status(204)), given("The server answered 204 No Content and no file for URL."), NoNeed},
		{"304", always(status(304)), given(says("304 Not Modified")), NoNeed},
		{"302 without Location", always(status(302)), given("The server redirected without saying where."), NoNeed},
		{"gzip", always(with(func(f *File) { f.Header = []string{"Content-Encoding: gzip"} })), given(encoding), NoNeed},
		{"gzip bomb", always(Flood("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08", strings.Repeat("\x00", 1000))), given(encoding), NoNeed},
		{"redirect loop", to("/x.iso"), given("More than 5 redirects."), NoNeed},
		{"redirect to file", to("file:///etc/passwd"), given("Redirected to a scheme that is not allowed."), NoNeed},
		{"redirect to ftp", to("ftp://127.0.0.1/x.iso"), given("Redirected to a scheme that is not allowed."), NoNeed},
		{"redirect to javascript", to("javascript:alert(1)"), given("Redirected to a scheme that is not allowed."), NoNeed},
		{"redirect to metadata", to("//169.254.169.254/x.iso"), given("The address 169.254.169.254 is not allowed by egress policy. If it should be, add it to egress.allow in the agent's configuration and restart the agent."), NoNeed},
		{"401", always(status(401)), given(says("401 Unauthorized") + " Give credentials that may read it."), NoNeed},
		{"403", always(status(403)), given(says("403 Forbidden") + " Give credentials that may read it."), NoNeed},
		{"404", always(status(404)), given(says("404 Not Found")), NoNeed},
		{"410", always(status(410)), given(says("410 Gone")), NoNeed},
		{"408", once(status(408)), got(2, 0), NoNeed},
		{"429", once(status(429, "Retry-After: garbage")), got(2, 0), NoNeed},
		{"500", once(status(500)), got(2, 0), NoNeed},
		{"503, Retry-After", once(status(503, "Retry-After: 1")), got(2, 0), NoNeed},
		{"503, always", always(status(503)), borne(says("503 Service Unavailable")), NoNeed},
		{"closes at once", once(raw("")), got(2, 0), NoNeed},
		{"closes at once, always", always(raw("")), borne(broke), NoNeed},
		{"garbage", always(raw("HELLO\r\n\r\n")), given(malformed), NoNeed},
		{"SSH banner", always(raw("SSH-2.0-OpenSSH_9.2p1\r\n")), given(malformed), NoNeed},
		{"NUL in a header", always(raw("HTTP/1.1 200 OK\r\nETag: \"a\x00b\"\r\nContent-Length: 0\r\n\r\n")), given(malformed), NoNeed},
		{"mute", always(Mute), borne(silent), NeedsIdle},
		{"body stalls", once(cut(Stall)), got(2, half), NeedsIdle},
		{"a byte at a time", once(with(func(f *File) { f.Fault, f.After, f.Pause = Drip, half, BriefLimit/20 })), got(2, -1), NeedsLowSpeed},
		{"body without end", always(Flood("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("x", 1000))),
			given(fmt.Sprintf("The image has more bytes; fetch.max_size allows %d. Raise fetch.max_size in the agent's configuration if it should be allowed.", 3*half)), NeedsMaxSize},
		{"header of 11 MB", always(Flood("HTTP/1.1 200 OK\r\n", "X: y\r\n")), given(malformed), NoNeed},
		{"flood of 100-continue", always(Flood("", "HTTP/1.1 100 Continue\r\n\r\n")), given(malformed), NoNeed},
		{"cookies and other temptations", always(with(func(f *File) {
			f.Header = []string{"Set-Cookie: a=b", "Refresh: 0; url=/", "Link: </y>; rel=preload", "Strict-Transport-Security: max-age=1"}
		})), got(1, 0), NoNeed},
		{"login page", always(raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(page), page))),
			given(mismatch([]byte(page)) + " It looks like an HTML page: check the URL, and whether a login page is in the way."), NoNeed},
	} {
		all = append(all, Misbehaviour{Name: m.name, Want: m.want, Need: m.need, http: m.serve, size: img.Size()})
	}
	return all
}

// FTPMisbehaviour is that of FTP servers.
func FTPMisbehaviour(img *Image) []Misbehaviour {
	half := img.Size() / 2
	saturday := time.Date(2020, 5, 2, 8, 0, 1, 0, time.UTC)
	files := map[string]*Image{"x.iso": img}
	whole := Script{Files: files, Modified: saturday}
	with := func(change func(*Script)) Script {
		s := whole
		change(&s)
		return s
	}
	reply := func(verb, text string) Script {
		return with(func(s *Script) { s.Reply = map[string]string{verb: text} })
	}
	pasv := func(text string) Script {
		return with(func(s *Script) { s.Reply = map[string]string{"EPSV": "500 no", "PASV": text} })
	}
	broken := func(done string) Script {
		return with(func(s *Script) { s.Fault, s.After, s.Done = FIN, half, done })
	}
	once := func(s Script) Script { s.Then = &whole; return s }
	after := func(then Script) Script {
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
	noFile := func(code int) Ending { return given(fmt.Sprintf("The FTP server has no such file (%d).", code)) }
	port := func(n int) Ending {
		return given(fmt.Sprintf("The FTP server named data port %d, which is not allowed.", n))
	}
	var all []Misbehaviour
	for _, m := range []struct {
		name   string
		script Script
		want   Ending
		need   Need
	}{
		{"421 banner", once(with(func(s *Script) { s.Banner = "421 too many users" })), got(2, 0), NoNeed},
		{"425", once(reply("RETR", "425 no data connection")), got(2, 0), NoNeed},
		{"450, always", reply("RETR", "450 busy"), borne(later(450)), NoNeed},
		{"426 in mid-transfer", once(broken("426 aborted")), got(2, half), NoNeed},
		{"421 in mid-transfer", once(broken("421 going down")), got(2, half), NoNeed},
		{"530", reply("PASS", "530 wrong"), given(login), NoNeed},
		{"550", reply("RETR", "550 no such file"), noFile(550), NoNeed},
		{"553", reply("RETR", "553 bad name"), noFile(553), NoNeed},
		{"mute at PASS", reply("PASS", Silent), borne(silent), NeedsIdle},
		{"mute at RETR", once(reply("RETR", Silent)), got(2, 0), NeedsIdle},
		{"data stalls", once(with(func(s *Script) { s.Fault, s.After = Stall, half })), got(2, half), NeedsIdle},
		{"226 after half the data", once(broken("226 done")), got(2, half), NoNeed},
		{"226 after half the data, no SIZE", with(func(s *Script) {
			s.Reply, s.Fault, s.After = map[string]string{"SIZE": "502 no"}, FIN, half
		}), given(fmt.Sprintf("SHA-256 mismatch: expected %s, got %x. The file was discarded.", img.SHA256(), sha256.Sum256(img.Bytes()[:half]))), NoNeed},
		{"data without an end", with(func(s *Script) { s.Fault, s.After = Stall, img.Size() }), got(1, 0), NeedsIdle},
		{"no reply after the data", with(func(s *Script) { s.Done = Silent }), got(1, 0), NeedsIdle},
		{"451 after the data", with(func(s *Script) { s.Done = "451 disk trouble" }), got(1, 0), NoNeed},
		{"control closed, data flows on", with(func(s *Script) { s.HangUp, s.After = true, half }), got(1, 0), NoNeed},
		{"no SIZE", reply("SIZE", "502 no"), got(1, 0), NoNeed},
		{"SIZE of -1", reply("SIZE", "213 -1"), got(1, 0), NoNeed},
		{"SIZE too large for a number", reply("SIZE", "213 99999999999999999999"), got(1, 0), NoNeed},
		{"SIZE too small", reply("SIZE", "213 1000"), Ending{false, surplus, 2, 0}, NoNeed},
		{"REST not known", after(reply("REST", "502 no")), got(2, 0), NoNeed},
		{"REST accepted but ignored", after(with(func(s *Script) { s.NoRest = true })), got(3, 0), NoNeed},
		{"PASV names another host", pasv("227 ok (127,0,0,9,{p1},{p2})"), got(1, 0), NoNeed},
		{"PASV names metadata", pasv("227 ok (169,254,169,254,{p1},{p2})"), got(1, 0), NoNeed},
		{"PASV garbage", pasv("227 what"), given(malformed), NoNeed},
		{"PASV port 256743", pasv("227 ok (127,0,0,1,999,999)"), given(malformed), NoNeed},
		{"PASV that makes the library panic", pasv("227 )x("), given(malformed), NoNeed},
		{"PASV port 22", pasv("227 ok (127,0,0,1,0,22)"), port(22), NoNeed},
		{"EPSV port 22", reply("EPSV", "229 ok (|||22|)"), port(22), NoNeed},
		{"reply of 300 MB", with(func(s *Script) { s.Flood = "PASS" }), given(malformed), NoNeed},
		{"a directory", with(func(s *Script) {
			s.Reply = map[string]string{"SIZE": "550 not a plain file", "RETR": "550 not a plain file"}
		}), noFile(550), NoNeed},
	} {
		all = append(all, Misbehaviour{Name: m.name, Want: m.want, Need: m.need, ftp: &m.script, size: img.Size()})
	}
	return all
}
