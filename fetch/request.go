package fetch

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"slotfetch/api"
	"slotfetch/fetch/source"
	"slotfetch/store"
)

const (
	maxMirrors = 8
	maxCA      = 64 << 10 // bytes
)

// Request is a checked POST of /api/firmware/fetch.
type Request struct {
	// URL and Mirrors have no userinfo.
	URL     *url.URL
	Mirrors []*url.URL
	// Secrets are the credentials that belong to them.
	Secrets        Secrets
	SHA256, SHA512 string // lower-case hex; SHA512 may be empty
	Slot           *int
	TLSVerify      *bool
	TLSCA          string
	// Force asks for a download though a slot has the image.
	Force bool
	// ChecksumURL is where the SHA-256 is read from if SHA256 is empty; without userinfo.
	ChecksumURL *url.URL `json:",omitempty"`
	// Signature is the signed manifest of the image, nil if it is beside it or not needed.
	Signature *Signature `json:",omitempty"`
	// Sidecar is [SidecarRequired] or [SidecarOptional] where the digest is looked for beside the image, if SHA256 and
	// ChecksumURL are empty.
	Sidecar string `json:",omitempty"`
	// LoneVersion refuses an image whose version another slot has, with other content.
	LoneVersion bool `json:",omitempty"`
	// Schedule has no EligibleAt yet.
	Schedule store.Schedule `json:",omitzero"`
	// Idempotency is the caller's own key for this request; a second request under it gives the first fetch. Empty: none.
	Idempotency string `json:"-"`
}

// Secrets are the credentials of a fetch; sealed while it is queued, erased when it is final.
type Secrets struct {
	// URL goes to the origin of the request's URL, mirrors of the same origin included.
	URL *source.Credentials `json:"url,omitempty"`
	// Mirrors has what was written in each mirror's own URL, nil for none.
	Mirrors []*source.Credentials `json:"mirrors,omitempty"`
	// Checksum is what was written in the URL of the checksum file.
	Checksum *source.Credentials `json:"checksum,omitempty"`
}

func (s Secrets) empty() bool {
	for _, c := range s.Mirrors {
		if c != nil {
			return false
		}
	}
	return s.URL == nil && s.Checksum == nil
}

// Policy is what a request may ask for on this box.
type Policy struct {
	// InRoots tells whether a file URL may be opened.
	InRoots func(*url.URL) bool
	// DryRun is for a look only: checksum may be left out.
	DryRun bool
	// Signed says that there is a signed manifest, since it is required; then the digest may be left out.
	Signed bool
	// ValidSlot tells whether a slot is configured; Slots says which in words.
	ValidSlot func(int) bool
	Slots     string
}

// ParseRequest reads and checks o by the contract's section 5.1. Its errors are *api.Error.
func ParseRequest(o api.Object, p Policy) (Request, error) {
	var q Request
	var err error
	if q.Signature, err = parseSignature(o); err != nil {
		return q, err
	}
	p.Signed = p.Signed || q.Signature != nil
	if err := first(o.Required("url"), p.checksum(o)); err != nil {
		return q, err
	}
	if err := q.checksum(o, p); err != nil {
		return q, err
	}
	raw, err := o.String("url", "a URL")
	if err != nil {
		return q, err
	}
	if q.URL, q.Secrets.URL, err = p.parseURL("url", raw); err != nil {
		return q, err
	}
	if q.Slot, err = o.Int("slot_id", p.Slots); err != nil {
		return q, err
	}
	if q.Slot != nil && !p.ValidSlot(*q.Slot) {
		return q, api.Semantic("slot_id", p.Slots)
	}
	force, err := o.Bool("force")
	if err != nil {
		return q, err
	}
	q.Force = force != nil && *force
	c, err := ParseChange(o)
	if err != nil {
		return q, err
	}
	q.Schedule = c.apply(q.Schedule)
	return q, first(q.credentials(o), q.tls(o), q.mirrors(o, p))
}

// checksum reads the digests, or where the SHA-256 is.
func (q *Request) checksum(o api.Object, p Policy) error {
	sum, given, err := o.Object("checksum")
	if err != nil || !given {
		return err
	}
	if q.SHA512, err = digest(sum, "sha512", 128); err != nil {
		return err
	}
	if !sum.Has("url") {
		if err := sum.Required("sha256"); err != nil && !p.mayLack(sum, "sha256") {
			return err
		}
		q.SHA256, err = digest(sum, "sha256", 64)
		return err
	}
	if sum.Has("sha256") {
		return api.Semantic("checksum.url", "left out when checksum.sha256 is given")
	}
	raw, err := sum.String("url", "the URL of a checksum file")
	if err != nil {
		return err
	}
	q.ChecksumURL, q.Secrets.Checksum, err = p.parseURL("checksum.url", raw)
	return err
}

// idempotencyKey checks the header Idempotency-Key, whose absence is fine.
func idempotencyKey(h http.Header) (string, error) {
	const most = 255
	values := h.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	if s := values[0]; len(values) == 1 && s != "" && len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return s, nil
	}
	return "", api.Semantic("Idempotency-Key", fmt.Sprintf("one header of 1 to %d printable ASCII characters", most))
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func digest(o api.Object, name string, length int) (string, error) {
	expected := fmt.Sprintf("%d hexadecimal digits", length)
	s, err := o.String(name, expected)
	if err != nil || s == "" {
		return "", err
	}
	if _, err := hex.DecodeString(s); err != nil || len(s) != length {
		return "", api.Semantic("checksum."+name, expected)
	}
	return strings.ToLower(s), nil
}

func (p Policy) parseURL(field, raw string) (*url.URL, *source.Credentials, error) {
	u, cred, err := source.ParseURL(raw)
	if err != nil {
		return nil, nil, api.Semantic(field, err.Error())
	}
	if u.Scheme == "file" && !p.InRoots(u) {
		return nil, nil, api.Semantic(field, "a file URL below one of the directories in fetch.file_roots")
	}
	return u, cred, nil
}

func (q *Request) credentials(o api.Object) error {
	c, ok, err := o.Object("credentials")
	if err != nil || !ok {
		return err
	}
	var cred source.Credentials
	if cred.Username, err = c.String("username", "a string"); err != nil {
		return err
	}
	if cred.Password, err = c.String("password", "a string"); err != nil {
		return err
	}
	if cred.Username == "" || strings.Contains(cred.Username, ":") {
		return api.Semantic("credentials.username", "a user name that is not empty and has no colon")
	}
	if err := cred.Check(); err != nil {
		return api.Semantic("credentials", err.Error())
	}
	q.Secrets.URL = &cred
	return nil
}

func (q *Request) tls(o api.Object) error {
	t, ok, err := o.Object("tls")
	if err != nil || !ok {
		return err
	}
	if q.TLSVerify, err = t.Bool("verify"); err != nil {
		return err
	}
	if q.TLSCA, err = t.String("ca", "PEM certificates"); err != nil || q.TLSCA == "" {
		return err
	}
	if len(q.TLSCA) > maxCA {
		return api.Semantic("tls.ca", "at most 65536 bytes of PEM")
	}
	if q.TLSVerify != nil && !*q.TLSVerify {
		return api.Semantic("tls.ca", "left out when tls.verify is false")
	}
	for rest := []byte(q.TLSCA); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return api.Semantic("tls.ca", "PEM with at least one certificate")
		}
		if block.Type == "CERTIFICATE" {
			if _, err := x509.ParseCertificate(block.Bytes); err == nil {
				return nil
			}
		}
	}
}

func (q *Request) mirrors(o api.Object, p Policy) error {
	list, err := o.Strings("mirrors", maxMirrors)
	if err != nil {
		return err
	}
	for i, raw := range list {
		u, cred, err := p.parseURL(fmt.Sprintf("mirrors[%d]", i), raw)
		if err != nil {
			return err
		}
		q.Mirrors = append(q.Mirrors, u)
		q.Secrets.Mirrors = append(q.Secrets.Mirrors, cred)
	}
	return nil
}
