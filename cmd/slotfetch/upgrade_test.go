package main

import (
	"net/http"
	"strings"
	"testing"

	"slotfetch/api"
)

// A box that needs longer for a test than an answer may take is asked until it is through, also before an upgrade.
func TestLongTest(t *testing.T) {
	b := withLogin(t)
	posts := 0
	b.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		if posts++; posts%2 == 1 {
			w.Header().Set("Retry-After", "5")
			refuse(w, 503, "ServiceUnavailable", "Slot 2 is still being tested: 45% of its image is read. The test goes on; ask again for the result.",
				map[string]any{"slot_id": 2, "state": "testing"})
			return true
		}
		switch r.URL.Path {
		case pathTest:
			refuse(w, 400, "FirmwareTestFailed", "Slot 2 cannot be activated. Hook 50-memory: FAILED (8.0 needs 4 GB of memory).",
				map[string]any{"test_summary": "Image digest: ok\nHook 50-memory: FAILED (8.0 needs 4 GB of memory)"})
		case pathUpgrade:
			reply(w, 200, api.SlotTest{Key: "2", Body: api.SlotTestBody{TestSummary: "Image digest: ok", UpgradeID: testKey}})
		}
		return true
	}
	got := invoke(t, "", "upgrade", "2", "--check")
	got.want(t, exitFailed, "45% of its image is read", "Slot 2 cannot be activated. Hook 50-memory: FAILED (8.0 needs 4 GB of memory).")
	if want := "Image digest: ok\nHook 50-memory: FAILED (8.0 needs 4 GB of memory)\n"; got.stdout != want {
		t.Errorf("stdout %q", got.stdout)
	}
	if got := invoke(t, "", "upgrade", "2", "--yes", "-o", "id").want(t, 0); got.stdout != testKey+"\n" {
		t.Errorf("stdout %q", got.stdout)
	}
	if posts != 4 {
		t.Errorf("asked %d times", posts)
	}
	invoke(t, "", "test", "2", "--timeout", "50ms").want(t, exitPending, "after 50ms the box is still testing the slot", "Call again")
	// Another 503 is not repeated: the upgrade may have been stored.
	b.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		posts++
		refuse(w, 503, "ServiceUnavailable", "The database is busy.", nil)
		return true
	}
	posts = 0
	invoke(t, "", "upgrade", "2", "--yes").want(t, exitNetwork, "The database is busy.")
	if posts != 1 {
		t.Errorf("asked %d times", posts)
	}
}

// The slot to go back to is the box's to name.
func TestRollbackToNothing(t *testing.T) {
	b := withLogin(t)
	b.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != pathRollback {
			return false
		}
		refuse(w, 404, "ResourceNotFound", "There is no image in slot 3.", nil)
		return true
	}
	r := invoke(t, "", "rollback", "--yes")
	r.want(t, exitNotFound, "There is no image in slot 3")
	if strings.Contains(r.stderr, "slot 0") {
		t.Error(r.stderr)
	}
}
