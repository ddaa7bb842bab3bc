package main_test

import (
	"strings"
	"testing"

	"slotfetch/fetch/fetchtest"
)

// An image that a slot has is not downloaded again, unless the caller insists.
func TestDeduplicated(t *testing.T) {
	t.Parallel()
	c := startAgent(t, "").loginAdmin(t)
	fetch := func(url, sha256 string, more ...any) string {
		t.Helper()
		return c.fetch(t, url, sha256, append([]any{"force", false}, more...)...)
	}
	server := fetchtest.NewHTTP(t, nil)
	url := server.Handle("/a.iso", fetchtest.Whole(small).Serve)
	requests := func(want int) {
		t.Helper()
		if got := len(server.Requests()); got != want {
			t.Errorf("the server got %d requests, want %d", got, want)
		}
	}
	c.awaitStatus(t, fetch(url, small.SHA256()), "finished").is(t, "body.slot_id", 1, "body.deduplicated", false, "body.resumed_from", 0)
	requests(1)
	// Finished at once, from another URL too; nothing listens there.
	job := fetch("http://127.0.0.1:1/b.iso", small.SHA256())
	r := c.do(t, "GET", job, "").want(t, 200).is(t, "body.status", "finished", "body.slot_id", 1, "body.deduplicated", true, "body.attempts", 0,
		"body.bytes_downloaded", small.Size(), "body.bytes_total", small.Size(), "body.bytes_per_second", nil, "meta.slot", slotsPath+"/1")
	if r.str("body.start_time") == "" || r.str("body.end_time") == "" {
		t.Errorf("no times in %s", r.raw)
	}
	c.do(t, "DELETE", job, "").want(t, 200) // prunes, and leaves the slot
	c.do(t, "GET", slotsPath+"/1", "").want(t, 200).is(t, "body.sha256", small.SHA256())
	requests(1)
	// Not the same wish.
	c.awaitStatus(t, fetch(url, small.SHA256(), "slot_id", 3), "finished").is(t, "body.slot_id", 3, "body.deduplicated", false)
	c.awaitStatus(t, fetch(url, small.SHA256(), "force", true), "finished").is(t, "body.slot_id", 2, "body.deduplicated", false)
	requests(3)
	c.awaitStatus(t, fetch(url, small.SHA256(), "slot_id", 3), "finished").is(t, "body.slot_id", 3, "body.deduplicated", true)
	c.do(t, "POST", fetches, order(url, small.SHA256(), "force", "yes")).fails(t, 400, "SemanticError", "force")

	// Two in the queue: what the first brings, the second finds.
	other := fetchtest.NewImage(9, 1<<20)
	f := fetchtest.Whole(other)
	f.Fault, f.After = fetchtest.Stall, 1000
	slow := server.Handle("/c.iso", f.Serve)
	first, second := fetch(slow, other.SHA256()), fetch(slow, other.SHA256())
	c.awaitPhase(t, first, "downloading")
	c.do(t, "GET", second, "").is(t, "body.status", "queued")
	for range 4 {
		server.Next(t).Release()
	}
	c.awaitStatus(t, first, "finished").is(t, "body.slot_id", 4, "body.deduplicated", false)
	c.awaitStatus(t, second, "finished").is(t, "body.slot_id", 4, "body.deduplicated", true)
	requests(4)
	// An emptied slot has nothing to give.
	c.do(t, "DELETE", slotsPath+"/4", "").want(t, 200)
	server.Handle("/c.iso", fetchtest.Whole(other).Serve)
	c.awaitStatus(t, fetch(slow, other.SHA256()), "finished").is(t, "body.slot_id", 4, "body.deduplicated", false)
}

// A POST under an Idempotency-Key can be repeated without harm.
func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	_, url := serveStalling(t, small)
	post := func(c *client, key, body string) reply {
		t.Helper()
		return c.do(t, "POST", fetches, body, "Idempotency-Key", key)
	}
	body := order(url, small.SHA256(), "credentials", map[string]any{"username": "u", "password": "canary"})
	first := post(c, "box 17", body).want(t, 202)
	for range 2 {
		again := post(c, "box 17", body).want(t, 202).is(t, "key", first.str("key"))
		if got := again.header.Get("Location"); got != first.header.Get("Location") {
			t.Errorf("Location %q", got)
		}
	}
	post(c, "box 17", order(url, small.SHA256(), "credentials", map[string]any{"username": "u", "password": "other"})).
		fails(t, 409, "Conflict", "").is(t, "error.details.reason", "idempotency-key")
	if key := post(c, "box 18", body).want(t, 202).str("key"); key == first.str("key") {
		t.Error("another key gave the same fetch")
	}
	if key := post(a.user(t, "operator"), "box 17", body).want(t, 202).str("key"); key == first.str("key") {
		t.Error("another user got the fetch")
	}
	if key := c.do(t, "POST", fetches, body).want(t, 202).str("key"); key == first.str("key") {
		t.Error("without a key it joined")
	}
	for _, bad := range []string{"", strings.Repeat("x", 256), "caf\u00e9"} {
		post(c, bad, body).fails(t, 400, "SemanticError", "Idempotency-Key")
	}
	// It lasts over a restart, and no longer than the entry.
	c.awaitPhase(t, first.str("meta.href"), "downloading")
	a.restart(t, 9)
	post(c, "box 17", body).want(t, 202).is(t, "key", first.str("key"))
	for range 2 {
		c.do(t, "DELETE", first.str("meta.href"), "").want(t, 200)
	}
	if key := post(c, "box 17", body).want(t, 202).str("key"); key == first.str("key") {
		t.Error("a pruned fetch came back")
	}
}
