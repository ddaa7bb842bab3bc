package source_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http/httpproxy"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

// ranging is a good server's file, with ranges that have an end too.
func ranging(img *fetchtest.Image) fetchtest.File {
	f := fetchtest.Whole(img)
	f.Ends = true
	return f
}

// found is a report without what is good: "NAME RESULT CODE" for each other check. Skipped ones stand there only if
// nothing at all was looked at for them.
func found(t testing.TB, r source.Report) []string {
	t.Helper()
	var bad []string
	for _, c := range r.Checks {
		trouble := c.Result == source.Warning || c.Result == source.Fail
		if c.Name == "" || !strings.HasSuffix(c.Message, ".") || (c.Remedy != "") != trouble || (c.Code != "") != trouble {
			t.Errorf("odd check %+v", c)
		}
		if text := fmt.Sprint(c); strings.Contains(text, "s3cret") || strings.Contains(text, "signature") {
			t.Errorf("it has a secret: %+v", c)
		}
		if t.Failed() || testing.Verbose() {
			t.Logf("%-11s %-7s %s | %s", c.Name, c.Result, c.Message, c.Remedy)
		}
		switch {
		case trouble:
			bad = append(bad, strings.TrimSpace(fmt.Sprintf("%s %s %s", c.Name, c.Result, c.Code)))
		case c.Result == source.Skipped && c.Message == "Not looked at.":
			bad = append(bad, c.Name+" skipped")
		}
	}
	return bad
}

func names(r source.Report) string {
	var all []string
	for _, c := range r.Checks {
		all = append(all, c.Name)
	}
	return strings.Join(all, " ")
}

func wantFound(t testing.TB, r source.Report, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, found(t, r)); d != "" {
		t.Errorf("checks (-want +got):\n%s", d)
	}
}

func messageOf(r source.Report, name string) string {
	for _, c := range r.Checks {
		if c.Name == name {
			return c.Message
		}
	}
	return ""
}

// look probes with a digest, as a fetch has it.
func look(t testing.TB, c *source.Client, req source.Request) source.Report {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 2*fetchtest.Patience) // for code that hangs
	defer stop()
	if req.SHA256 == "" {
		req.SHA256 = image.SHA256()
	}
	return c.Probe(ctx, req)
}

const httpChecks = "proxy dns egress connect redirects credentials answer clock digest size rate resume"

var httpsChecks = strings.Replace(httpChecks, "redirects", "tls redirects", 1)

// TestProbeHTTP has a row for each thing that a server may do.
func TestProbeHTTP(t *testing.T) {
	large := fetchtest.NewImage(8, 2*mib)
	file := func(change func(*fetchtest.File)) fetchtest.Handler {
		f := ranging(large)
		change(&f)
		return f.Serve
	}
	dated := func(date time.Time) fetchtest.Handler {
		return fetchtest.Raw("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: \"e\"\r\nDate: " + date.UTC().Format(http.TimeFormat) + "\r\n\r\n")
	}
	other := strings.Repeat("0", 64)
	for _, tc := range []struct {
		name    string
		handler fetchtest.Handler
		want    []string
	}{
		{"good", ranging(large).Serve, nil},
		{"announces the digest", file(func(f *fetchtest.File) { f.Header = []string{"X-Checksum-Sha256: " + large.SHA256()} }), nil},
		{"announces another digest", file(func(f *fetchtest.File) { f.Header = []string{"X-Checksum-Sha256: " + other} }),
			[]string{"credentials skipped", "answer skipped", "digest fail digest", "size skipped", "rate skipped", "resume skipped"}},
		{"404", fetchtest.Status(404),
			[]string{"credentials skipped", "answer fail http_404", "digest skipped", "size skipped", "rate skipped", "resume skipped"}},
		{"401", fetchtest.Protected("ann", "x", ranging(large).Serve),
			[]string{"credentials fail http_401", "answer skipped", "digest skipped", "size skipped", "rate skipped", "resume skipped"}},
		{"403", fetchtest.Status(403),
			[]string{"credentials fail http_403", "answer skipped", "digest skipped", "size skipped", "rate skipped", "resume skipped"}},
		{"503", fetchtest.Status(503, "Retry-After: 20"),
			[]string{"credentials skipped", "answer fail http_503", "digest skipped", "size skipped", "rate skipped", "resume skipped"}},
		{"compressed", file(func(f *fetchtest.File) { f.Header = []string{"Content-Encoding: gzip"} }),
			[]string{"credentials skipped", "answer fail encoding", "digest skipped", "size skipped", "rate skipped", "resume skipped"}},
		{"no HTTP", fetchtest.Raw("SSH-2.0-x\r\n"), []string{"redirects skipped", "credentials skipped", "answer fail malformed_answer",
			"clock skipped", "digest skipped", "size skipped", "rate skipped", "resume skipped"}},
		{"no length", file(func(f *fetchtest.File) { f.Length = -1 }), []string{"size warning size_unknown"}},
		{"no validator", file(func(f *fetchtest.File) { f.ETag, f.Modified = `W/"weak"`, time.Time{} }), []string{"resume warning no_validator"}},
		{"no ranges", file(func(f *fetchtest.File) { f.NoRange = true }), []string{"resume warning no_ranges"}},
		{"wrong Content-Range", file(func(f *fetchtest.File) { f.ContentRange = "bytes 1-2/3" }), []string{"resume warning bad_resume"}},
		{"206 of other bytes", confused(large), []string{"resume warning bad_resume"}},
		{"one connection at a time", fetchtest.Sequence(ranging(large).Serve, fetchtest.Status(503)), []string{"resume warning http_503"}},
		{"breaks off", file(func(f *fetchtest.File) { f.Fault, f.After = fetchtest.FIN, 100*kib }),
			[]string{"rate fail broken", "resume skipped"}},
		{"a web page", fetchtest.Raw("HTTP/1.1 200 OK\r\nContent-Length: 20\r\nETag: \"e\"\r\nDate: " + time.Now().UTC().Format(http.TimeFormat) +
			"\r\n\r\n <!DOCTYPE html><html"), []string{"answer warning html", "resume warning no_ranges"}},
		{"clock 50 s off", dated(time.Now().Add(50 * time.Second)), nil},
		{"clock ahead", dated(time.Now().Add(2 * time.Hour)), []string{"clock warning clock"}},
		{"clock behind", dated(time.Now().Add(-2 * time.Hour)), []string{"clock warning clock"}},
		{"clock of another year", dated(time.Now().AddDate(-3, 0, 0)), []string{"clock warning clock"}},
		{"empty file", ranging(fetchtest.NewImage(1, 0)).Serve, nil},
		{"two bytes", ranging(fetchtest.NewImage(1, 2)).Serve, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fetchtest.NewHTTP(t, nil)
			r := look(t, client(t, patient()), source.Request{URL: parse(t, s.Handle("/x.iso", tc.handler)+"?signature=1"), SHA256: large.SHA256()})
			wantFound(t, r, tc.want...)
			if names(r) != httpChecks {
				t.Errorf("the checks are %s", names(r))
			}
			if fails := strings.Contains(strings.Join(tc.want, " "), " fail "); r.Failed() != fails {
				t.Errorf("failed is %v", r.Failed())
			}
			for text, name := range map[string]string{"clock ahead": "s ahead of the box's.", "clock behind": "s behind the box's.", "clock of another year": "The box's clock says 20"} {
				if tc.name == text && !strings.Contains(messageOf(r, "clock"), name) {
					t.Errorf("it says %q", messageOf(r, "clock"))
				}
			}
		})
	}
}

// confused has other bytes for whoever asks for a part.
func confused(img *fetchtest.Image) fetchtest.Handler {
	good, other := ranging(img), ranging(fetchtest.NewImage(9, img.Size()))
	other.ETag = good.ETag
	return func(x *fetchtest.Exchange) {
		if x.Header.Get("Range") != "" {
			other.Serve(x)
			return
		}
		good.Serve(x)
	}
}

// TestProbeAsks looks at what the server sees: one whole request and a small one with the validator.
func TestProbeAsks(t *testing.T) {
	img := fetchtest.NewImage(8, 30*mib+5)
	s := fetchtest.NewHTTP(t, nil)
	r := look(t, client(t, patient()), source.Request{URL: parse(t, s.Handle("/x.iso", ranging(img).Serve)), SHA256: img.SHA256()})
	wantFound(t, r)
	if r.Size != img.Size() || r.Rate <= 0 {
		t.Errorf("size %d, rate %d", r.Size, r.Rate)
	}
	asked := s.Requests()
	if len(asked) != 2 || asked[0].Header.Get("Range") != "" || asked[1].Header.Get("If-Range") != ranging(img).ETag ||
		asked[1].Header.Get("Range") != fmt.Sprintf("bytes=%d-%d", 8*mib-4*kib, 8*mib-1) {
		t.Errorf("%d requests, the last with %v", len(asked), asked[len(asked)-1].Header)
	}
	<-asked[0].Closed
	if sent := asked[0].Sent(); sent > 20*mib { // what the sockets hold comes on top
		t.Errorf("the sample made the server send %d bytes", sent)
	}
}

// TestProbeSpread: where several connections would be used, a server that confuses ranges spoils the fetch.
func TestProbeSpread(t *testing.T) {
	img := fetchtest.NewImage(8, 2*mib)
	s := fetchtest.NewHTTP(t, nil)
	r := look(t, spreading(t, 0), source.Request{URL: parse(t, s.Handle("/x.iso", confused(img))), SHA256: img.SHA256()})
	wantFound(t, r, "resume fail bad_resume")
}

// TestProbeTLS has the real decisions about certificates.
func TestProbeTLS(t *testing.T) {
	way := []string{"redirects skipped", "credentials skipped", "answer skipped", "clock skipped", "digest skipped", "size skipped", "rate skipped", "resume skipped"}
	refused := append([]string{"tls fail certificate"}, way...)
	for _, tc := range []struct {
		name string
		kind fetchtest.Cert
		req  source.Request
		want []string
	}{
		{"good", fetchtest.Lasting, source.Request{}, nil},
		{"good, with credentials", fetchtest.Lasting, source.Request{Credentials: credentials()}, nil},
		{"expires soon", fetchtest.Good, source.Request{}, []string{"tls warning certificate_expires"}},
		{"self-signed", fetchtest.SelfSigned, source.Request{}, []string{"tls warning certificate"}},
		{"self-signed, with credentials", fetchtest.SelfSigned, source.Request{Credentials: credentials()}, refused},
		{"self-signed, never verify", fetchtest.SelfSigned, source.Request{Credentials: credentials(), Verify: source.VerifyNever}, []string{"tls warning certificate"}},
		{"self-signed, always verify", fetchtest.SelfSigned, source.Request{Verify: source.VerifyAlways}, refused},
		{"expired", fetchtest.Expired, source.Request{}, []string{"tls warning certificate"}},
		{"not yet", fetchtest.NotYet, source.Request{Verify: source.VerifyAlways}, refused},
		{"another CA", fetchtest.Lasting, source.Request{CA: otherCA.PEM}, refused},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fetchtest.NewHTTP(t, ca.TLS(tc.kind))
			tc.req.URL = parse(t, s.Handle("/x.iso", ranging(image).Serve))
			r := look(t, client(t, patient()), tc.req)
			wantFound(t, r, tc.want...)
			if names(r) != httpsChecks {
				t.Errorf("the checks are %s", names(r))
			}
			for _, x := range s.Requests() {
				if _, _, ok := x.Auth(); ok && r.Failed() {
					t.Error("credentials were sent")
				}
			}
		})
	}
	// Without a digest it decides as if there were one; the caller says that it is missing.
	s := fetchtest.NewHTTP(t, ca.TLS(fetchtest.SelfSigned))
	url := parse(t, s.Handle("/x.iso", ranging(image).Serve))
	wantFound(t, client(t, patient()).Probe(t.Context(), source.Request{URL: url}), "tls warning certificate")
}

func TestProbeRedirects(t *testing.T) {
	secure := fetchtest.NewHTTP(t, ca.TLS(fetchtest.SelfSigned))
	there := secure.Handle("/x.iso", ranging(image).Serve)
	s := fetchtest.NewHTTP(t, nil)
	s.Handle("/x.iso", ranging(image).Serve)
	one := s.Handle("/one", fetchtest.Redirect("/x.iso?signature=1"))
	loop := s.Handle("/loop", fetchtest.Redirect("/loop"))
	away := s.Handle("/away", fetchtest.Redirect(there))
	c := client(t, patient())

	r := look(t, c, source.Request{URL: parse(t, one)})
	wantFound(t, r)
	if got := messageOf(r, "redirects"); got != "1 on the way to "+s.URL+"/x.iso?…." {
		t.Error(got)
	}
	rest := []string{"answer skipped", "digest skipped", "size skipped", "rate skipped", "resume skipped"}
	wantFound(t, look(t, c, source.Request{URL: parse(t, loop)}), append([]string{"redirects fail redirects", "credentials skipped"}, rest...)...)
	r = look(t, c, source.Request{URL: parse(t, away), Credentials: credentials()})
	wantFound(t, r, "tls warning certificate", "credentials warning clear_text")
	if got := messageOf(r, "redirects"); !strings.HasSuffix(got, "The credentials do not go there.") {
		t.Error(got)
	}
	down := secure.Handle("/down", fetchtest.Redirect(s.URL+"/x.iso"))
	wantFound(t, look(t, c, source.Request{URL: parse(t, down)}),
		append([]string{"tls warning certificate", "redirects fail redirect_downgrade", "credentials skipped"}, rest...)...)
}

// TestProbeWay is about servers that are not reached.
func TestProbeWay(t *testing.T) {
	rest := []string{"redirects skipped", "credentials skipped", "answer skipped", "clock skipped", "digest skipped", "size skipped", "rate skipped", "resume skipped"}
	s := fetchtest.NewHTTP(t, nil)
	url := s.Handle("/x.iso", ranging(image).Serve)
	mute := s.Handle("/mute.iso", fetchtest.Mute)
	none := patient()
	none.Egress = source.Egress{}
	bounded := client(t, patient())
	bounded.Look(50*time.Millisecond, time.Second, mib)
	proxied := patient()
	proxied.Proxy = &httpproxy.Config{HTTPProxy: s.URL}
	s.Handle("/proxied.iso", ranging(image).Serve)
	noProxy := patient()
	noProxy.Proxy = &httpproxy.Config{HTTPProxy: "http://127.0.0.1:1"}
	asking := fetchtest.NewHTTP(t, nil)
	asking.Handle("/x.iso", fetchtest.Status(407))
	closed := patient()
	closed.Proxy = &httpproxy.Config{HTTPProxy: asking.URL}
	for _, tc := range []struct {
		name   string
		client *source.Client
		url    string
		want   []string
	}{
		{"no such name", client(t, patient()), "http://nowhere.invalid/x.iso", append([]string{"dns fail dns", "egress skipped", "connect skipped"}, rest...)},
		{"egress", client(t, none), url, append([]string{"egress fail egress", "connect skipped"}, rest...)},
		{"nobody listens", client(t, patient()), "http://127.0.0.1:1/x.iso", append([]string{"egress skipped", "connect fail refused"}, rest...)},
		{"no answer", client(t, quick(50*time.Millisecond)), mute, append([]string{"redirects skipped", "credentials skipped", "answer fail stalled"}, rest[3:]...)},
		{"no answer, bounded", bounded, mute, append([]string{"redirects skipped", "credentials skipped", "answer fail stalled"}, rest[3:]...)},
		{"proxy", client(t, proxied), "http://image.example/proxied.iso", nil},
		{"no proxy there", client(t, noProxy), "http://image.example/x.iso", append([]string{"connect fail refused"}, rest...)},
		{"proxy wants credentials", client(t, closed), "http://image.example/x.iso", []string{"proxy fail http_407", "credentials skipped", "answer skipped",
			"digest skipped", "size skipped", "rate skipped", "resume skipped"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wantFound(t, look(t, tc.client, source.Request{URL: parse(t, tc.url)}), tc.want...)
		})
	}
	t.Run("given up by the caller", func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		stop()
		r := client(t, patient()).Probe(ctx, source.Request{URL: parse(t, url)})
		if !r.Failed() {
			t.Errorf("it is %+v", r)
		}
	})
}

// TestProbeSample is about servers that answer and are then slow.
func TestProbeSample(t *testing.T) {
	img := fetchtest.NewImage(8, 2*mib)
	slow := func(fault fetchtest.Fault, after int64) fetchtest.Handler {
		f := ranging(img)
		f.Fault, f.After, f.Pause = fault, after, 10*time.Millisecond
		return fetchtest.Sequence(f.Serve, ranging(img).Serve)
	}
	for _, tc := range []struct {
		name    string
		handler fetchtest.Handler
		want    []string
		rated   bool
	}{
		{"nothing comes", slow(fetchtest.Stall, 0), []string{"rate warning stalled"}, false},
		{"a little comes at once", slow(fetchtest.Stall, 10), []string{"rate warning stalled"}, false},
		{"byte by byte", slow(fetchtest.Drip, 10), []string{"rate warning low_speed"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fetchtest.NewHTTP(t, nil)
			c := client(t, patient())
			c.Look(fetchtest.Patience, 300*time.Millisecond, mib)
			r := look(t, c, source.Request{URL: parse(t, s.Handle("/x.iso", tc.handler)), SHA256: img.SHA256()})
			wantFound(t, r, tc.want...)
			if (r.Rate > 0) != tc.rated {
				t.Errorf("rate %d", r.Rate)
			}
			fetchtest.Await(t, "the end of the connection", s.Next(t).Closed)
		})
	}
}

func TestProbeFTP(t *testing.T) {
	img := fetchtest.NewImage(8, 2*mib)
	has := map[string]*fetchtest.Image{"x.iso": img}
	for _, tc := range []struct {
		name   string
		script fetchtest.Script
		cred   *source.Credentials
		want   []string
	}{
		{"good", fetchtest.Script{Files: has, Modified: saturday}, nil, nil},
		{"credentials in the clear", fetchtest.Script{Files: has, Modified: saturday}, credentials(), []string{"credentials warning clear_text"}},
		{"no MDTM", fetchtest.Script{Files: has}, nil, []string{"resume warning no_validator"}},
		{"no SIZE", fetchtest.Script{Files: has, Modified: saturday, Reply: map[string]string{"SIZE": "502 no", "LIST": "502 no", "MLSD": "502 no"}}, nil,
			[]string{"size warning size_unknown", "resume warning no_validator"}},
		{"REST refused", fetchtest.Script{Files: has, Modified: saturday, Reply: map[string]string{"REST": "502 no"}}, nil, []string{"resume warning no_ranges"}},
		{"REST ignored", fetchtest.Script{Files: has, Modified: saturday, NoRest: true}, nil, []string{"resume warning bad_resume"}},
		{"no such file", fetchtest.Script{}, nil, []string{"credentials skipped", "answer fail ftp_550", "size skipped", "rate skipped", "resume skipped"}},
		{"wrong password", fetchtest.Script{Files: has, Reply: map[string]string{"PASS": "530 wrong"}}, credentials(),
			[]string{"credentials fail ftp_login", "answer skipped", "size skipped", "rate skipped", "resume skipped"}},
		{"self-signed", fetchtest.Script{Files: has, Modified: saturday, TLS: ca.TLS(fetchtest.SelfSigned)}, nil, []string{"tls warning certificate"}},
		{"self-signed, with credentials", fetchtest.Script{Files: has, Modified: saturday, TLS: ca.TLS(fetchtest.SelfSigned)}, credentials(),
			[]string{"tls fail certificate", "credentials skipped", "answer skipped", "size skipped", "rate skipped", "resume skipped"}},
		{"secure", fetchtest.Script{Files: has, Modified: saturday, TLS: ca.TLS(fetchtest.Lasting)}, credentials(), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fetchtest.NewFTP(t, tc.script)
			r := look(t, client(t, patient()), source.Request{URL: parse(t, s.URL+"/x.iso"), Credentials: tc.cred})
			wantFound(t, r, tc.want...)
			want := "dns egress connect credentials answer size rate resume"
			if tc.script.TLS != nil {
				want = strings.Replace(want, "connect", "connect tls", 1)
			}
			if names(r) != want {
				t.Errorf("the checks are %s", names(r))
			}
		})
	}
}

func TestProbeFile(t *testing.T) {
	dir := t.TempDir()
	image.WriteFile(t, dir, "x.iso", saturday)
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := patient()
	cfg.FileRoots, cfg.MaxSize = []string{dir}, image.Size()
	c := client(t, cfg)
	skipped := []string{"size skipped", "rate skipped", "resume skipped"}
	r := look(t, c, source.Request{URL: parse(t, "file://"+dir+"/x.iso")})
	wantFound(t, r)
	if names(r) != "answer size rate resume" || r.Size != image.Size() {
		t.Errorf("%s, size %d", names(r), r.Size)
	}
	wantFound(t, look(t, c, source.Request{URL: parse(t, "file://"+dir+"/none.iso")}), append([]string{"answer fail file_missing"}, skipped...)...)
	wantFound(t, look(t, c, source.Request{URL: parse(t, "file://"+dir+"/sub")}), append([]string{"answer fail file_type"}, skipped...)...)
	wantFound(t, look(t, c, source.Request{URL: parse(t, "file:///etc/passwd")}), append([]string{"answer fail file_root"}, skipped...)...)
	fetchtest.NewImage(1, image.Size()+1).WriteFile(t, dir, "large.iso", saturday)
	wantFound(t, look(t, c, source.Request{URL: parse(t, "file://"+dir+"/large.iso")}), "answer skipped", "size fail too_large", "rate skipped", "resume skipped")
}

func TestProbeMetalink(t *testing.T) {
	const doc = `<metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="x.iso"><url>https://a.example/x.iso</url></file></metalink>`
	serve := func(text string) fetchtest.Handler {
		return fetchtest.Raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nDate: %s\r\n\r\n%s", len(text), time.Now().UTC().Format(http.TimeFormat), text))
	}
	s := fetchtest.NewHTTP(t, nil)
	good, bad := s.Handle("/good.meta4", serve(doc)), s.Handle("/bad.meta4", serve("<nothing"))
	c := client(t, patient())
	r, files := c.ProbeMetalink(t.Context(), source.Request{URL: parse(t, good), SHA256: image.SHA256()})
	wantFound(t, r)
	if len(files) != 1 || files[0].URLs[0] != "https://a.example/x.iso" || names(r) != "proxy dns egress connect redirects credentials answer clock metalink" {
		t.Errorf("%s, files %+v", names(r), files)
	}
	r, files = c.ProbeMetalink(t.Context(), source.Request{URL: parse(t, bad)})
	wantFound(t, r, "metalink fail metalink")
	r, more := c.ProbeMetalink(t.Context(), source.Request{URL: parse(t, s.URL+"/none.meta4")})
	wantFound(t, r, "credentials skipped", "answer fail http_404", "metalink skipped")
	// A Metalink has no digest that would protect it.
	secure := fetchtest.NewHTTP(t, ca.TLS(fetchtest.SelfSigned)).Handle("/good.meta4", serve(doc))
	r, _ = c.ProbeMetalink(t.Context(), source.Request{URL: parse(t, secure), SHA256: image.SHA256()})
	wantFound(t, r, "tls fail certificate", "redirects skipped", "credentials skipped", "answer skipped", "clock skipped", "metalink skipped")
	if files != nil || more != nil {
		t.Errorf("files %v, %v", files, more)
	}
}
