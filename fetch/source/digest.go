package source

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
)

// wantDigest asks for what announcedSHA256 reads (RFC 9530, section 4).
const wantDigest = "sha-256=10"

// checkDigest compares what the server says the file's SHA-256 is with what is wanted, before the body moves.
func checkDigest(h http.Header, want string) error {
	got := announcedSHA256(h)
	if want == "" || got == "" || got == want {
		return nil
	}
	return NewError("digest", fmt.Sprintf("The server says that the file's SHA-256 is %s, not %s. Nothing was downloaded.", got, want), nil)
}

// announcedSHA256 is the digest of the whole file by the server's headers, in hex; empty if it says nothing that can be
// understood, or contradicts itself. It is a hint: it can fail an attempt early and never replaces our own digest.
func announcedSHA256(h http.Header) string {
	found := ""
	for _, sum := range []string{
		dictionaryDigest(h.Values("Repr-Digest"), "sha-256", ":"), // RFC 9530: of the whole file, also with a 206
		dictionaryDigest(h.Values("Digest"), "SHA-256", ""),       // RFC 3230, which it replaces
		hexDigest(h.Get("X-Checksum-Sha256")),                     // Artifactory, Nexus
	} {
		if sum != "" && found != "" && sum != found {
			return ""
		}
		found = max(found, sum)
	}
	return found
}

// dictionaryDigest finds NAME=MARKbase64MARK among the members of a header, in hex.
func dictionaryDigest(values []string, name, mark string) string {
	for _, member := range strings.Split(strings.Join(values, ","), ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(member), "=")
		if !ok || !strings.EqualFold(key, name) {
			continue
		}
		value, _, _ = strings.Cut(value, ";") // parameters
		value = strings.TrimSpace(value)
		if len(value) < 2*len(mark) || !strings.HasPrefix(value, mark) || !strings.HasSuffix(value, mark) {
			return ""
		}
		raw, err := base64.StdEncoding.DecodeString(value[len(mark) : len(value)-len(mark)])
		if err != nil || len(raw) != sha256.Size {
			return ""
		}
		return hex.EncodeToString(raw)
	}
	return ""
}

// hexDigest is s in lower case if it is a SHA-256, else empty.
func hexDigest(s string) string {
	raw, err := hex.DecodeString(strings.TrimSpace(s))
	if err != nil || len(raw) != sha256.Size {
		return ""
	}
	return hex.EncodeToString(raw)
}
