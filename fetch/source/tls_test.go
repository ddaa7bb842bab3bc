package source_test

import (
	"crypto/tls"
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

var otherCA = fetchtest.NewCA()

// reasons are what the admin is told about each kind of certificate.
var reasons = map[fetchtest.Cert]string{
	fetchtest.Expired:    "it has expired.",
	fetchtest.NotYet:     fmt.Sprintf("it is valid only from %s; the box's clock says %s.", day(24*time.Hour), day(0)),
	fetchtest.WrongHost:  "it is for another host.",
	fetchtest.SelfSigned: "its issuer is not known (self-signed, or a private CA).",
}

func day(later time.Duration) string { return time.Now().Add(later).UTC().Format(time.DateOnly) }

// policyCase is one cell of the matrix of contract section 5.1.
type policyCase struct {
	verify      source.Verify
	ca          string // none, right, other
	credentials bool
	digest      bool
}

func (p policyCase) String() string {
	return fmt.Sprintf("%s, ca %s, credentials %v, digest %v", [...]string{"auto", "always", "never"}[p.verify], p.ca, p.credentials, p.digest)
}

func (p policyCase) request(t testing.TB, url string) source.Request {
	req := source.Request{URL: parse(t, url), Verify: p.verify}
	if p.digest {
		req.SHA256 = image.SHA256()
	}
	if p.credentials {
		req.Credentials = credentials()
	}
	switch p.ca {
	case "right":
		req.CA = ca.PEM
	case "other":
		req.CA = otherCA.PEM
	}
	return req
}

// goesOn says what the contract says: whether an attempt goes on with a certificate that does not verify.
func (p policyCase) goesOn() bool {
	switch {
	case p.ca != "none", p.verify == source.VerifyAlways:
		return false
	case p.verify == source.VerifyNever:
		return true
	}
	return p.digest && !p.credentials
}

func policies() (all []policyCase) {
	for _, verify := range []source.Verify{source.VerifyAuto, source.VerifyAlways, source.VerifyNever} {
		for _, which := range []string{"none", "right", "other"} {
			for _, cred := range []bool{false, true} {
				for _, digest := range []bool{false, true} {
					all = append(all, policyCase{verify, which, cred, digest})
				}
			}
		}
	}
	return all
}

// check opens url and compares with the policy. asked tells whether the server was spoken to behind TLS.
func (p policyCase) check(t *testing.T, kind fetchtest.Cert, url string, asked func() bool) {
	t.Helper()
	verifies := kind == fetchtest.Good && p.ca != "other"
	s, err := client(t, patient()).Open(t.Context(), p.request(t, url), 0, source.Validator{})
	if verifies || p.goesOn() {
		if err != nil {
			t.Fatalf("%v (%v)", err, errors.Unwrap(err))
		}
		defer s.Close()
		if _, err := io.Copy(io.Discard, s); err != nil {
			t.Error(err)
		}
		if s.TLSVerified == nil || *s.TLSVerified != verifies {
			t.Errorf("TLSVerified is not %v", verifies)
		}
		return
	}
	reason := reasons[kind]
	if kind == fetchtest.Good || p.ca == "other" && kind != fetchtest.WrongHost && kind != fetchtest.Expired && kind != fetchtest.NotYet {
		reason = reasons[fetchtest.SelfSigned]
	}
	want := "The certificate of 127.0.0.1 could not be verified: " + reason
	if p.credentials && p.ca == "none" && p.verify == source.VerifyAuto {
		want += " Credentials would be sent."
	}
	want += " Give tls.ca, or tls.verify=false."
	e, ok := err.(*source.Error)
	if !ok || e.Class != source.Human || e.Code != "certificate" || e.Error() != want {
		t.Errorf("got %#v, want %q", err, want)
	}
	if asked() {
		t.Error("the server was asked all the same")
	}
}

func TestTLSPolicy(t *testing.T) {
	for kind := fetchtest.Good; kind <= fetchtest.SelfSigned; kind++ {
		for _, p := range policies() {
			t.Run(fmt.Sprintf("%s: %s", kind, p), func(t *testing.T) {
				s := fetchtest.NewHTTP(t, ca.TLS(kind))
				url := s.Handle("/x.iso", fetchtest.Whole(image).Serve)
				p.check(t, kind, url, func() bool { return len(s.Requests()) > 0 })
			})
		}
	}
}

// TestFTPSPolicy: the same for FTPS, where nothing but AUTH is said before.
func TestFTPSPolicy(t *testing.T) {
	for kind := fetchtest.Good; kind <= fetchtest.SelfSigned; kind++ {
		for _, p := range policies() {
			t.Run(fmt.Sprintf("%s: %s", kind, p), func(t *testing.T) {
				s := fetchtest.NewFTP(t, fetchtest.Script{TLS: ca.TLS(kind), Files: map[string]*fetchtest.Image{"x.iso": image}})
				p.check(t, kind, s.URL+"/x.iso", func() bool { return strings.Contains(fmt.Sprint(s.Next(t).Commands()), "USER") })
			})
		}
	}
}

// TestTLSRedirect: each server on the way is judged by what would be sent to it.
func TestTLSRedirect(t *testing.T) {
	for _, tc := range []struct {
		name        string
		first, then fetchtest.Cert
		credentials bool
		code        string
		verified    bool
	}{
		{"both verify", fetchtest.Good, fetchtest.Good, true, "", true},
		{"credentials stay behind", fetchtest.Good, fetchtest.SelfSigned, true, "", false},
		{"credentials would be sent", fetchtest.SelfSigned, fetchtest.Good, true, "certificate", false},
		{"first does not verify", fetchtest.SelfSigned, fetchtest.Good, false, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := fetchtest.NewHTTP(t, ca.TLS(tc.first)), fetchtest.NewHTTP(t, ca.TLS(tc.then))
			url := a.Handle("/x.iso", fetchtest.Redirect(b.Handle("/y.iso", fetchtest.Whole(image).Serve)))
			req := source.Request{URL: parse(t, url), SHA256: image.SHA256()}
			if tc.credentials {
				req.Credentials = credentials()
			}
			s, err := client(t, patient()).Open(t.Context(), req, 0, source.Validator{})
			var e *source.Error
			if errors.As(err, &e); (e == nil) != (tc.code == "") || e != nil && e.Code != tc.code {
				t.Fatalf("got %v, want %q", err, tc.code)
			}
			if err != nil {
				return
			}
			s.Close()
			if s.TLSVerified == nil || *s.TLSVerified != tc.verified {
				t.Errorf("TLSVerified is not %v", tc.verified)
			}
		})
	}
}

// TestTLSHandshake has the servers that do not get as far as a certificate that one could judge.
func TestTLSHandshake(t *testing.T) {
	change := func(f func(*tls.Config)) *tls.Config {
		c := ca.TLS(fetchtest.Good)
		f(c)
		return c
	}
	old := change(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 })
	tooOld := failure(source.Human, "tls_version", "The server offers no TLS newer than 1.1. Have TLS 1.2 or newer enabled on the server, or use another.")
	onlyH2 := failure(source.Permanent, "only_http2", "The server speaks only HTTP/2.")
	noTLS := failure(source.Human, "no_tls", "The server does not speak TLS on this port. Check scheme and port of the URL.")
	behind := func(conf *tls.Config) func(net.Conn) {
		return func(c net.Conn) { _ = tls.Server(c, conf).Handshake() }
	}
	say := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1))
			fmt.Fprint(c, text)
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
		}
	}
	for _, tc := range []struct {
		name   string
		serve  func(net.Conn)
		verify source.Verify
		want   outcome
	}{
		{"TLS 1.1, auto", behind(old), source.VerifyAuto, tooOld},
		{"TLS 1.1, always", behind(old), source.VerifyAlways, tooOld},
		{"TLS 1.1, never", behind(old), source.VerifyNever, tooOld},
		{"only HTTP/2, and says so", behind(change(func(c *tls.Config) { c.NextProtos = []string{"other"} })), source.VerifyAuto, onlyH2},
		{"only HTTP/2, and speaks it", func(c net.Conn) {
			c = tls.Server(c, ca.TLS(fetchtest.Good))
			_, _ = c.Read(make([]byte, 64*kib))
			fmt.Fprint(c, "\x00\x00\x00\x04\x00\x00\x00\x00\x00") // a SETTINGS frame
		}, source.VerifyAuto, onlyH2},
		{"client certificate wanted", behind(change(func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert })), source.VerifyAuto,
			failure(source.Human, "tls", "The server refused the TLS handshake. Look into the log of the server; it may want a client certificate.")},
		{"trouble of its own", func(c net.Conn) {
			_, _ = c.Read(make([]byte, 64*kib))
			_, _ = c.Write([]byte{21, 3, 3, 0, 2, 2, 80}) // a fatal alert, internal_error
		}, source.VerifyAuto, failure(source.Temporary, "connection", "The server has trouble with TLS.")},
		{"plain HTTP", say("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), source.VerifyAuto, noTLS},
		{"SSH", say("SSH-2.0-OpenSSH_9.2p1\r\n"), source.VerifyAuto, noTLS},
		{"closes at once", func(net.Conn) {}, source.VerifyAuto, failure(source.Temporary, "broken", broke)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := fetchtest.Listen(t, "", tc.serve)
			got, _ := attempt(t, patient(), source.Request{URL: parse(t, "https://"+addr+"/x.iso"), Verify: tc.verify, SHA256: image.SHA256()}, image, 0, source.Validator{})
			wantOutcome(t, tc.want, got)
		})
	}
	t.Run("stalls", func(t *testing.T) {
		addr := fetchtest.Listen(t, "", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
		cfg := patient()
		cfg.HandshakeTimeout = 200 * time.Millisecond
		got, _ := attempt(t, cfg, source.Request{URL: parse(t, "https://"+addr+"/x.iso")}, image, 0, source.Validator{})
		wantOutcome(t, failure(source.Temporary, "tls_timeout", "The server did not complete the TLS handshake in time."), got)
	})
}

// TestTLSAlert: an alert in the middle of a body is a connection that breaks, not a handshake that somebody has to look at.
func TestTLSAlert(t *testing.T) {
	addr := fetchtest.Listen(t, "", func(raw net.Conn) {
		p := &poisoned{Conn: raw}
		c := tls.Server(p, ca.TLS(fetchtest.Good))
		_, _ = c.Read(make([]byte, 64*kib))
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", image.Size())
		_, _ = c.Write(image.Bytes()[:1000])
		p.now = true
		_, _ = c.Read(make([]byte, 1)) // which finds a broken record, and says so to the other side
	})
	got, _ := attempt(t, patient(), source.Request{URL: parse(t, "https://"+addr+"/x.iso"), CA: ca.PEM}, image, 0, source.Validator{})
	wantOutcome(t, after(1000, failure(source.Temporary, "broken", broke)), got)
}

// poisoned is a connection on which nonsense arrives from now on.
type poisoned struct {
	net.Conn
	now bool
}

func (p *poisoned) Read(b []byte) (int, error) {
	if p.now {
		return copy(b, append([]byte{23, 3, 3, 0, 32}, make([]byte, 32)...)), nil
	}
	return p.Conn.Read(b)
}

// TestTLSTruncated: a body that ends without the goodbye of TLS. Without a length the digest must tell.
func TestTLSTruncated(t *testing.T) {
	f := fetchtest.Whole(image)
	f.Fault, f.After = fetchtest.FIN, 1000
	for _, tc := range []struct {
		name   string
		length int64
		want   outcome
	}{
		{"length", 0, after(1000, failure(source.Temporary, "broken", broke))},
		{"no length", -1, outcome{Bytes: 1000, Head: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f.Length = tc.length
			s := fetchtest.NewHTTP(t, ca.TLS(fetchtest.Good))
			got, _ := attempt(t, patient(), source.Request{URL: parse(t, s.Handle("/x.iso", f.Serve)), CA: ca.PEM}, image, 0, source.Validator{})
			wantOutcome(t, tc.want, got)
		})
	}
}

func TestTLSBadCA(t *testing.T) {
	want := failure(source.Human, "ca", "tls.ca holds no PEM certificate. Give the PEM text of the CA's certificate and start again.")
	for _, url := range []string{"https://127.0.0.1:1/x.iso", "ftps://127.0.0.1:1/x.iso"} {
		got, _ := attempt(t, patient(), source.Request{URL: parse(t, url), CA: []byte("garbage")}, image, 0, source.Validator{})
		wantOutcome(t, want, got)
	}
}
