package source_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

// TestFTPSAnswers: what goes wrong with TLS on the way of FTP. Clear text is never the way out.
func TestFTPSAnswers(t *testing.T) {
	noTLS := failure(source.Human, "ftp_tls", "The FTP server offers no TLS. Use another server, or an ftp URL if clear text is acceptable.")
	noProt := failure(source.Human, "ftp_prot", "The FTP server refuses to protect data connections (PROT P). Have PROT P enabled on the server, or use another.")
	login := failure(source.Human, "ftp_login", "The FTP server refused the login. Check the credentials.")
	refused := func(code int) outcome {
		return failure(source.Human, "ftp_data_tls", fmt.Sprintf("The FTP server refused the TLS data connection (%d). "+
			"Have session resumption enabled on the server, or its demand for it switched off.", code))
	}
	secure := func(change func(*fetchtest.Script)) fetchtest.Script {
		s := fetchtest.Script{TLS: ca.TLS(fetchtest.Good)}
		change(&s)
		return s
	}
	with := func(verb, text string) fetchtest.Script {
		return secure(func(s *fetchtest.Script) { s.Reply = map[string]string{verb: text} })
	}
	for _, tc := range []struct {
		name   string
		script fetchtest.Script
		want   outcome
		user   bool // whether the login may have been sent
	}{
		{"good", secure(func(*fetchtest.Script) {}), good(image), true},
		{"session reuse demanded", secure(func(s *fetchtest.Script) { s.Reuse = true }), good(image), true},
		{"session reuse demanded, TLS 1.2", secure(func(s *fetchtest.Script) { s.Reuse, s.TLS.MaxVersion = true, tls.VersionTLS12 }), good(image), true},
		{"session reuse demanded and made impossible", secure(func(s *fetchtest.Script) { s.Reuse, s.TLS.SessionTicketsDisabled = true, true }), refused(522), true},
		{"425 not permitted", secure(func(s *fetchtest.Script) {
			s.Fault, s.Done = fetchtest.FIN, "425 Unable to build data connection: Operation not permitted"
		}), refused(425), true},
		{"TLS 1.1", secure(func(s *fetchtest.Script) { s.TLS.MinVersion, s.TLS.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }),
			failure(source.Human, "tls_version", "The server offers no TLS newer than 1.1. Have TLS 1.2 or newer enabled on the server, or use another."), false},
		{"500 to AUTH", with("AUTH", "500 what"), noTLS, false},
		{"502 to AUTH", with("AUTH", "502 no"), noTLS, false},
		{"530 to AUTH", with("AUTH", "530 please log in"), noTLS, false},
		{"421 to AUTH", with("AUTH", "421 later"), ftpFailure(source.Temporary, 421), false},
		{"yes to AUTH, but no TLS", with("AUTH", "234 well"), failure(source.Human, "no_tls", "The server does not speak TLS on this port. Check scheme and port of the URL."), false},
		{"PBSZ not known", with("PBSZ", "502 no"), noProt, true},
		{"PROT not known", with("PROT", "500 what"), noProt, true},
		{"PROT refused", with("PROT", "536 only PROT C"), noProt, true},
		{"login refused", with("PASS", "530 wrong"), login, true},
		{"user refused", with("USER", "530 wrong"), login, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.script.Files = files
			if strings.Contains(tc.name, "no TLS") {
				tc.script.Banner = "220 hello\r\n234 well\r\n220 in clear text" // says 234 without being asked
				tc.script.Reply = nil
			}
			s := fetchtest.NewFTP(t, tc.script)
			got, _ := attempt(t, patient(), source.Request{URL: parse(t, s.URL+"/x.iso"), Credentials: credentials(), CA: ca.PEM}, image, 0, source.Validator{})
			wantOutcome(t, tc.want, got)
			ss := s.Next(t)
			fetchtest.Await(t, "the end of the session", ss.Closed)
			if said := fmt.Sprint(ss.Commands()); !tc.user && (strings.Contains(said, "USER") || strings.Contains(said, "s3cret")) {
				t.Errorf("the login was sent in clear text: %s", said)
			}
		})
	}
}

// TestFTPSImplicit: on port 990 TLS comes first, and a server without it gets nothing.
func TestFTPSImplicit(t *testing.T) {
	addr := fetchtest.ImplicitAddr(t)
	host, _, _ := net.SplitHostPort(addr)
	for kind := fetchtest.Good; kind <= fetchtest.SelfSigned; kind++ {
		t.Run(kind.String(), func(t *testing.T) {
			s := fetchtest.NewFTP(t, fetchtest.Script{Addr: addr, Implicit: true, TLS: ca.TLS(kind, host), Files: files})
			req := source.Request{URL: parse(t, s.URL+"/x.iso"), Credentials: credentials(), CA: ca.PEM}
			got, _ := attempt(t, patient(), req, image, 0, source.Validator{})
			want := good(image)
			if kind != fetchtest.Good {
				want = failure(source.Human, "certificate", "The certificate of NAME could not be verified: "+reasons[kind]+" Give tls.ca, or tls.verify=false.")
				if said := s.Next(t).Commands(); len(said) > 0 {
					t.Errorf("said %q", said)
				}
			}
			wantOutcome(t, want, got)
		})
	}
	t.Run("plain server", func(t *testing.T) {
		s := fetchtest.NewFTP(t, fetchtest.Script{Addr: addr, Files: files})
		url := strings.Replace(s.URL, "ftp:", "ftps:", 1)
		got, _ := attempt(t, patient(), source.Request{URL: parse(t, url+"/x.iso"), Credentials: credentials()}, image, 0, source.Validator{})
		wantOutcome(t, failure(source.Human, "no_tls", "The server does not speak TLS on this port. Check scheme and port of the URL."), got)
	})
	t.Run("without a port", func(t *testing.T) {
		s := fetchtest.NewFTP(t, fetchtest.Script{Addr: addr, Implicit: true, TLS: ca.TLS(fetchtest.Good, host), Files: files})
		url := strings.TrimSuffix(s.URL, ":990")
		got, _ := attempt(t, patient(), source.Request{URL: parse(t, url+"/x.iso"), CA: ca.PEM}, image, 0, source.Validator{})
		wantOutcome(t, good(image), got)
	})
}

// TestFTPSHandshakeStalls: TLS that does not get going counts as silence.
func TestFTPSHandshakeStalls(t *testing.T) {
	want := failure(source.Temporary, "stalled", silent)
	addr := fetchtest.Listen(t, "", func(c net.Conn) {
		fmt.Fprint(c, "220 hello\r\n")
		buf := make([]byte, 100)
		_, _ = c.Read(buf) // AUTH TLS
		fmt.Fprint(c, "234 go ahead\r\n")
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	})
	got, _ := attempt(t, quick(250*time.Millisecond), source.Request{URL: parse(t, "ftps://"+addr+"/x.iso")}, image, 0, source.Validator{})
	wantOutcome(t, want, got)
}

// TestFTPResume: only a file of the same size and time is continued, and only by a server that does it right.
func TestFTPResume(t *testing.T) {
	const from = 1000
	size := image.Size()
	v := source.Validator{Modified: saturday.Format(time.RFC3339), Size: size}
	tail := outcome{Offset: from, Bytes: size - from, Head: true, Whole: true}
	for _, tc := range []struct {
		name   string
		v      source.Validator
		script fetchtest.Script
		want   outcome
	}{
		{"same", v, fetchtest.Script{Modified: saturday}, tail},
		{"time changed", v, fetchtest.Script{Modified: saturday.Add(time.Second)}, good(image)},
		{"no time", v, fetchtest.Script{}, good(image)},
		{"size changed", source.Validator{Modified: v.Modified, Size: size + 1}, fetchtest.Script{Modified: saturday}, good(image)},
		{"no size", v, fetchtest.Script{Modified: saturday, Reply: map[string]string{"SIZE": "502 no"}}, good(image)},
		{"REST not known", v, fetchtest.Script{Modified: saturday, Reply: map[string]string{"REST": "502 no"}}, good(image)},
		{"REST refused", v, fetchtest.Script{Modified: saturday, Reply: map[string]string{"REST": "554 no"}}, good(image)},
		{"REST accepted but ignored", v, fetchtest.Script{Modified: saturday, NoRest: true},
			failure(source.Permanent, "bad_resume", "The FTP server sent more than it announced.")},
		{"cut in the rest", v, fetchtest.Script{Modified: saturday, Fault: fetchtest.FIN, After: 500, Done: "426 aborted"},
			outcome{Class: source.Temporary, Code: "ftp_426", Message: "The FTP server answered 426 and may work later.", Offset: from, Bytes: 500, Head: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.script.Files = files
			s := fetchtest.NewFTP(t, tc.script)
			got, _ := attempt(t, patient(), source.Request{URL: parse(t, s.URL+"/x.iso")}, image, from, tc.v)
			if got.Code == "bad_resume" {
				got.Bytes, got.Offset, got.Head = 0, 0, false
			}
			wantOutcome(t, tc.want, got)
		})
	}
}

// TestFTPSPlainData: a server that agrees to protect the data and then does not is one that somebody has to look at, though the
// handshake fails only when the data is read.
func TestFTPSPlainData(t *testing.T) {
	s := fetchtest.NewFTP(t, fetchtest.Script{TLS: ca.TLS(fetchtest.Good), Files: files, Reply: map[string]string{"PROT": "200 of course"}})
	got, _ := attempt(t, patient(), source.Request{URL: parse(t, s.URL+"/x.iso"), CA: ca.PEM}, image, 0, source.Validator{})
	wantOutcome(t, failure(source.Human, "no_tls", "The server does not speak TLS on this port. Check scheme and port of the URL."), got)
}
