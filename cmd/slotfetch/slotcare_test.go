package main

import (
	"net/http"
	"testing"

	"slotfetch/api"
)

// A box that needs longer than an answer may take is asked until it has the result.
func TestVerifyLater(t *testing.T) {
	b := withLogin(t)
	before, after := "2026-05-04T08:00:00+00:00", "2026-05-04T08:05:00+00:00"
	b.slots = []api.Slot{{Key: "2", Body: api.SlotBody{Version: "7", State: "ok", Size: 5, ScrubbedAt: &before}}}
	gets := 0
	b.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method == http.MethodPost:
			w.Header().Set("Location", pathSlots+"/2")
			reply(w, 202, b.slots[0])
			return true
		case r.URL.Path == pathSlots+"/2":
			if gets++; gets == 2 {
				b.slots[0].Body.State, b.slots[0].Body.ScrubbedAt = "degraded", &after
			}
		}
		return false
	}
	invoke(t, "", "slots", "verify", "2").want(t, exitIntegrity, "slot 2 is not what was fetched any more", "slots rm 2")
	if gets != 2 {
		t.Errorf("asked %d times", gets)
	}
	b.slots[0].Body.ScrubbedAt = &before
	posts := 0
	b.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		if posts++; posts == 1 {
			reply(w, 202, b.slots[0])
			return true
		}
		s := b.slots[0]
		s.Body.State, s.Body.ScrubbedAt = "ok", &after
		reply(w, 200, s)
		return true
	}
	invoke(t, "", "slots", "verify", "2", "--timeout", "1m").want(t, exitOK, "") // a box that was restarted and is asked again
	b.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			reply(w, 202, b.slots[0])
		}
		return r.Method == http.MethodPost
	}
	invoke(t, "", "slots", "verify", "2", "--timeout", "100ms").want(t, exitPending, "the box still reads; it goes on")
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "1610612736": 1610612736, "9223372036854775807": 1<<63 - 1, "300M": 300 << 20, "1.5G": 3 << 29, "2k": 2048} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "-1", "x", "1T", "9223372036854775808", "99999999999G", "1e3"} {
		if n, err := parseSize(bad); err == nil {
			t.Errorf("%q is %d", bad, n)
		}
	}
}
