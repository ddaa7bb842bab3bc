package source_test

import (
	"fmt"
	"strings"
	"testing"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

func TestRedirects(t *testing.T) {
	scheme := failure(source.Permanent, "redirect_scheme", "Redirected to a scheme that is not allowed.")
	bad := failure(source.Permanent, "malformed_answer", malformed)
	many := failure(source.Permanent, "redirects", "More than 5 redirects.")
	for _, tc := range []struct {
		name, location string
		want           outcome
		requests       int
	}{
		{"absolute path", "/good.iso", good(image), 2},
		{"relative", "good.iso", good(image), 2},
		{"same host", "HTTP/good.iso", good(image), 2},
		{"without scheme", "//HOST/good.iso", good(image), 2},
		{"fragment", "/good.iso#part", good(image), 2},
		{"loop", "/x.iso", many, 6},
		{"chain of 5", "/chain/4", good(image), 6},
		{"chain of 6", "/chain/5", many, 6},
		{"file", "file:///etc/passwd", scheme, 1},
		{"ftp", "ftp://HOST/good.iso", scheme, 1},
		{"javascript", "javascript:alert(1)", scheme, 1},
		{"data", "data:text/plain,x", scheme, 1},
		{"gopher", "gopher://HOST/1", scheme, 1},
		{"bad port", "http://127.0.0.1:65536/", bad, 1},
		{"port 0", "http://127.0.0.1:0/", bad, 1},
		{"no host", "http:///good.iso", bad, 1},
		{"backslash", `http://127.0.0.1\@other.example/`, bad, 1},
		{"line break", "/good%0d%0aX:%20y", bad, 1},
		{"too long", "/" + strings.Repeat("a", 5000), bad, 1},
		{"bad escape", "/%zz", bad, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := fetchtest.NewHTTP(t, nil)
			s.Handle("/good.iso", fetchtest.Whole(image).Serve)
			s.Handle("/chain/0", fetchtest.Whole(image).Serve)
			for i := range 5 {
				s.Handle(fmt.Sprintf("/chain/%d", i+1), fetchtest.Redirect(fmt.Sprint(i)))
			}
			location := strings.NewReplacer("HTTP", s.URL, "HOST", s.Addr).Replace(tc.location)
			url := s.Handle("/x.iso", fetchtest.Redirect(location))
			got, _ := attempt(t, patient(), source.Request{URL: parse(t, url)}, image, 0, source.Validator{})
			wantOutcome(t, tc.want, got)
			if n := len(s.Requests()); n != tc.requests {
				t.Errorf("%d requests, want %d", n, tc.requests)
			}
		})
	}
}

func TestRedirectStatus(t *testing.T) {
	for _, code := range []int{301, 302, 303, 307, 308} {
		s := fetchtest.NewHTTP(t, nil)
		s.Handle("/good.iso", fetchtest.Whole(image).Serve)
		url := s.Handle("/x.iso", fetchtest.Status(code, "Location: /good.iso"))
		got, _ := attempt(t, patient(), source.Request{URL: parse(t, url)}, image, 0, source.Validator{})
		wantOutcome(t, good(image), got)
	}
}

// TestRedirectCredentials: they go to the origin of the URL, and once a redirect has led elsewhere, nowhere.
func TestRedirectCredentials(t *testing.T) {
	type hop struct {
		server string // first, port, host, tls
		auth   bool   // whether it must see the credentials
	}
	for _, tc := range []struct {
		name string
		hops []hop
	}{
		{"same origin", []hop{{"first", true}, {"first", true}}},
		{"other port", []hop{{"first", true}, {"port", false}}},
		{"other host", []hop{{"first", true}, {"host", false}}},
		{"other scheme", []hop{{"first", true}, {"tls", false}}},
		{"other port and back", []hop{{"first", true}, {"port", false}, {"first", false}}},
		{"other host and back", []hop{{"first", true}, {"host", false}, {"first", false}, {"first", false}}},
		{"first at home, then away", []hop{{"first", true}, {"first", true}, {"port", false}}},
		{"TLS to TLS, same origin", []hop{{"tls", true}, {"tls", true}}},
		{"TLS to other TLS and back", []hop{{"tls", true}, {"tls2", false}, {"tls", false}}},
	} {
		for _, userinfo := range []string{"", "evil:evil@"} {
			t.Run(tc.name+" "+userinfo, func(t *testing.T) {
				servers := map[string]*fetchtest.HTTP{
					"first": fetchtest.NewHTTP(t, nil),
					"port":  fetchtest.NewHTTP(t, nil),
					"host":  fetchtest.NewHTTPAt(t, "127.0.0.2:0", nil),
					"tls":   fetchtest.NewHTTP(t, ca.TLS(fetchtest.Good)),
					"tls2":  fetchtest.NewHTTP(t, ca.TLS(fetchtest.Good)),
				}
				for i, h := range tc.hops {
					handler := fetchtest.Whole(image).Serve
					if i+1 < len(tc.hops) {
						next := servers[tc.hops[i+1].server].URL
						handler = fetchtest.Redirect(strings.Replace(next, "//", "//"+userinfo, 1) + fmt.Sprintf("/%d", i+1))
					}
					servers[h.server].Handle(fmt.Sprintf("/%d", i), handler)
				}
				req := source.Request{URL: parse(t, servers[tc.hops[0].server].URL+"/0"), Credentials: credentials(), CA: ca.PEM}
				got, _ := attempt(t, patient(), req, image, 0, source.Validator{})
				wantOutcome(t, good(image), got)
				for i, h := range tc.hops {
					x := servers[h.server].Next(t)
					user, password, ok := x.Auth()
					if ok != h.auth || ok && (user != "admin" || password != "s3cret") {
						t.Errorf("hop %d to %s: credentials %q %q, want them: %v", i, h.server, user, password, h.auth)
					}
				}
			})
		}
	}
}

// TestRedirectDowngrade: from https to http nothing is ever sent.
func TestRedirectDowngrade(t *testing.T) {
	want := failure(source.Permanent, "redirect_downgrade", "Redirected from https to http, which is refused.")
	for _, verify := range []source.Verify{source.VerifyAuto, source.VerifyAlways, source.VerifyNever} {
		for _, via := range []string{"", "tls", "http"} {
			t.Run(fmt.Sprint(verify, via), func(t *testing.T) {
				plain := fetchtest.NewHTTP(t, nil)
				secure := fetchtest.NewHTTP(t, ca.TLS(fetchtest.Good))
				plain.Handle("/x.iso", fetchtest.Whole(image).Serve)
				url := secure.Handle("/x.iso", fetchtest.Redirect(plain.URL+"/x.iso"))
				requests := 0
				switch via {
				case "tls":
					url = secure.Handle("/a", fetchtest.Redirect("/x.iso"))
				case "http":
					url, requests = plain.Handle("/a", fetchtest.Redirect(url)), 1
				}
				got, _ := attempt(t, patient(), source.Request{URL: parse(t, url), Verify: verify, SHA256: image.SHA256()}, image, 0, source.Validator{})
				wantOutcome(t, want, got)
				if n := len(plain.Requests()); n != requests {
					t.Errorf("the plain server got %d requests, want %d", n, requests)
				}
			})
		}
	}
}

// TestRedirectResume: the range goes along.
func TestRedirectResume(t *testing.T) {
	a, b := fetchtest.NewHTTP(t, nil), fetchtest.NewHTTP(t, nil)
	f := fetchtest.Whole(image)
	url := a.Handle("/x.iso", fetchtest.Redirect(b.Handle("/x.iso", f.Serve)))
	got, _ := attempt(t, patient(), source.Request{URL: parse(t, url)}, image, 1000, source.Validator{ETag: f.ETag, Size: image.Size()})
	wantOutcome(t, outcome{Offset: 1000, Bytes: image.Size() - 1000, Head: true, Whole: true}, got)
}

// TestRedirectLogin: credentials are not for the server that a redirect leads to, so that more of them are no remedy.
func TestRedirectLogin(t *testing.T) {
	here, there := fetchtest.NewHTTP(t, nil), fetchtest.NewHTTPAt(t, "127.0.0.2:0", nil)
	login := there.Handle("/x.iso", fetchtest.Status(401))
	for _, tc := range []struct{ name, to, code, says string }{
		{"elsewhere", login, "redirect_login",
			"The server answered 401 Unauthorized for " + login + ", to which it was redirected. Give the URL that it leads to, with its credentials."},
		{"here", here.Handle("/y.iso", fetchtest.Status(401)), "http_401", "The server answered 401 Unauthorized for http://HOST/y.iso. Give credentials that may read it."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, _ := attempt(t, patient(), source.Request{URL: parse(t, here.Handle("/"+tc.name, fetchtest.Redirect(tc.to)))}, image, 0, source.Validator{})
			wantOutcome(t, failure(source.Human, tc.code, tc.says), got)
		})
	}
}
