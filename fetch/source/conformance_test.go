package source_test

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

// ca signs the test servers' certificates; the system's roots are none but this one.
var ca = fetchtest.NewCA()

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "roots")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "ca.pem"), ca.PEM, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Setenv("SSL_CERT_FILE", filepath.Join(dir, "ca.pem"))
	os.Setenv("SSL_CERT_DIR", filepath.Join(dir, "none"))
	code := m.Run()
	os.RemoveAll(dir)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func TestConformanceHTTP(t *testing.T)  { fetchtest.TestSource(t, httpBackend(nil)) }
func TestConformanceHTTPS(t *testing.T) { fetchtest.TestSource(t, httpBackend(ca)) }

func httpBackend(ca *fetchtest.CA) fetchtest.Backend {
	var conf *tls.Config
	b := fetchtest.Backend{}
	if ca != nil {
		conf, b.CA = ca.TLS(fetchtest.Good), ca.PEM
	}
	b.Start = func(t testing.TB, o fetchtest.Offer) fetchtest.Place {
		s := fetchtest.NewHTTP(t, conf)
		put := func(img *fetchtest.Image, modified time.Time) {
			f := fetchtest.Whole(img)
			f.Modified, f.Fault, f.After, f.Length = modified, o.Fault, o.After, o.Announce
			s.Handle("/x.iso", f.Serve)
		}
		put(o.Image, o.Modified)
		var x *fetchtest.Exchange
		asked := func(t testing.TB) { x = s.Next(t) }
		return fetchtest.Place{URL: s.URL + "/x.iso", Replace: put, Asked: asked, Ended: func(t testing.TB) {
			if x == nil {
				asked(t)
			}
			fetchtest.Await(t, "the end of the connection", x.Closed)
			x = nil
		}}
	}
	return b
}

func TestConformanceFTP(t *testing.T) {
	for _, tc := range []struct {
		name   string
		script fetchtest.Script
		ca     []byte
	}{
		{"plain", fetchtest.Script{}, nil},
		{"explicit TLS", fetchtest.Script{TLS: ca.TLS(fetchtest.Good), Reuse: true}, ca.PEM},
		{"implicit TLS", fetchtest.Script{Implicit: true, Reuse: true}, ca.PEM},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fetchtest.TestSource(t, ftpBackend(tc.script, tc.ca))
		})
	}
}

func ftpBackend(script fetchtest.Script, pem []byte) fetchtest.Backend {
	return fetchtest.Backend{CA: pem, Start: func(t testing.TB, o fetchtest.Offer) fetchtest.Place {
		script := script
		if script.Implicit {
			script.Addr = fetchtest.ImplicitAddr(t)
			script.TLS = ca.TLS(fetchtest.Good, script.Addr[:len(script.Addr)-len(":990")])
		}
		script.Files, script.Modified = map[string]*fetchtest.Image{"x.iso": o.Image}, o.Modified
		script.Fault, script.After = o.Fault, o.After
		if o.Announce > 0 {
			script.Reply = map[string]string{"SIZE": fmt.Sprintf("213 %d", o.Announce)}
		}
		s := fetchtest.NewFTP(t, script)
		replace := func(img *fetchtest.Image, modified time.Time) { s.SetFile("x.iso", img, modified) }
		var ss *fetchtest.Session
		asked := func(t testing.TB) { ss = s.Next(t) }
		return fetchtest.Place{URL: s.URL + "/x.iso", Replace: replace, Asked: asked, Ended: func(t testing.TB) {
			if ss == nil {
				asked(t)
			}
			fetchtest.Await(t, "the end of the session", ss.Closed)
			ss = nil
		}}
	}}
}

// onlyWell are the cases for which a server has to misbehave.
var onlyWell = map[string]string{
	"announced too long":  "the server tells the truth",
	"announced too short": "the server tells the truth",
	"truncated":           "the server sends all",
	"reset":               "the server sends all",
	"stalled":             "the server does not stall",
	"mute":                "the server answers",
	"cancelled in Open":   "the server answers",
}

// onlyResume are the other cases, for a server with which each login takes seconds.
var onlyResume = map[string]string{}

func init() {
	for name, why := range onlyWell {
		onlyResume[name] = why
	}
	for _, name := range []string{"whole file", "empty file", "missing file", "offset without validator", "resume a changed file",
		"cancelled before", "cancelled in the middle"} {
		onlyResume[name] = "the server is slow at logging in"
	}
}

func TestConformanceRealFTP(t *testing.T) {
	for _, server := range []struct {
		name  string
		start func(testing.TB, fetchtest.RealConfig) *fetchtest.Real
		not   map[string]string
	}{
		{"vsftpd", fetchtest.StartVsftpd, onlyWell},
		{"pyftpdlib", fetchtest.StartPyftpdlib, onlyWell},
		{"pure-ftpd", fetchtest.StartPureFTPd, onlyResume},
	} {
		for _, mode := range []struct {
			name   string
			config fetchtest.RealConfig
		}{
			{"plain", fetchtest.RealConfig{}},
			{"explicit TLS", fetchtest.RealConfig{CA: ca}},
			{"implicit TLS", fetchtest.RealConfig{CA: ca, Implicit: true}},
		} {
			t.Run(server.name+" "+mode.name, func(t *testing.T) {
				b := fetchtest.Backend{Not: server.not, Start: func(t testing.TB, o fetchtest.Offer) fetchtest.Place {
					r := server.start(t, mode.config)
					put := func(img *fetchtest.Image, modified time.Time) { img.WriteFile(t, r.Dir, "x.iso", modified) }
					put(o.Image, o.Modified)
					return fetchtest.Place{URL: r.URL + "/x.iso", Replace: put, Ended: func(t testing.TB) {
						fetchtest.Await(t, "the end of the session", r.Ended)
					}}
				}}
				if mode.config.CA != nil {
					b.CA = ca.PEM
				}
				server.start(t, mode.config) // skips once for all cases
				fetchtest.TestSource(t, b)
			})
		}
	}
}

func TestConformanceFile(t *testing.T) {
	dir := t.TempDir()
	fetchtest.TestSource(t, fetchtest.Backend{
		Config: source.Config{FileRoots: []string{dir}},
		Not:    onlyWell,
		Start: func(t testing.TB, o fetchtest.Offer) fetchtest.Place {
			put := func(img *fetchtest.Image, modified time.Time) { img.WriteFile(t, dir, "x.iso", modified) }
			put(o.Image, o.Modified)
			return fetchtest.Place{URL: "file://" + filepath.Join(dir, "x.iso"), Replace: put}
		},
	})
}
