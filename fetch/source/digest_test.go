package source_test

import (
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

// A server that announces another digest than the wanted one is refused before the body moves; one that cannot be
// understood is left to our own digest.
func TestAnnouncedDigest(t *testing.T) {
	base := func(img *fetchtest.Image) string {
		raw, err := hex.DecodeString(img.SHA256())
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(raw)
	}
	other := fetchtest.NewImage(8, image.Size())
	refused := failure(source.Permanent, "digest", "The server says that the file's SHA-256 is "+other.SHA256()+", not "+image.SHA256()+". Nothing was downloaded.")
	for _, tc := range []struct {
		name   string
		header []string
		want   outcome
	}{
		{"Repr-Digest agrees", []string{"Repr-Digest: sha-256=:" + base(image) + ":"}, good(image)},
		{"Repr-Digest differs", []string{"Repr-Digest: sha-256=:" + base(other) + ":"}, refused},
		{"Repr-Digest of several", []string{"Repr-Digest: sha-512=:AAAA:, sha-256=:" + base(other) + ":;x=1"}, refused},
		{"Repr-Digest on two lines", []string{"Repr-Digest: sha-512=:AAAA:", "Repr-Digest: sha-256=:" + base(other) + ":"}, refused},
		{"Digest agrees", []string{"Digest: SHA-256=" + base(image)}, good(image)},
		{"Digest differs", []string{"Digest: md5=x,sha-256=" + base(other)}, refused},
		{"X-Checksum-Sha256 agrees", []string{"X-Checksum-Sha256: " + strings.ToUpper(image.SHA256())}, good(image)},
		{"X-Checksum-Sha256 differs", []string{"X-Checksum-Sha256: " + other.SHA256()}, refused},
		{"they contradict each other", []string{"X-Checksum-Sha256: " + other.SHA256(), "Digest: sha-256=" + base(image)}, good(image)},
		{"Content-Digest is of something else", []string{"Content-Digest: sha-256=:" + base(other) + ":"}, good(image)},
		{"no base64", []string{"Repr-Digest: sha-256=:***:"}, good(image)},
		{"no colons", []string{"Repr-Digest: sha-256=" + base(other)}, good(image)},
		{"too short", []string{"Repr-Digest: sha-256=:AAAA:"}, good(image)},
		{"half a colon pair", []string{"Repr-Digest: sha-256=:"}, good(image)},
		{"no hex", []string{"X-Checksum-Sha256: yes"}, good(image)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := fetchtest.Whole(image)
			f.Header = tc.header
			s := fetchtest.NewHTTP(t, nil)
			req := source.Request{URL: parse(t, s.Handle("/x.iso", f.Serve)), SHA256: image.SHA256()}
			got, _ := attempt(t, patient(), req, image, 0, source.Validator{})
			wantOutcome(t, tc.want, got)
			if got := s.Requests()[0].Header.Get("Want-Repr-Digest"); got != "sha-256=10" {
				t.Errorf("Want-Repr-Digest: %q", got)
			}
			// Also in the middle of the file, where the digest is still that of the whole.
			got, _ = attempt(t, patient(), req, image, 1000, source.Validator{ETag: f.ETag, Size: image.Size()})
			want := tc.want
			if want.Code == "" {
				want.Offset, want.Bytes = 1000, image.Size()-1000
			}
			wantOutcome(t, want, got)
		})
	}
}

// FuzzAnnouncedDigest: what is understood is a SHA-256 in lower-case hex.
func FuzzAnnouncedDigest(f *testing.F) {
	f.Add("sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:", "SHA-256=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "e3b0")
	f.Add("sha-512=:x:,sha-256=:::", "a=b,,=", strings.Repeat("aB", 32))
	f.Fuzz(func(t *testing.T, repr, digest, checksum string) {
		got := source.AnnouncedSHA256(http.Header{"Repr-Digest": {repr}, "Digest": {digest}, "X-Checksum-Sha256": {checksum}})
		if got == "" {
			return
		}
		if raw, err := hex.DecodeString(got); err != nil || len(raw) != 32 || got != strings.ToLower(got) {
			t.Errorf("understood %q", got)
		}
	})
}
