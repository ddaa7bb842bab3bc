package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// pin is what is remembered of a box's certificate.
type pin struct {
	// SHA256 is the fingerprint of the DER certificate, as [fingerprint] writes it.
	SHA256 string `toml:"sha256"`
	// PublicKey is the same certificate's key as curl --pinnedpubkey wants it; empty when only the fingerprint is known.
	PublicKey string    `toml:"public_key,omitempty"`
	Added     time.Time `toml:"added"`
}

// pins is known_hosts.toml: what is trusted although no CA vouches for it, by host:port.
type pins struct {
	Pins map[string]pin `toml:"pins"`
}

func pinsFile() (string, error) {
	dir, err := stateDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "known_hosts.toml"), nil
}

// loadPins reads the pins strictly: a damaged file must not look like a first contact.
func loadPins() (pins, error) {
	p := pins{Pins: map[string]pin{}}
	path, err := pinsFile()
	if err != nil {
		return p, err
	}
	data, err := readPrivate(path, 0o022, fmt.Sprintf("Look whether the pins are yours, then: chmod 600 %s", path))
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	if err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&p); err != nil {
		return p, &failure{code: exitNetwork, kind: "Untrusted", cause: err,
			message: fmt.Sprintf("cannot read the pinned certificates in %s: %v", path, err),
			hint:    "Mend the file, or remove it and trust each box anew."}
	}
	if p.Pins == nil {
		p.Pins = map[string]pin{}
	}
	return p, nil
}

// changePins applies f to the stored pins under the lock.
func changePins(f func(map[string]pin)) error {
	path, err := pinsFile()
	if err != nil {
		return err
	}
	release, err := lockState(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer release()
	p, err := loadPins()
	if err != nil {
		return err
	}
	f(p.Pins)
	data, err := toml.Marshal(p)
	if err != nil {
		return fmt.Errorf("cannot write the pinned certificates: %w", err)
	}
	return writePrivate(path, data)
}

// newPin remembers a certificate that was seen.
func newPin(leaf *x509.Certificate, now time.Time) pin {
	key := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return pin{SHA256: fingerprint(leaf), PublicKey: "sha256//" + base64.StdEncoding.EncodeToString(key[:]), Added: now.UTC().Truncate(time.Second)}
}

// fingerprint is the SHA-256 of the DER certificate, as openssl x509 -fingerprint -sha256 shows it.
func fingerprint(leaf *x509.Certificate) string {
	sum := sha256.Sum256(leaf.Raw)
	return formatFingerprint(sum[:])
}

func formatFingerprint(sum []byte) string {
	pairs := make([]string, len(sum))
	for i, b := range sum {
		pairs[i] = fmt.Sprintf("%02X", b)
	}
	return "SHA256:" + strings.Join(pairs, ":")
}

// fingerprintPrefix is what people copy along with a fingerprint, from our messages or from openssl.
var fingerprintPrefix = regexp.MustCompile(`(?i)^(sha256:|sha-256:|sha256 fingerprint=)`)

// parseFingerprint takes 64 hex digits with or without colons and prefix.
func parseFingerprint(s string) (string, error) {
	digits := fingerprintPrefix.ReplaceAllString(strings.TrimSpace(s), "")
	digits = strings.NewReplacer(":", "", " ", "").Replace(digits)
	sum, err := hex.DecodeString(digits)
	if err != nil || len(sum) != sha256.Size {
		return "", usage(fmt.Sprintf("%q is not the SHA-256 fingerprint of a certificate", s),
			"Give 64 hex digits, with or without colons, as slotfetchd logs them at every start.")
	}
	return formatFingerprint(sum), nil
}

// errUntrusted is a certificate that nothing vouches for yet.
type errUntrusted struct {
	leaf  *x509.Certificate
	cause error
}

func (e *errUntrusted) Error() string { return "the certificate is not trusted: " + e.cause.Error() }

// errObserved ends a handshake that was only made to see the certificate.
type errObserved struct{ chain []*x509.Certificate }

func (e *errObserved) Error() string { return "certificate seen" }

// verifier decides about the certificate of one box. Go's own check is off, because it knows no pins.
type verifier struct {
	box      box
	insecure bool
	roots    *x509.CertPool // nil: those of the system
	want     string         // the fingerprint given with --pin
	pinned   pin            // zero: none
	now      func() time.Time
}

func (a *app) newVerifier(b box) (*verifier, error) {
	v := &verifier{box: b, insecure: a.insecure, now: a.now}
	if b.cacert != "" && !a.insecure {
		pem, err := os.ReadFile(b.cacert)
		if err != nil {
			return nil, usage(fmt.Sprintf("cannot read the CA file: %v", err), "")
		}
		v.roots = x509.NewCertPool()
		if !v.roots.AppendCertsFromPEM(pem) {
			return nil, usage(fmt.Sprintf("no PEM certificate in the CA file %s", b.cacert), "")
		}
	}
	p, err := loadPins()
	if err != nil {
		return nil, err
	}
	v.pinned = p.Pins[b.hostPort()]
	return v, nil
}

// tlsConfig leaves everything to check, which also runs for resumed connections.
func (v *verifier) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // #nosec G402 -- VerifyConnection does it, pins included.
		VerifyConnection:   v.check,
	}
}

// check applies, in this order: --insecure, --pin, --cacert, the stored pin, the CAs of the system.
func (v *verifier) check(cs tls.ConnectionState) error {
	if v.insecure {
		return nil
	}
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the box showed no certificate")
	}
	leaf := cs.PeerCertificates[0]
	got := fingerprint(leaf)
	switch {
	case v.want != "":
		if !same(v.want, got) {
			return v.changed("is not the one given with --pin", v.want, got,
				"If the fingerprint was mistyped, give it again; else somebody may be listening in.")
		}
		return nil
	case v.roots != nil:
		if err := v.chain(cs, leaf); err != nil {
			return &failure{code: exitNetwork, kind: "Untrusted", cause: err,
				message: fmt.Sprintf("the certificate of %s does not verify with the CAs in %s: %v", v.box, v.box.cacert, err)}
		}
		return nil
	case v.pinned.SHA256 != "":
		if !same(v.pinned.SHA256, got) {
			return v.changed("HAS CHANGED since it was pinned. Somebody may be listening in, or the box has a new certificate", v.pinned.SHA256, got,
				fmt.Sprintf("If the new fingerprint is that in the log of the box (journalctl -u slotfetchd), remove the pin with: slotfetch trust --forget %s", quote(v.box.name)))
		}
		return nil
	}
	if err := v.chain(cs, leaf); err != nil {
		return &errUntrusted{leaf: leaf, cause: err}
	}
	return nil
}

func (v *verifier) chain(cs tls.ConnectionState, leaf *x509.Certificate) error {
	between := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{DNSName: v.box.host, Roots: v.roots, Intermediates: between, CurrentTime: v.now()})
	return err
}

func (v *verifier) changed(what, want, got, hint string) error {
	return &failure{code: exitNetwork, kind: "Untrusted", hint: hint,
		details: map[string]any{"expected": want, "got": got},
		message: fmt.Sprintf("the certificate of %s %s.\n  expected %s\n  got      %s\nNothing was sent to it.", v.box, what, want, got)}
}

// same compares fingerprints whatever their spelling in the file.
func same(a, b string) bool {
	x, err := parseFingerprint(a)
	if err != nil {
		return false
	}
	return subtle.ConstantTimeCompare([]byte(x), []byte(b)) == 1
}
