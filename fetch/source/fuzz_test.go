package source_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

// FuzzParseURL: what is accepted has the form that the rest of the package relies on, and stays the same when it is
// read again.
func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"https://example.com/x.iso", "ftp://u:p@[fe80::1%25eth0]:21/%2Fx;type=i", "file:///srv/x.iso", "https://ex%2fample/",
		"http://127.0.0.1\\@example.com/", "http://a:0/", "https:///x", "http://a/%0d%0a", "http://%E4%B8%96/?q#f", "http://a:/x", "FTPS://A/?", "http://BÜCHER.example:1/", "http://１２７。0.0.1/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, cred, err := source.ParseURL(raw)
		if err != nil {
			if u != nil || cred != nil {
				t.Fatal("both a URL and an error")
			}
			return
		}
		if u.User != nil || u.Fragment != "" || u.Opaque != "" || u.Scheme != "file" && u.Hostname() == "" {
			t.Errorf("accepted %q as %+v", raw, u)
		}
		if strings.ContainsFunc(u.Host, func(r rune) bool { return r > '~' }) && u.Scheme != "file" {
			t.Errorf("accepted host %q", u.Host)
		}
		if !strings.Contains("http https ftp ftps file", u.Scheme) {
			t.Errorf("accepted scheme %q", u.Scheme)
		}
		if cred != nil && cred.Check() != nil {
			t.Errorf("accepted credentials %+v", cred)
		}
		if bytes.ContainsFunc([]byte(u.Path), func(r rune) bool { return r < ' ' }) || strings.IndexByte(u.Path, 0xff) >= 0 {
			t.Errorf("accepted path %q", u.Path)
		}
		again, cred, err := source.ParseURL(u.String())
		if err != nil && len(u.String()) <= source.MaxURL || err == nil && (cred != nil || again.String() != u.String()) {
			t.Errorf("%q became %q, then %v (expected %v)", raw, u, again, err)
		}
		shown := source.Redact(u)
		if i := strings.IndexByte(shown, '?'); i >= 0 && shown[i:] != "?…" {
			t.Errorf("redacted to %q", shown)
		}
	})
}

// FuzzContentRange: what is accepted is a range within its total.
func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 1000-65535/65536", "bytes 1000-65535/*", "bytes */65536", "bytes 5-4/9", "bytes -5-4/9",
		"bytes 0-9223372036854775806/9223372036854775807", "bytes 0-9/18446744073709551616", "BYTES 0-1/2", "bytes  0-1/2", "bytes 0-1/2 "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		start, end, total, ok := source.ContentRange(s)
		if !ok {
			return
		}
		if start < 0 || end < start || total <= end {
			t.Errorf("%q: %d-%d/%d", s, start, end, total)
		}
		if a, b, c, ok := source.ContentRange(fmt.Sprintf("bytes %d-%d/%d", start, end, total)); !ok || a != start || b != end || c != total {
			t.Errorf("%q: not the same when written again", s)
		}
	})
}

// FuzzRetryAfter: never the past, never more than ten minutes.
func FuzzRetryAfter(f *testing.F) {
	now := time.Date(2026, 5, 4, 8, 0, 1, 0, time.UTC)
	for _, s := range []string{"", "0", "2", "600", "601", "315360000", "99999999999999999999", "-1", "1e9", "0x10", "Mon, 04 May 2026 08:05:01 GMT",
		"Mon, 04 May 2036 08:00:01 GMT", "Monday, 04-May-26 08:05:01 GMT", "Mon May  4 08:05:01 2026", "Mon, 04 May 0001 00:00:00 GMT"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d := source.RetryAfter(s, now); d < 0 || d > 10*time.Minute {
			t.Errorf("%q: %s", s, d)
		}
	})
}

// FuzzFTPReplies: what a control connection may say, one reply (up to a vertical bar) to each command. An attempt
// ends in time and in a stream or an *Error, and delivers nothing but the ten bytes of the data connection.
func FuzzFTPReplies(f *testing.F) {
	const login = "220 hi|331 pw|230 in|211-\n SIZE\n MDTM\n MLST\n UTF8\n211 End|200 ok|200 ok|"
	for _, s := range []string{
		login + "213 10|213 20260504080001|229 ok (|||{port}|)|150 go|226 done",
		login + "213 10|213 20260504080001|500 no|227 ok (127,0,0,1,{p1},{p2})|150 go|226 done",
		login + "213 10|550 no|500 no|227 )x(",
		login + "550 no|250-\n Type=file;Size=10; x\n250 End|550 no|229 )x(|227 (1,2,3,4,5)",
		login + "550 no|250-\n250 End|550 no|229 (|||99999|)",
		login + "213 -1|213 x|229 (|||22|)|150",
		login + "213 10|213 x|229 (|||{port}|)|425 no",
		"421 busy", "220-\n220-\n", "2", "", "xyz\n", "220 hi|530 no", "220 hi|331 pw|332 account", "220 hi\n220 hi\n331\n230\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		data := fetchtest.Listen(t, "", func(c net.Conn) { _, _ = c.Write(image.Bytes()[:10]) })
		_, port, _ := net.SplitHostPort(data)
		n, _ := net.LookupPort("tcp", port)
		script = bytes.ReplaceAll(script, []byte("{port}"), []byte(port))
		script = bytes.ReplaceAll(script, []byte("{p1},{p2}"), []byte(fetchtest.PortPair(n)))
		control := fetchtest.Listen(t, "", func(c net.Conn) {
			lines := bufio.NewReader(c)
			for _, r := range bytes.Split(script, []byte("|")) {
				if _, err := fmt.Fprintf(c, "%s\r\n", bytes.ReplaceAll(r, []byte("\n"), []byte("\r\n"))); err != nil {
					return
				}
				if _, err := lines.ReadString('\n'); err != nil {
					return
				}
			}
		})
		start := time.Now()
		s, err := client(t, quick(100*time.Millisecond)).Open(t.Context(), source.Request{URL: parse(t, "ftp://"+control+"/x.iso")}, 0, source.Validator{})
		if err == nil {
			var n int64
			n, err = io.Copy(io.Discard, s)
			err = errors.Join(err, s.Close())
			if n > 10 {
				t.Errorf("got %d bytes", n)
			}
		}
		var e *source.Error
		if err != nil && (!errors.As(err, &e) || e.Code == "" || e.Class == 0) {
			t.Errorf("got %T %v", err, err)
		}
		if took := time.Since(start); took > fetchtest.Patience {
			t.Errorf("took %s", took)
		}
	})
}

// FuzzRedirect: what is followed is http or https, never a step down, without userinfo, and the same when read again.
func FuzzRedirect(f *testing.F) {
	for _, s := range []string{"/y", "//other/y", "http://h/y", "https://u:p@h/y", "ftp://h/y", "file:///y", "javascript:x", "?q", "", "HTTP:y", "http:///y", "https://h:0/",
		"\\\\h\\y", "http://[::1]/", "/%0d%0a"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, location string, secure bool) {
		from := "http://example.com/a/b"
		if secure {
			from = "https://example.com/a/b"
		}
		u, _, err := source.ParseURL(from)
		if err != nil {
			t.Fatal(err)
		}
		next, err := source.Redirect(u, location)
		if err != nil {
			var e *source.Error
			if next != nil || !errors.As(err, &e) {
				t.Errorf("%q: %v, %v", location, next, err)
			}
			return
		}
		if next.User != nil || next.Scheme != "https" && (secure || next.Scheme != "http") || next.Hostname() == "" {
			t.Errorf("%q from %s leads to %q", location, from, next)
		}
		if again, cred, err := source.ParseURL(next.String()); err != nil || cred != nil || again.String() != next.String() {
			t.Errorf("%q leads to %q, then %v, %v", location, next, again, err)
		}
	})
}
