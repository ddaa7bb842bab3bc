package slots

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	manifestFormat = 1
	manifestMax    = 64 << 10 // bytes
)

// Manifest describes the image of a slot. On disk it is JSON with a "format" of 1.
type Manifest struct {
	// Key is the fetch that brought the image.
	Key string `json:"key"`
	// Name is the file name of the image at its source.
	Name string `json:"name"`
	// Source is the URL without anything secret; the caller redacts it.
	Source string `json:"source"`
	// SHA256 is the verified digest in lower-case hex.
	SHA256 string `json:"sha256"`
	// SHA512 is the second verified digest in lower-case hex, or empty.
	SHA512 string `json:"sha512,omitempty"`
	// Size is the length of the image in bytes.
	Size int64 `json:"size"`
	// FetchedAt is when the image was committed, in UTC.
	FetchedAt time.Time `json:"fetched_at"`
	// VolumeID is the label of the ISO file system, or empty.
	VolumeID string `json:"volume_id"`
	// Version is what the image calls itself, as far as we could find out.
	Version string `json:"version"`
	// ISO tells whether the image is an ISO 9660 file system.
	ISO bool `json:"iso"`
	// SignedBy is the id of the key that signed the image's manifest at its source; empty if there was none.
	SignedBy string `json:"signed_by,omitempty"`
	// What else that says, or the manifest inside the image; see [Identity].
	Product     string `json:"product,omitempty"`
	MinVersion  string `json:"min_version,omitempty"`
	UpgradeFrom string `json:"upgrade_from,omitempty"`
}

// manifestOnDisk is a Manifest with the number of its format.
type manifestOnDisk struct {
	Format int `json:"format"`
	Manifest
}

// check refuses what we would not write ourselves.
func (m *Manifest) check() error {
	switch {
	case !validKey(m.Key):
		return fmt.Errorf("key %q is no canonical UUID", m.Key)
	case !lowerHex(m.SHA256, 64):
		return errors.New("sha256 is not 64 lower-case hex digits")
	case m.SHA512 != "" && !lowerHex(m.SHA512, 128):
		return errors.New("sha512 is not 128 lower-case hex digits")
	case m.Size < 0:
		return errors.New("size is negative")
	}
	return nil
}

// Plain refuses words that the agent would not have written, such as several lines: they may become part of what a boot
// loader reads. It is no part of reading a manifest, which would cost the agent the slot.
func (m *Manifest) Plain() error {
	for _, f := range []struct{ name, text string }{{"version", m.Version}, {"product", m.Product}, {"min_version", m.MinVersion},
		{"upgrade_from", m.UpgradeFrom}, {"signed_by", m.SignedBy}} {
		if utf8.RuneCountInString(f.text) > textMax || strings.ContainsFunc(f.text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return fmt.Errorf("%s in the manifest is longer than %d characters or not printable", f.name, textMax)
		}
	}
	return nil
}

// encode is the content of the manifest file.
func (m *Manifest) encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(manifestOnDisk{Format: manifestFormat, Manifest: *m}, "", "  ")
	if err != nil {
		return nil, err
	}
	if len(data) >= manifestMax {
		return nil, fmt.Errorf("manifest has %d bytes, at most %d fit", len(data), manifestMax-1)
	}
	return append(data, '\n'), nil
}

// decodeManifest is strict: the file is ours, so a field that we do not know means a newer or a broken writer.
func decodeManifest(data []byte) (*Manifest, error) {
	if len(data) > manifestMax {
		return nil, fmt.Errorf("manifest is larger than %d bytes", manifestMax)
	}
	var d manifestOnDisk
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("manifest is followed by other bytes")
	}
	if d.Format != manifestFormat {
		return nil, fmt.Errorf("manifest has format %d, want %d", d.Format, manifestFormat)
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	return &d.Manifest, nil
}

// readSmall reads at most limit bytes of a regular file of dir; more is an error, a link too.
func readSmall(dir *os.Root, name string, limit int64) (data []byte, err error) {
	f, err := openRegular(dir, name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return data, nil
}

// readManifest returns nil without an error if there is none.
func readManifest(dir *os.Root) (*Manifest, error) {
	data, err := readSmall(dir, manifestFile, manifestMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeManifest(data)
}

// validKey tells whether key is a UUID as we print it. Keys become file names, so nothing else is let in.
func validKey(key string) bool {
	if len(key) != 36 {
		return false
	}
	for i, n := range []int{8, 4, 4, 4, 12} {
		part, rest, _ := strings.Cut(key, "-")
		if !lowerHexDigits(part) || len(part) != n || (i == 4) != (rest == "") {
			return false
		}
		key = rest
	}
	return true
}

// lowerHex tells whether s is n lower-case hex digits.
func lowerHex(s string, n int) bool {
	return len(s) == n && lowerHexDigits(s)
}

func lowerHexDigits(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
