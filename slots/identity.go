package slots

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"slotfetch/api"
)

// This file reads what an image is by the word of its vendor: from the manifest inside it, or from the signed one beside it.
// Both have the same fields.

// identityMax bounds the manifest inside an image, in bytes.
const identityMax = 64 << 10

// Identity is what a vendor says of an image. What is not said is empty.
type Identity struct {
	Product, Version string
	// MinVersion is the lowest version that may replace the image.
	MinVersion string
	// UpgradeFrom is the lowest version from which the image may be activated.
	UpgradeFrom string
}

// ParseIdentity reads text, which has to be one JSON object in UTF-8, with no key twice, and with fields of the right types.
// More are other fields by name, and what to decode them into. Null is the same as absent, and unknown fields are for others.
func ParseIdentity(text []byte, more map[string]any) (Identity, error) {
	var id Identity
	if _, err := api.ParseObject(text); err != nil {
		return id, errors.New("it is not one JSON object, in UTF-8 and with no key twice")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil { // a map: a struct would fill size from Size
		return id, errors.New("it is no JSON object")
	}
	read := func(name string, to any) error {
		if json.Unmarshal(fields[name], to) != nil && fields[name] != nil {
			return fmt.Errorf("its %s has the wrong type", name)
		}
		return nil
	}
	for _, f := range []struct {
		name     string
		to       *string
		compared bool
	}{{"product", &id.Product, false}, {"version", &id.Version, false}, {"min_version", &id.MinVersion, true}, {"upgrade_from", &id.UpgradeFrom, true}} {
		if err := read(f.name, f.to); err != nil {
			return id, err
		}
		if len(*f.to) > textMax || strings.ContainsFunc(*f.to, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return id, fmt.Errorf("its %s is longer than %d bytes or not printable", f.name, textMax)
		}
		if f.compared && *f.to != "" && !ComparableVersion(*f.to) {
			return id, fmt.Errorf("its %s is not of numbers and dots, such as 7.0.5", f.name)
		}
	}
	if LowerVersion(id.Version, id.MinVersion) {
		return id, errors.New("its version is lower than its own min_version")
	}
	for name, to := range more {
		if err := read(name, to); err != nil {
			return id, err
		}
	}
	return id, nil
}

// badIdentity says why the manifest inside an image cannot be used.
type badIdentity struct{ error }

// ISOIdentity reads the manifest of that path inside an ISO 9660 image of size bytes; found is false if there is none, or no
// ISO. As with [InspectISO] the image is foreign.
func ISOIdentity(r io.ReaderAt, size int64, path string) (id Identity, found bool, err error) {
	if path == "" {
		return id, false, nil
	}
	t, err := openISO(r, size)
	if errors.Is(err, ErrNotISO) {
		return id, false, nil
	}
	var at isoEntry
	if err == nil {
		at, err = t.locate(path)
	}
	switch {
	case errors.Is(err, errAbsent):
		return id, false, nil
	case errors.Is(err, errTree):
		return id, true, badIdentity{errors.New("the way to it in the image is malformed")}
	case err != nil:
		return id, false, fmt.Errorf("cannot read ISO: %w", err)
	case at.length > identityMax:
		return id, true, badIdentity{fmt.Errorf("it is longer than %d bytes", identityMax)}
	}
	text := make([]byte, at.length)
	if err := readFull(r, text, at.start); err != nil {
		return id, false, fmt.Errorf("cannot read ISO: %w", err)
	}
	if id, err = ParseIdentity(text, nil); err != nil {
		return Identity{}, true, badIdentity{err}
	}
	return id, true, nil
}

// Vouch sets what the vendor says of the image; what is not said stays as it is.
func (m *Manifest) Vouch(id Identity) {
	m.Product, m.Version = cmp.Or(id.Product, m.Product), cmp.Or(id.Version, m.Version)
	m.MinVersion, m.UpgradeFrom = cmp.Or(id.MinVersion, m.MinVersion), cmp.Or(id.UpgradeFrom, m.UpgradeFrom)
}
