package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slotfetch/api"
)

// TestUploadAnswers is about what the client sends, and makes of an answer. What a real box does is in testdata/agent.
func TestUploadAnswers(t *testing.T) {
	image := strings.Repeat("an image ", 20_000)
	good := fmt.Sprintf("%x", sha256.Sum256([]byte(image)))
	stored := func(digest string) api.Upload {
		return api.Upload{Key: "3", Body: api.SlotBody{Version: "7.4.0", SHA256: digest, Size: int64(len(image))}}
	}
	refused := func(kind, message string, details map[string]any) api.ErrorReply {
		return api.ErrorReply{Error: api.ErrorBody{Type: kind, Message: message, Details: details}}
	}
	for _, tt := range []struct {
		name   string
		status int
		body   any
		code   int
		words  []string
	}{
		{"good", 200, stored(good), exitOK, []string{"Slot 3 holds sps 7.iso, 175.8 KiB in ", "Version 7.4.0, SHA-256 " + good}},
		{"another image in the slot", 200, stored(testDigest), exitIntegrity, []string{"slot 3 holds another image than was sent: SHA-256 " + testDigest + ", not " + good, "slotfetch slots rm 3"}},
		{"no agent", 200, map[string]any{}, exitNetwork, []string{"does not answer like a box"}},
		{"an agent without uploads", 404, refused("ResourceNotFound", "API not found", nil), exitNotFound, []string{"takes no uploads"}},
		{"full", 409, refused("Conflict", "All full.", map[string]any{"state": "full"}), exitNoSpace, []string{"All full.", "slotfetch slots rm N"}},
		{"occupied", 409, refused("Conflict", "Full.", map[string]any{"state": "occupied"}), exitNoSpace, []string{"slotfetch slots rm N"}},
		{"protected", 409, refused("Conflict", "It runs.", map[string]any{"state": "protected"}), exitConflict, []string{"It runs."}},
		{"no space", 507, refused("InsufficientStorage", "No space.", map[string]any{"needed": 2, "free": 1}), exitNoSpace, []string{"slotfetch slots rm N"}},
		{"too large", 413, refused("RequestTooLarge", "Too large.", nil), exitUsage, []string{"Too large."}},
		{"wrong digest", 400, refused("SemanticError", "SHA-256 mismatch.", map[string]any{"field": "sha256", "expected": "a", "got": "b"}), exitIntegrity, []string{"SHA-256 mismatch."}},
		{"busy", 503, refused("ServiceUnavailable", "2 uploads.", nil), exitNetwork, []string{"2 uploads."}},
		{"viewer", 403, refused("Unauthorized", "No.", map[string]any{"required_role": "operator"}), exitAuth, []string{"needs the role operator"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := withLogin(t)
			file := filepath.Join(t.TempDir(), "sps 7.iso")
			if err := os.WriteFile(file, []byte(image), 0o600); err != nil {
				t.Fatal(err)
			}
			var got *http.Request
			var body []byte
			b.intercept = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != pathUpload {
					return false
				}
				if got = r; tt.status == 200 || tt.status == 400 {
					body, _ = io.ReadAll(r.Body)
				}
				reply(w, tt.status, tt.body)
				return true
			}
			r := invoke(t, "", "upload", file, "--slot", "0", "--sha256", good+"  sps 7.iso").want(t, tt.code)
			for _, word := range tt.words {
				if !strings.Contains(r.stdout+r.stderr, word) {
					t.Errorf("lacks %q:\n%s%s", word, r.stdout, r.stderr)
				}
			}
			if got.URL.RawQuery != "sha256="+good+"&slot_id=0" || got.ContentLength != int64(len(image)) || got.Header.Get("Expect") != "100-continue" ||
				got.Header.Get("Content-Disposition") != `attachment; filename="sps 7.iso"` || body != nil && string(body) != image {
				t.Errorf("%s %d %v, %d bytes", got.URL, got.ContentLength, got.Header, len(body))
			}
		})
	}
}

// TestUploadBroken: the box goes away when all was sent, and nobody knows what has become of it.
func TestUploadBroken(t *testing.T) {
	b := withLogin(t)
	b.intercept = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == pathUpload {
			_, _ = io.Copy(io.Discard, r.Body)
			panic(http.ErrAbortHandler)
		}
		return false
	}
	invoke(t, "an image", "upload", "-", "--progress", "none").want(t, exitNetwork, "may be in a slot all the same")
	if n := strings.Count(strings.Join(b.seen(), "\n"), "POST "+pathUpload); n != 1 {
		t.Errorf("sent %d times", n)
	}
}
