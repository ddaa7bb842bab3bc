package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"unicode/utf8"

	"slotfetch/api"
)

// signatureLimit is how long the box lets a signed manifest be, in bytes.
const signatureLimit = 64 << 10

// readSignature reads a signed manifest and the signature beside it, as minisign -S leaves them. The box verifies them.
func readSignature(name string) (*api.Signature, error) {
	var s api.Signature
	for file, to := range map[string]*string{name: &s.Manifest, name + ".minisig": &s.Minisig} {
		text, err := readLimited(file, signatureLimit)
		if cause := (*fs.PathError)(nil); errors.As(err, &cause) {
			return nil, usage(fmt.Sprintf("--manifest: cannot read %s: %v", file, cause.Err), "Sign the manifest with: minisign -S -m "+quote(name))
		}
		if err != nil {
			return nil, usage("--manifest: "+err.Error(), "")
		}
		*to = text
	}
	return &s, nil
}

func readLimited(name string, limit int64) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return "", err
	case int64(len(text)) > limit:
		return "", fmt.Errorf("%s is longer than %d bytes", name, limit)
	case len(text) == 0:
		return "", fmt.Errorf("%s is empty", name)
	case !utf8.Valid(text): // JSON would change it
		return "", fmt.Errorf("%s is no text in UTF-8", name)
	}
	return string(text), nil
}
