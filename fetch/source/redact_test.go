package source_test

import (
	"net/url"
	"strings"
	"testing"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

// What is expected, in the words of ParseURL.
const (
	wantURL     = "an absolute URL such as https://example.com/image.iso"
	wantHost    = "an absolute URL with a host, such as https://example.com/image.iso"
	wantName    = "a URL whose host is an internationalised domain name"
	wantScheme  = "an absolute URL with the scheme http, https, ftp, ftps or file"
	wantClean   = "a URL without blanks, backslashes and control characters"
	wantPath    = "a URL whose path decodes to no control characters"
	wantPort    = "a URL with a port between 1 and 65535"
	wantFile    = "a file URL of the form file:///path/image.iso"
	wantUser    = "a URL whose userinfo has a user name that is not empty and has no colon"
	wantSecrets = "a URL whose userinfo has a user name and a password without control characters"
)

func TestParseURLRefuses(t *testing.T) {
	for _, tc := range []struct{ name, raw, want string }{
		{"empty", "", wantScheme},
		{"relative", "image.iso", wantScheme},
		{"absolute path", "/srv/image.iso", wantScheme},
		{"no scheme", "//example.com/x.iso", wantScheme},
		{"gopher", "gopher://example.com/x.iso", wantScheme},
		{"sftp", "sftp://example.com/x.iso", wantScheme},
		{"javascript", "javascript:alert(1)", wantScheme},
		{"data", "data:text/plain,x", wantScheme},
		{"Windows path", `C:\images\x.iso`, wantClean},
		{"opaque", "https:example.com/x.iso", wantHost},
		{"no host", "https:///x.iso", wantHost},
		{"only a port", "https://:443/x.iso", wantHost},
		{"only a user", "https://user@/x.iso", wantHost},
		{"nothing", "https://", wantHost},
		{"blank in the path", "https://example.com/a b", wantClean},
		{"blank in the host", "https://exam ple.com/x", wantClean},
		{"blank before", " https://example.com/x", wantClean},
		{"blank after", "https://example.com/x ", wantClean},
		{"tab", "https://example.com/\tx", wantClean},
		{"line break", "https://example.com/x\r\nHost: y", wantClean},
		{"NUL", "https://example.com/\x00", wantClean},
		{"DEL", "https://example.com/\x7f", wantClean},
		{"backslash", `https://example.com\x`, wantClean},
		{"backslash before @", `https://127.0.0.1\@example.com/`, wantClean},
		{"escaped line break", "https://example.com/x%0d%0aDELE%20y", wantPath},
		{"escaped NUL", "ftp://example.com/x%00y", wantPath},
		{"escaped tab", "https://example.com/x%09", wantPath},
		{"escaped DEL", "https://example.com/x%7F", wantPath},
		{"escaped telnet IAC", "ftp://example.com/x%ff%f4", wantPath},
		{"bad escape", "https://example.com/%zz", wantURL},
		{"half an escape", "https://example.com/%4", wantURL},
		{"escaped slash in the host", "https://ex%2fample.com/x", wantURL},
		{"escaped @ in the host", "https://ex%40ample.com/x", wantURL},
		{"open bracket", "https://[::1/x", wantURL},
		{"zone that is no name", "https://[fe80::1%25\xb0]/x", wantHost},
		{"host that is no name", "https://ü_.example/x", wantName},
		{"letters of another direction", "https://אa.example/x", wantName},
		{"port 0", "https://example.com:0/x", wantPort},
		{"port 00", "https://example.com:00/x", wantPort},
		{"port 65536", "https://example.com:65536/x", wantPort},
		{"port beyond numbers", "https://example.com:99999999999999999999/x", wantPort},
		{"negative port", "https://example.com:-1/x", wantURL},
		{"port with letters", "https://example.com:8o/x", wantURL},
		{"empty user", "https://@example.com/x", wantUser},
		{"only a password", "https://:secret@example.com/x", wantUser},
		{"colon in the user", "https://a%3Ab:secret@example.com/x", wantUser},
		{"line break in the user", "ftp://a%0d%0aQUIT:secret@example.com/x", wantSecrets},
		{"NUL in the password", "ftp://a:se%00cret@example.com/x", wantSecrets},
		{"file on a host", "file://server/share/x.iso", wantFile},
		{"file without a path", "file://", wantFile},
		{"relative file", "file:x.iso", wantFile},
		{"file with a user", "file://root@/etc/passwd", wantFile},
		{"escaped NUL in a file", "file:///srv/x%00", wantPath},
		{"too long", "https://example.com/" + strings.Repeat("a", 4096), "a URL of at most 4096 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u, cred, err := source.ParseURL(tc.raw)
			if err == nil || u != nil || cred != nil {
				t.Fatalf("accepted as %v", u)
			}
			if err.Error() != tc.want {
				t.Errorf("got %q, want %q", err, tc.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("shows the password: %v", err)
			}
		})
	}
}

func TestParseURL(t *testing.T) {
	long := "https://example.com/" + strings.Repeat("a", 4096-len("https://example.com/"))
	for _, tc := range []struct {
		raw, want, user, password string
	}{
		{"https://example.com/x.iso", "https://example.com/x.iso", "", ""},
		{"HTTPS://Example.com/X.iso", "https://Example.com/X.iso", "", ""},
		{"http://example.com", "http://example.com", "", ""},
		{"http://example.com:1/x", "http://example.com:1/x", "", ""},
		{"http://example.com:65535/x", "http://example.com:65535/x", "", ""},
		{"http://[::1]:80/x", "http://[::1]:80/x", "", ""},
		{"ftp://example.com/%2Fx.iso;type=i", "ftp://example.com/%2Fx.iso;type=i", "", ""},
		{"ftps://example.com:990/x", "ftps://example.com:990/x", "", ""},
		{"https://example.com/x?a=b&sig=c%2Fd", "https://example.com/x?a=b&sig=c%2Fd", "", ""},
		{"https://example.com/x#part", "https://example.com/x", "", ""},
		{"https://example.com/a%20b", "https://example.com/a%20b", "", ""},
		{"https://u:p@example.com/x", "https://example.com/x", "u", "p"},
		{"https://u@example.com/x", "https://example.com/x", "u", ""},
		{"https://u:@example.com/x", "https://example.com/x", "u", ""},
		{"https://u:p%40:%2F@example.com/x", "https://example.com/x", "u", "p@:/"},
		{"file:///srv/x.iso", "file:///srv/x.iso", "", ""},
		{"file://localhost/srv/x.iso", "file://localhost/srv/x.iso", "", ""},
		{"https://u:p@BÜcher.example:8443/x", "https://xn--bcher-kva.example:8443/x", "u", "p"},
		{"ftp://b%C3%BCcher.example/%E4%B8%96", "ftp://xn--bcher-kva.example/%E4%B8%96", "", ""},
		{long, long, "", ""},
	} {
		u, cred, err := source.ParseURL(tc.raw)
		if err != nil {
			t.Errorf("%s: expected %v", tc.raw, err)
			continue
		}
		if u.String() != tc.want {
			t.Errorf("%s: got %s, want %s", tc.raw, u, tc.want)
		}
		if (cred != nil) != (tc.user != "") || cred != nil && (cred.Username != tc.user || cred.Password != tc.password) {
			t.Errorf("%s: got %+v", tc.raw, cred)
		}
	}
}

func TestRedact(t *testing.T) {
	for _, tc := range []struct{ raw, want string }{
		{"https://example.com/x.iso", "https://example.com/x.iso"},
		{"https://canary:canary@example.com/x.iso", "https://example.com/x.iso"},
		{"https://canary@example.com/x.iso", "https://example.com/x.iso"},
		{"https://example.com/x.iso?sig=canary", "https://example.com/x.iso?…"},
		{"https://example.com/x.iso?", "https://example.com/x.iso?…"},
		{"https://example.com/x.iso#canary", "https://example.com/x.iso"},
		{"https://example.com/x.iso?a#canary", "https://example.com/x.iso?…"},
		{"file:///srv/x.iso", "file:///srv/x.iso"},
		{"//canary:canary@example.com/x?canary", "//example.com/x?…"},
	} {
		u, err := url.Parse(tc.raw)
		if err != nil {
			t.Fatal(err)
		}
		if got := source.Redact(u); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.raw, got, tc.want)
		}
		if u.String() != tc.raw {
			t.Errorf("%s: the URL was changed to %s", tc.raw, u)
		}
	}
	if got := source.Redact(nil); got != "" {
		t.Errorf("nil: got %s", got)
	}
}

// TestMessagesShowNoSecret: whatever goes wrong, neither userinfo nor query nor password is in the message.
func TestMessagesShowNoSecret(t *testing.T) {
	h := fetchtest.NewHTTP(t, nil)
	h.Handle("/404", fetchtest.Status(404))
	h.Handle("/401", fetchtest.Status(401))
	h.Handle("/503", fetchtest.Status(503))
	h.Handle("/416", fetchtest.Status(416))
	h.Handle("/loop", fetchtest.Redirect("/loop?canary"))
	h.Handle("/away", fetchtest.Redirect("http://canary:canary@127.0.0.1:1/?canary"))
	h.Handle("/bad", fetchtest.Redirect("http://canary:canary@127.0.0.1:0/?canary"))
	h.Handle("/scheme", fetchtest.Redirect("ftp://canary:canary@127.0.0.1/?canary"))
	h.Handle("/raw", fetchtest.Raw("canary\r\n\r\n"))
	h.Handle("/cut", fetchtest.Raw(""))
	f := fetchtest.NewFTP(t, fetchtest.Script{Reply: map[string]string{"PASS": "530 your password canary is wrong"}})
	g := fetchtest.NewFTP(t, fetchtest.Script{Reply: map[string]string{"RETR": "450 canary"}})
	for _, raw := range []string{
		h.URL + "/404", h.URL + "/401", h.URL + "/503", h.URL + "/416", h.URL + "/loop", h.URL + "/away", h.URL + "/bad", h.URL + "/scheme",
		h.URL + "/raw", h.URL + "/cut", "http://127.0.0.1:1/", "http://nowhere.invalid/", "https://" + h.Addr + "/",
		f.URL + "/x.iso", g.URL + "/x.iso", "ftps://" + f.Addr + "/x",
	} {
		u, cred, err := source.ParseURL(strings.Replace(raw, "://", "://canary:canary@", 1) + "?sig=canary")
		if err != nil {
			t.Fatal(err)
		}
		_, err = client(t, patient()).Open(t.Context(), source.Request{URL: u, Credentials: cred}, 0, source.Validator{})
		e, ok := err.(*source.Error)
		if !ok {
			t.Errorf("%s: got %v", raw, err)
		} else if strings.Contains(e.Error()+e.Code, "canary") {
			t.Errorf("%s: %s", raw, e.Error())
		}
	}
}

func TestOriginAndFileName(t *testing.T) {
	for _, tc := range []struct{ raw, origin, name string }{
		{"http://Example.com/a/x.iso", "http://example.com:80", "x.iso"},
		{"https://example.com/", "https://example.com:443", ""},
		{"https://example.com", "https://example.com:443", ""},
		{"https://example.com:8443/x.iso?a/b", "https://example.com:8443", "x.iso"},
		{"ftp://example.com/%2Fa%20b.iso", "ftp://example.com:21", "a b.iso"},
		{"ftp://example.com/a/x.iso;type=i", "ftp://example.com:21", "x.iso"},
		{"ftp://example.com/a/%20x.iso%3BTYPE=I", "ftp://example.com:21", " x.iso"},
		{"http://example.com/x.iso;type=i", "http://example.com:80", "x.iso;type=i"},
		{"ftps://example.com/x", "ftps://example.com:990", "x"},
		{"http://[::1]/x/", "http://[::1]:80", "x"},
	} {
		u := parse(t, tc.raw)
		if got := source.Origin(u); got != tc.origin {
			t.Errorf("%s: origin %s, want %s", tc.raw, got, tc.origin)
		}
		if got := source.FileName(u); got != tc.name {
			t.Errorf("%s: name %q, want %q", tc.raw, got, tc.name)
		}
	}
}
