package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"slotfetch/api"
)

// redacted stands where a password would be.
const redacted = "REDACTED"

// printCurl writes a call as a curl command line to stdout; it connects nowhere. headers are more lines of its header.
func (c *client) printCurl(method, path string, request any, headers ...string) error {
	words := []string{"curl", "-sS", "--fail-with-body"}
	words = append(words, c.curlAccess()...)
	switch {
	case c.box.local():
	case os.Getenv("SLOTFETCH_SESSION") != "":
		words = append(words, "-b", `"`+sessionCookie+`=$SLOTFETCH_SESSION"`)
	default:
		j, err := jarFor(c.box)
		if err != nil {
			return err
		}
		words = append(words, "-b", quote(j.path))
	}
	if method != http.MethodGet {
		words = append(words, "-X", method)
	}
	if file, ok := request.(formFile); ok {
		words = append(words, "-F", quote(file.field()))
	} else if request != nil {
		if r, ok := request.(*api.FetchRequest); ok {
			request = c.withoutPasswords(*r)
		}
		body, err := curlBody(request)
		if err != nil {
			return err
		}
		words = append(words, "-H", quote("Content-Type: application/json"), "--data-binary", quote(body))
	}
	for _, h := range headers {
		words = append(words, "-H", quote(h))
	}
	return c.writeCurl(append(words, quote(c.box.baseURL()+path)))
}

// formFile is a file that curl sends as a form.
type formFile string

// field is the argument of curl -F.
func (f formFile) field() string {
	if f == "-" {
		return "firmware=@-;filename=stdin"
	}
	return `firmware=@"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(string(f)) + `"`
}

// curlAccess says how curl reaches and trusts the box.
func (c *client) curlAccess() []string {
	switch {
	case c.box.local():
		return []string{"--unix-socket", quote(c.box.socket)}
	case c.verifier.insecure:
		return []string{"--insecure"}
	case c.box.cacert != "":
		return []string{"--cacert", quote(c.box.cacert)}
	case c.verifier.pinned.PublicKey != "":
		// curl checks the pinned key even where -k lets the unknown CA pass.
		return []string{"-k", "--pinnedpubkey", quote(c.verifier.pinned.PublicKey)}
	case c.verifier.pinned.SHA256 != "":
		c.app.note("note: only the fingerprint of this box's certificate is pinned, which curl cannot check.\n"+
			"Run once: slotfetch trust --forget %s && slotfetch trust %s", quote(c.box.name), quote(c.box.name))
	}
	return nil
}

// withoutPasswords is r without its secrets.
func (c *client) withoutPasswords(r api.FetchRequest) api.FetchRequest {
	hidden := false
	if r.Credentials != nil {
		r.Credentials = &api.Credentials{Username: r.Credentials.Username, Password: redacted}
		hidden = true
	}
	withoutPassword := func(raw string) string {
		u, err := url.Parse(raw)
		if err != nil || u.User == nil {
			return raw
		}
		if _, ok := u.User.Password(); !ok {
			return raw
		}
		hidden = true
		u.User = url.UserPassword(u.User.Username(), redacted)
		return u.String()
	}
	r.URL = withoutPassword(r.URL)
	mirrors := r.Mirrors
	r.Mirrors = nil
	for _, m := range mirrors {
		r.Mirrors = append(r.Mirrors, withoutPassword(m))
	}
	r.Checksum.URL = withoutPassword(r.Checksum.URL)
	if hidden {
		c.app.note("note: put the password where it says %s.", redacted)
	}
	return r
}

// curlBody is request as JSON.
func curlBody(request any) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(request); err != nil {
		return "", fmt.Errorf("cannot encode the request: %w", err)
	}
	return strings.TrimSpace(b.String()), nil
}

// printLoginCurl is the login: curl asks for the password and writes the jar. curl makes no directory, and its file
// would be open to others: then the client would refuse it.
func (a *app) printLoginCurl(b box, user string) error {
	c, err := a.openBox(b)
	if err != nil {
		return err
	}
	if user == "" {
		user = "USER"
	}
	j, err := jarFor(b)
	if err != nil {
		return err
	}
	words := append([]string{"curl", "-sS", "--fail-with-body"}, c.curlAccess()...)
	words = append(words, "-u", quote(user), "-c", quote(j.path), quote(b.baseURL()+pathLogin))
	return c.writeCurl(append([]string{"(umask 077 && mkdir -p", quote(filepath.Dir(j.path)), "&&"}, append(words, ")")...))
}

func (c *client) writeCurl(words []string) error {
	_, err := fmt.Fprintln(c.app.stdout, strings.Join(words, " "))
	return err
}
