package source_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http/httpproxy"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

// hop is what a test can know of a source.Hop: of durations, whether there is one. Dates, which each answer has, are left out.
type hop struct {
	URL, Proxy, Address          string
	DNS, Connect, TLS, FirstByte bool
	Certificate                  string // whom the server's certificate is for; empty: none was seen
	Verified                     bool
	Reason                       string
	Status                       int
	Header                       source.Header
}

// nothing is the header of a server that was not heard.
var nothing = source.Header{Length: -1}

func hops(t testing.TB, trace *source.Trace) []hop {
	t.Helper()
	var got []hop
	for _, h := range trace.Hops() {
		if age := time.Since(h.Began); age < 0 || age > time.Hour {
			t.Errorf("a hop began %s ago", age)
		}
		for name, d := range map[string]time.Duration{"DNS": h.DNS, "connect": h.Connect, "TLS": h.TLS, "first byte": h.FirstByte} {
			if d < 0 || d > time.Since(h.Began) {
				t.Errorf("%s took %s of %s", name, d, time.Since(h.Began))
			}
		}
		g := hop{h.URL, h.Proxy, h.Address, h.DNS > 0, h.Connect > 0, h.TLS > 0, h.FirstByte > 0, "", h.Verified, h.Reason, h.Status, h.Header}
		if at, err := http.ParseTime(h.Header.Date); (err == nil) != (h.Status > 0) || err == nil && time.Since(at).Abs() > time.Hour {
			t.Errorf("the answer of status %d is of %q", h.Status, h.Header.Date)
		}
		g.Header.Date = ""
		if h.State != nil {
			g.Certificate = h.State.PeerCertificates[0].Subject.CommonName
		}
		got = append(got, g)
	}
	return got
}

func wantHops(t testing.TB, trace *source.Trace, want ...hop) {
	t.Helper()
	if d := cmp.Diff(want, hops(t, trace)); d != "" {
		t.Errorf("hops (-want +got):\n%s", d)
	}
}

// fetched opens a URL with a trace and reads all.
func fetched(t testing.TB, c *source.Client, req source.Request) (*source.Trace, error) {
	t.Helper()
	req.Trace = new(source.Trace)
	s, err := c.Open(t.Context(), req, 0, source.Validator{})
	if err != nil {
		return req.Trace, err
	}
	defer s.Close()
	if n, err := io.Copy(io.Discard, s); err != nil {
		t.Errorf("%d bytes, then %v", n, err)
	}
	return req.Trace, nil
}

func TestTraceRedirect(t *testing.T) {
	a, b := fetchtest.NewHTTP(t, nil), fetchtest.NewHTTP(t, ca.TLS(fetchtest.SelfSigned))
	raw, _ := hex.DecodeString(image.SHA256())
	said := base64.StdEncoding.EncodeToString(raw)
	file := fetchtest.Whole(image)
	file.Header = []string{"Accept-Ranges: bytes", "Repr-Digest: sha-256=:" + said + ":",
		"Digest: SHA-256=" + said, "X-Checksum-Sha256: " + image.SHA256()}
	url := a.Handle("/x.iso", fetchtest.Redirect(b.Handle("/y.iso", file.Serve)+"?sig=canary"))
	url = strings.NewReplacer("127.0.0.1", "localhost", "/x.iso", "/x.iso?token=canary").Replace(url)
	trace, err := fetched(t, client(t, patient()), source.Request{URL: parse(t, url), SHA256: image.SHA256()})
	if err != nil {
		t.Fatal(err)
	}
	if n := trace.Connections(); n != 1 {
		t.Errorf("%d connections at a time", n)
	}
	wantHops(t, trace,
		hop{URL: strings.Replace(a.URL, "127.0.0.1", "localhost", 1) + "/x.iso?…", Address: a.Addr, DNS: true, Connect: true, FirstByte: true,
			Status: 302, Header: source.Header{}},
		hop{URL: b.URL + "/y.iso?…", Address: b.Addr, Connect: true, TLS: true, FirstByte: true,
			Certificate: "self-signed", Reason: reasons[fetchtest.SelfSigned], Status: 200,
			Header: source.Header{AcceptRanges: "bytes", ReprDigest: "sha-256=:" + said + ":",
				Digest: "SHA-256=" + said, XChecksum: image.SHA256(), SHA256: image.SHA256(), Length: image.Size()}})
}

// TestTraceProxy: the address is the proxy's, the certificate the server's.
func TestTraceProxy(t *testing.T) {
	for _, secure := range []bool{false, true} {
		for _, target := range []string{"http", "https"} {
			t.Run(fmt.Sprint("TLS to the proxy ", secure, ", ", target), func(t *testing.T) {
				behind := fetchtest.NewHTTP(t, ca.TLS(fetchtest.Expired))
				var conf *tls.Config
				if secure {
					conf = ca.TLS(fetchtest.Good)
				}
				proxy := fetchtest.NewHTTP(t, conf)
				behind.Handle("/x.iso", fetchtest.Whole(image).Serve)
				proxy.Handle("", fetchtest.Tunnel(behind.Addr))
				proxy.Handle("/x.iso", fetchtest.Whole(image).Serve)
				cfg := patient()
				with := strings.Replace(proxy.URL, "://", "://canary:canary@", 1)
				cfg.Proxy = &httpproxy.Config{HTTPProxy: with, HTTPSProxy: with}
				req := source.Request{URL: parse(t, target+"://images.example/x.iso"), SHA256: image.SHA256(), Verify: source.VerifyNever}
				trace, err := fetched(t, client(t, cfg), req)
				if err != nil {
					t.Fatal(err)
				}
				want := hop{URL: target + "://images.example/x.iso", Proxy: proxy.Addr, Address: proxy.Addr, Connect: true, FirstByte: true,
					Status: 200, Header: source.Header{Length: image.Size()}}
				if target == "https" {
					want.TLS, want.Certificate, want.Reason = true, "expired", reasons[fetchtest.Expired]
				}
				wantHops(t, trace, want)
			})
		}
	}
}

func TestTraceFTP(t *testing.T) {
	for _, tc := range []struct {
		name   string
		script func() fetchtest.Script
		tls    bool
	}{
		{"ftp", func() fetchtest.Script { return fetchtest.Script{} }, false},
		{"explicit", func() fetchtest.Script { return fetchtest.Script{TLS: ca.TLS(fetchtest.Good)} }, true},
		{"explicit, TLS 1.2", func() fetchtest.Script {
			s := fetchtest.Script{TLS: ca.TLS(fetchtest.Good), Reuse: true}
			s.TLS.MaxVersion = tls.VersionTLS12
			return s
		}, true},
		{"implicit", func() fetchtest.Script {
			addr := fetchtest.ImplicitAddr(t)
			host, _, _ := strings.Cut(addr, ":")
			return fetchtest.Script{Addr: addr, Implicit: true, TLS: ca.TLS(fetchtest.Good, host)}
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			script := tc.script()
			script.Files = files
			s := fetchtest.NewFTP(t, script)
			trace, err := fetched(t, client(t, patient()), source.Request{URL: parse(t, s.URL+"/x.iso"), Credentials: credentials(), CA: ca.PEM})
			if err != nil {
				t.Fatal(err)
			}
			want := hop{URL: s.URL + "/x.iso", Address: s.Addr, Connect: true, FirstByte: true, TLS: tc.tls, Verified: tc.tls, Header: nothing}
			if tc.tls {
				want.Certificate = "good"
			}
			wantHops(t, trace, want)
			if h := trace.Hops()[0]; h.FirstByte < h.TLS {
				t.Errorf("the answer to RETR came after %s, the handshake took %s", h.FirstByte, h.TLS)
			}
		})
	}
}

// TestTraceFailure: what was reached is there, what was not is empty.
func TestTraceFailure(t *testing.T) {
	h, secure := fetchtest.NewHTTP(t, nil), fetchtest.NewHTTP(t, ca.TLS(fetchtest.Expired))
	busy := h.Handle("/busy.iso", fetchtest.Status(503))
	mute := h.Handle("/mute.iso", fetchtest.Mute)
	away := h.Handle("/away.iso", fetchtest.Redirect("https://127.0.0.1:1/x.iso"))
	ftp := fetchtest.NewFTP(t, fetchtest.Script{Reply: map[string]string{"PASS": "530 no"}})
	none := fetchtest.NewFTP(t, fetchtest.Script{})
	short := patient()
	short.HeaderTimeout = 200 * time.Millisecond
	for _, tc := range []struct {
		name, url, code string
		cfg             source.Config
		want            []hop
	}{
		{"503", busy, "http_503", patient(),
			[]hop{{URL: busy, Address: h.Addr, Connect: true, FirstByte: true, Status: 503}}},
		{"no answer", mute, "stalled", short,
			[]hop{{URL: mute, Address: h.Addr, Connect: true, Header: nothing}}},
		{"certificate", secure.URL + "/x.iso", "certificate", patient(),
			[]hop{{URL: secure.URL + "/x.iso", Address: secure.Addr, Connect: true, TLS: true, Certificate: "expired", Reason: reasons[fetchtest.Expired],
				Header: nothing}}},
		{"no TLS", "https://" + ftp.Addr + "/x.iso", "no_tls", patient(),
			[]hop{{URL: "https://" + ftp.Addr + "/x.iso", Address: ftp.Addr, Connect: true, TLS: true, Header: nothing}}},
		{"refused, after a redirect", away, "refused", patient(),
			[]hop{{URL: away, Address: h.Addr, Connect: true, FirstByte: true, Status: 302},
				{URL: "https://127.0.0.1:1/x.iso", Address: "127.0.0.1:1", Header: nothing}}},
		{"egress", "http://169.254.169.254/x.iso", "egress", patient(),
			[]hop{{URL: "http://169.254.169.254/x.iso", Address: "169.254.169.254:80", Header: nothing}}},
		{"no name", "http://nowhere.invalid/x.iso", "dns", patient(),
			[]hop{{URL: "http://nowhere.invalid/x.iso", DNS: true, Header: nothing}}},
		{"no name, ftp", "ftp://nowhere.invalid/x.iso", "dns", patient(),
			[]hop{{URL: "ftp://nowhere.invalid/x.iso", DNS: true, Header: nothing}}},
		{"login", ftp.URL + "/x.iso", "ftp_login", patient(),
			[]hop{{URL: ftp.URL + "/x.iso", Address: ftp.Addr, Connect: true, Header: nothing}}},
		{"no file", none.URL + "/x.iso", "ftp_550", patient(),
			[]hop{{URL: none.URL + "/x.iso", Address: none.Addr, Connect: true, FirstByte: true, Header: nothing}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			trace, err := fetched(t, client(t, tc.cfg), source.Request{URL: parse(t, tc.url)})
			var e *source.Error
			if !errors.As(err, &e) || e.Code != tc.code {
				t.Errorf("got %v, want %s", err, tc.code)
			}
			wantHops(t, trace, tc.want...)
		})
	}
}

// TestTraceLive: whoever asks sees what there is while the attempt waits.
func TestTraceLive(t *testing.T) {
	s := fetchtest.NewHTTP(t, nil)
	req := source.Request{URL: parse(t, s.Handle("/x.iso", fetchtest.Mute)), Trace: new(source.Trace)}
	wantHops(t, req.Trace)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = client(t, patient()).Open(ctx, req, 0, source.Validator{})
	}()
	s.Next(t) // it was asked
	wantHops(t, req.Trace, hop{URL: s.URL + "/x.iso", Address: s.Addr, Connect: true, Header: nothing})
	cancel()
	fetchtest.Await(t, "the end of the attempt", done)
}

// TestTraceSpread: of many connections the first is traced.
func TestTraceSpread(t *testing.T) {
	img := fetchtest.NewImage(9, 4*mib)
	s := newRanged(t, img, nil)
	trace, err := fetched(t, spreading(t, 4), source.Request{URL: parse(t, s.URL+"/x.iso")})
	if err != nil {
		t.Fatal(err)
	}
	if s.asked.Load() < 2 {
		t.Error("it was not spread")
	}
	if got := hops(t, trace); len(got) != 1 || got[0].Header.Length != img.Size() {
		t.Errorf("got %+v", got)
	}
	if n := int64(trace.Connections()); n < 2 || n > 4 {
		t.Errorf("%d connections", n)
	}
}

// TestTraceApart: a trace is no part of a request that is stored or compared, and a file has none.
func TestTraceApart(t *testing.T) {
	dir := t.TempDir()
	image.WriteFile(t, dir, "x.iso", saturday)
	cfg := patient()
	cfg.FileRoots = []string{dir}
	req := source.Request{URL: parse(t, "file://"+dir+"/x.iso")}
	trace, err := fetched(t, client(t, cfg), req)
	if err != nil {
		t.Fatal(err)
	}
	wantHops(t, trace)
	without, err1 := json.Marshal(req)
	req.Trace = trace
	with, err2 := json.Marshal(req)
	if err := errors.Join(err1, err2); err != nil || string(without) != string(with) {
		t.Errorf("%s, then %s (%v)", without, with, err)
	}
}
