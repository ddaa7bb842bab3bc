package fetch

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"aead.dev/minisign"

	"slotfetch/api"
	"slotfetch/fetch/source"
	"slotfetch/slots"
)

// This file decides whether a signed manifest may stand for an image. The manifest is a small JSON object that says which
// product and version an image is, with its size and SHA-256; a signature by minisign covers its bytes, and they are
// verified before they are read. So the image itself is proved by its digest, as without signatures, and may come from
// anywhere, in pieces and over restarts.

// MaxSigned is how long a signed manifest, or its signature, may be, in bytes.
const MaxSigned = 64 << 10

// Key is a public key of minisign.
type Key = minisign.PublicKey

// ParseKey reads a public key: the base64 of minisign, or the content of a .pub file.
func ParseKey(text string) (Key, error) {
	var k Key
	if err := k.UnmarshalText([]byte(strings.TrimSpace(text))); err != nil {
		return k, errors.New("it is no public key of minisign")
	}
	return k, nil
}

// KeyID is the id of a key as minisign prints it.
func KeyID(id uint64) string { return fmt.Sprintf("%X", id) }

// Trust is whose images this box takes.
type Trust struct {
	// Keys are those that may sign.
	Keys []Key
	// Require refuses images without a signed manifest.
	Require bool
	// Product is what the manifest has to name; empty for any.
	Product string
	// AllowDowngrade lets the version be lower than that of the current slot.
	AllowDowngrade bool
}

// KeyIDs are the ids of the keys, as [slots.Manifest] has them.
func (t Trust) KeyIDs() []string {
	var ids []string
	for _, k := range t.Keys {
		ids = append(ids, KeyID(k.ID()))
	}
	return ids
}

// vouched tells whether an image came with a manifest that would be believed now: keys and product may have changed.
func (t Trust) vouched(m *slots.Manifest) bool {
	return slices.Contains(t.KeyIDs(), m.SignedBy) && (t.Product == "" || m.Product == t.Product)
}

// Signature is a signed manifest with its signature, as text.
type Signature struct {
	Manifest string `json:"manifest"`
	Minisig  string `json:"minisig"`
}

// signed is what a manifest promises, once its signature is verified.
type signed struct {
	slots.Identity
	keyID   string
	sha256  string
	size    int64
	expires time.Time
}

// verify checks the signature and then reads the manifest. Its errors are *source.Error.
func (t Trust) verify(s Signature) (*signed, error) {
	if len(t.Keys) == 0 {
		return nil, source.NewError("signature_key", "There is a signed manifest, but this box trusts no key.", nil)
	}
	var sig minisign.Signature
	if err := sig.UnmarshalText([]byte(s.Minisig)); err != nil {
		return nil, source.NewError("signature_bad", "The signature of the manifest is none of minisign.", err)
	}
	id := KeyID(sig.KeyID)
	known := slices.DeleteFunc(slices.Clone(t.Keys), func(k Key) bool { return k.ID() != sig.KeyID })
	if len(known) == 0 {
		return nil, source.NewError("signature_key", fmt.Sprintf("The manifest is signed with the key %s, which this box does not trust.", id), nil)
	}
	if !slices.ContainsFunc(known, func(k Key) bool { return minisign.Verify(k, []byte(s.Manifest), []byte(s.Minisig)) }) {
		return nil, source.NewError("signature_bad", fmt.Sprintf("The manifest is not what was signed with the key %s: it, its signature or the trusted comment was changed.", id), nil)
	}
	m, err := parseSigned(s.Manifest)
	if err != nil {
		return nil, source.NewError("signature_manifest", "The signed manifest cannot be used: "+err.Error()+".", err)
	}
	m.keyID = id
	return m, nil
}

// parseSigned reads a manifest whose signature is good. Unknown fields are for others.
func parseSigned(text string) (*signed, error) {
	m := &signed{}
	var expires string
	var size *int64
	var err error
	if m.Identity, err = slots.ParseIdentity([]byte(text), map[string]any{"size": &size, "sha256": &m.sha256, "expires": &expires}); err != nil {
		return nil, err
	}
	m.sha256 = strings.ToLower(m.sha256)
	switch {
	case m.Product == "":
		return nil, errors.New("it has no product")
	case m.Version == "":
		return nil, errors.New("it has no version")
	case !slots.ComparableVersion(m.Version):
		return nil, errors.New("its version is not of numbers and dots, such as 7.0.5")
	case size == nil:
		return nil, errors.New("it has no size")
	case *size <= 0:
		return nil, errors.New("its size is not above zero")
	case m.sha256 == "":
		return nil, errors.New("it has no sha256")
	case len(m.sha256) != 64 || strings.Trim(m.sha256, "0123456789abcdef") != "":
		return nil, errors.New("its sha256 is not 64 hexadecimal digits")
	}
	m.size = *size
	if expires != "" {
		if m.expires, err = time.Parse(time.RFC3339, expires); err != nil {
			return nil, errors.New("its expires is no time by RFC 3339, such as 2027-01-01T00:00:00Z")
		}
	}
	return m, nil
}

// accept tells whether an image that m promises may be fetched: want is the SHA-256 of the request, perhaps empty. Its
// errors are *source.Error, or of the disk.
func (t Trust) accept(m *signed, want string, now time.Time, s *slots.Slots) error {
	switch {
	case t.Product != "" && m.Product != t.Product:
		return source.NewError("signature_product", fmt.Sprintf("The signed manifest is for the product %s, and this box is a %s.", m.Product, t.Product), nil)
	case !m.expires.IsZero() && !now.Before(m.expires):
		return source.NewError("signature_expired", fmt.Sprintf("The signed manifest expired at %s.", *api.FormatTime(m.expires)), nil)
	case want != "" && want != m.sha256:
		return source.NewError("signature_digest", fmt.Sprintf("The signed manifest has the SHA-256 %s, checksum.sha256 is %s.", m.sha256, want), nil)
	}
	var down *slots.DowngradeError
	err := s.Downgrade(m.Version, t.AllowDowngrade)
	switch {
	case errors.As(err, &down) && down.Floor != "":
		return source.NewError("signature_floor", "The signed manifest is refused: "+down.Error()+".", err)
	case errors.As(err, &down):
		return source.NewError("signature_downgrade", "The signed manifest is refused: "+down.Error()+".", err)
	case errors.Is(err, slots.ErrBoot):
		return source.NewError("boot", "It is not known which slots must be kept: boot.json in the slots directory cannot be read.", err)
	case err != nil:
		return errWrite{err}
	}
	return nil
}

// readSigned reads a manifest or a signature to its end.
func readSigned(r io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxSigned+1))
	if err != nil {
		return "", err
	}
	if len(text) > MaxSigned {
		return "", source.NewError("signature_manifest", fmt.Sprintf("It is longer than %d bytes.", MaxSigned), nil)
	}
	return string(text), nil
}
