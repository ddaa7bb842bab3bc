package source

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// MaxURL is the longest URL accepted, in bytes.
const MaxURL = 4096

// ParseURL reads raw as the URL of an image and takes its userinfo off. The error says, in words for the admin,
// what was expected.
func ParseURL(raw string) (*url.URL, *Credentials, error) {
	if len(raw) > MaxURL {
		return nil, nil, fmt.Errorf("a URL of at most %d bytes", MaxURL)
	}
	for i := range len(raw) {
		if raw[i] <= ' ' || raw[i] == 0x7f || raw[i] == '\\' {
			return nil, nil, errors.New("a URL without blanks, backslashes and control characters")
		}
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, nil, errors.New("an absolute URL such as https://example.com/image.iso")
	}
	u.Scheme = strings.ToLower(u.Scheme)
	switch u.Scheme {
	case "http", "https", "ftp", "ftps":
		if err := asciiHost(u); err != nil {
			return nil, nil, err
		}
		if err := checkHost(u); err != nil {
			return nil, nil, err
		}
	case "file":
		if u.Host != "" && u.Host != "localhost" || u.User != nil || !path.IsAbs(u.Path) {
			return nil, nil, errors.New("a file URL of the form file:///path/image.iso")
		}
	default:
		return nil, nil, errors.New("an absolute URL with the scheme http, https, ftp, ftps or file")
	}
	for _, c := range []byte(u.Path) {
		if c < ' ' || c == 0x7f || c == 0xff {
			return nil, nil, errors.New("a URL whose path decodes to no control characters")
		}
	}
	var cred *Credentials
	if u.User != nil {
		password, _ := u.User.Password()
		cred = &Credentials{Username: u.User.Username(), Password: password}
		if err := cred.Check(); err != nil {
			return nil, nil, fmt.Errorf("a URL whose userinfo has %w", err)
		}
		u.User = nil
	}
	u.Fragment, u.RawFragment = "", ""
	return u, cred, nil
}

// Check tells in words for the admin what is expected of credentials when they do not fit.
func (c *Credentials) Check() error {
	if c.Username == "" || strings.Contains(c.Username, ":") {
		return errors.New("a user name that is not empty and has no colon")
	}
	if strings.ContainsFunc(c.Username+c.Password, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return errors.New("a user name and a password without control characters")
	}
	return nil
}

// asciiHost writes a host of other letters as the resolver, the server and its certificate have it: bücher.example is
// xn--bcher-kva.example.
func asciiHost(u *url.URL) error {
	if strings.HasPrefix(u.Host, "[") || !strings.ContainsFunc(u.Host, func(r rune) bool { return r > '~' }) {
		return nil
	}
	host, err := idna.Lookup.ToASCII(u.Hostname())
	if err != nil {
		return errors.New("a URL whose host is an internationalised domain name")
	}
	if port := u.Port(); port != "" {
		host = net.JoinHostPort(host, port)
	}
	u.Host = host
	return nil
}

func checkHost(u *url.URL) error {
	if u.Opaque != "" || u.Hostname() == "" || strings.ContainsAny(u.Hostname(), "/%@ ") && !strings.HasPrefix(u.Host, "[") {
		return errors.New("an absolute URL with a host, such as https://example.com/image.iso")
	}
	// A zone (fe80::1%25eth0) of other letters would not survive being written and read again.
	if strings.HasPrefix(u.Host, "[") && strings.ContainsFunc(u.Host, func(r rune) bool { return r > '~' }) {
		return errors.New("an absolute URL with a host, such as https://example.com/image.iso")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			return errors.New("a URL with a port between 1 and 65535")
		}
	}
	return nil
}

// Redact gives u as it may appear in a log or an error: without userinfo, and with its query, which often holds
// a signature, cut away.
func Redact(u *url.URL) string {
	if u == nil {
		return ""
	}
	r := *u
	r.User, r.Fragment, r.RawFragment = nil, "", ""
	if r.RawQuery != "" || r.ForceQuery {
		r.RawQuery, r.ForceQuery = "", false
		return r.String() + "?…"
	}
	return r.String()
}

// Origin is scheme, host and port of u in one form: what credentials are bound to.
func Origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "ftp": "21", "ftps": "990"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// FileName is the last segment of the path of u, for naming the image; empty if there is none.
func FileName(u *url.URL) string {
	name := path.Base(Untyped(u).Path)
	if name == "." || name == "/" {
		return ""
	}
	return name
}

// Untyped is u without what may be behind the name of a file in an FTP URL, for the transfer that is made in any case: ;type=i.
func Untyped(u *url.URL) *url.URL {
	const typed = ";type=i"
	cut := func(s string) (string, bool) {
		i := len(s) - len(typed)
		if i < 0 || !strings.EqualFold(s[i:], typed) {
			return s, false
		}
		return s[:i], true
	}
	name, ok := cut(u.Path)
	if !ok || u.Scheme != "ftp" && u.Scheme != "ftps" {
		return u
	}
	b := *u
	if b.Path = name; b.RawPath != "" {
		if b.RawPath, ok = cut(b.RawPath); !ok {
			b.RawPath = "" // it was written in another way
		}
	}
	return &b
}
