package main

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"slotfetch/api"
)

// TestProbeAnswers is about what the client makes of an answer.
func TestProbeAnswers(t *testing.T) {
	failing := func(name, code string, url *string) api.ProbeCheck {
		return api.ProbeCheck{Name: name, Result: "fail", Code: &code, Message: name + " is bad.", Remedy: ptr("Mend it.\x1b[2J"), URL: url}
	}
	for _, tt := range []struct {
		name   string
		status int
		body   any
		code   int
		words  []string
	}{
		{"ok", 200, api.Probe{Body: api.ProbeBody{Verdict: "ok", SlotID: ptr(2), Size: ptr(int64(3 << 20))}}, exitOK, []string{"ok: a fetch would work, into slot 2, 3.0 MiB.\n"}},
		{"the box decides over the first place", 200, api.Probe{Body: api.ProbeBody{Verdict: "fail",
			Checks: []api.ProbeCheck{failing("answer", "http_404", ptr(testURL)), failing("space", "space", nil)}}}, exitNoSpace,
			[]string{"FAIL: a fetch would fail: space is bad.\n", "FAIL  answer  answer is bad.\n", "  Mend it."}},
		{"no place works", 200, api.Probe{Body: api.ProbeBody{Verdict: "fail",
			Checks: []api.ProbeCheck{failing("digest", "digest", ptr(testURL)), failing("dns", "dns", ptr("http://m/x"))}}}, exitIntegrity,
			[]string{"FAIL: a fetch would fail: digest is bad.\n", testURL + "\n", "http://m/x\n"}},
		{"an agent that knows no dry run", 202, api.Accepted{Key: testKey}, exitFailed, []string{"started fetch " + testKey, "slotfetch cancel " + testKey}},
		{"no agent", 200, map[string]any{}, exitNetwork, []string{"does not answer like a box"}},
		{"too many", 503, api.ErrorReply{Error: api.ErrorBody{Type: "ServiceUnavailable", Message: "2 dry runs are under way."}}, exitNetwork, []string{"2 dry runs"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := withLogin(t)
			query := ""
			b.intercept = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPost {
					return false
				}
				query = r.URL.RawQuery
				_, _ = io.Copy(io.Discard, r.Body)
				reply(w, tt.status, tt.body)
				return true
			}
			r := invoke(t, "", "probe", testURL).want(t, tt.code)
			for _, word := range tt.words {
				if !strings.Contains(r.stdout+r.stderr, word) {
					t.Errorf("lacks %q:\n%s%s", word, r.stdout, r.stderr)
				}
			}
			if strings.Contains(r.stdout+r.stderr, "\x1b") {
				t.Errorf("a control character came through: %q", r.stdout)
			}
			if query != "dry_run=true" {
				t.Errorf("the query was %q", query)
			}
		})
	}
}
