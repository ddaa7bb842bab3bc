package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

// rot changes the last byte of the image in a slot.
func (a *agent) rot(t *testing.T, slot int) {
	t.Helper()
	name := filepath.Join(a.state, "slots", fmt.Sprint(slot), "image")
	check(t, os.Chmod(name, 0o600))
	image, err := os.ReadFile(name)
	check(t, err)
	image[len(image)-1] ^= 1
	check(t, os.WriteFile(name, image, 0o600))
}

// events are the audit's lines "action object" that have action.
func (a *agent) events(t *testing.T, action string) []string {
	t.Helper()
	var found []string
	db := a.sqlite(t)
	rows, err := db.Query(`SELECT object || ' ' || actor FROM events WHERE action = ? ORDER BY id`, action)
	check(t, err)
	defer rows.Close()
	for rows.Next() {
		var s string
		check(t, rows.Scan(&s))
		found = append(found, s)
	}
	check(t, rows.Err())
	return found
}

// An image that rots is found, by somebody who asks and by the agent itself; all that look for trouble are told, nothing is
// deleted, and a fetch of the same image brings it again.
func TestScrub(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c, viewer, operator := a.loginAdmin(t), a.user(t, "viewer"), a.user(t, "operator")
	url := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(small).Serve)
	c.awaitStatus(t, c.fetch(t, url, small.SHA256()), "finished")
	one, verify := slotsPath+"/1", slotsPath+"/1/verify"
	c.do(t, "GET", one, "").want(t, 200).is(t, "body.state", "not-iso", "body.scrubbed_at", nil, "body.pinned", false, "body.label", "")
	viewer.do(t, "POST", verify, "").fails(t, 403, "Unauthorized", "")
	operator.do(t, "POST", slotsPath+"/2/verify", "").fails(t, 404, "ResourceNotFound", "")
	operator.do(t, "POST", slotsPath+"/9/verify", "").fails(t, 404, "ResourceNotFound", "")
	if r := operator.do(t, "POST", verify, "").want(t, 200).is(t, "body.state", "not-iso"); r.str("body.scrubbed_at") == "" {
		t.Error(r.raw)
	}
	a.stranger(t).do(t, "GET", "/healthz", "").want(t, 200).is(t, "status", "ok")

	a.rot(t, 1)
	operator.do(t, "POST", verify, "").want(t, 200).is(t, "body.state", "degraded", "body.sha256", small.SHA256())
	alarm := func() {
		t.Helper()
		a.stranger(t).do(t, "GET", "/healthz", "").want(t, 200).is(t, "status", "degraded", "degraded_slots", []any{1.0})
		c.do(t, "GET", one, "").is(t, "body.state", "degraded")
		if m := viewer.samples(t); m["slotfetch_slots{state=degraded}"] != 1 || m["slotfetch_slots{state=not-iso}"] != 0 {
			t.Errorf("metrics: %v", m)
		}
	}
	alarm()
	if !strings.Contains(a.log.String(), "slot is degraded") {
		t.Error("the journal does not tell")
	}
	a.restart(t, syscall.SIGKILL)
	alarm()
	// The image that is not whole any more is no reason not to download it.
	c.awaitStatus(t, c.fetch(t, url, small.SHA256(), "force", false), "finished").is(t, "body.deduplicated", false, "body.slot_id", 2)
	c.do(t, "DELETE", one, "").want(t, 200)
	a.stranger(t).do(t, "GET", "/healthz", "").want(t, 200).is(t, "status", "ok", "degraded_slots", nil)

	check(t, os.Truncate(filepath.Join(a.state, "slots", "2", "image"), 1))
	operator.do(t, "POST", slotsPath+"/2/verify", "").fails(t, 409, "Conflict", "").is(t, "error.details.state", "damaged")
	a.stranger(t).do(t, "GET", "/healthz", "").want(t, 200).is(t, "status", "degraded", "degraded_slots", []any{2.0})
	if got := a.events(t, "slot.verify"); len(got) != 2 || got[0] != "1 operator1" {
		t.Errorf("audit %v", got)
	}
}

// The agent reads the images by itself when they are due.
func TestScrubByItself(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "[slots]\nscrub_interval = \"50ms\"\nscrub_rate = 0\n")
	c := a.loginAdmin(t)
	url := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(small).Serve)
	c.awaitStatus(t, c.fetch(t, url, small.SHA256()), "finished")
	until := func(state string) {
		t.Helper()
		for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(5 * time.Millisecond) {
			r := c.do(t, "GET", slotsPath+"/1", "").want(t, 200)
			if r.str("body.state") == state && r.get("body.scrubbed_at") != nil {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("never %s: %s", state, r.raw)
			}
		}
	}
	until("not-iso")
	a.rot(t, 1)
	until("degraded")
	a.rot(t, 1) // back
	until("not-iso")
}

// Pins and labels: who may, what is taken, what they keep from happening.
func TestPin(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c, viewer, operator := a.loginAdmin(t), a.user(t, "viewer"), a.user(t, "operator")
	url := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(small).Serve)
	c.awaitStatus(t, c.fetch(t, url, small.SHA256()), "finished")
	one := slotsPath + "/1"
	viewer.do(t, "PATCH", one, `{"pinned":true}`).fails(t, 403, "Unauthorized", "")
	for body, field := range map[string]string{`{"pinned":1}`: "pinned", `{"label":1}`: "label", `{"label":" x"}`: "label", `{"label":"a\nb"}`: "label",
		`{"label":"` + strings.Repeat("x", 65) + `"}`: "label"} {
		operator.do(t, "PATCH", one, body).fails(t, 400, "SemanticError", field)
	}
	for _, body := range []string{"", `{}`, `{"pinned":null}`, `{"Pinned":true}`} {
		operator.do(t, "PATCH", one, body).fails(t, 400, "IncompleteRequestBodyError", "pinned")
	}
	operator.do(t, "PATCH", one, `[]`).fails(t, 400, "SyntacticError", "")
	operator.do(t, "PATCH", slotsPath+"/2", `{"pinned":true}`).fails(t, 404, "ResourceNotFound", "")
	operator.do(t, "PATCH", slotsPath+"/9", `{"pinned":true}`).fails(t, 404, "ResourceNotFound", "")
	operator.do(t, "PATCH", one, `{"pinned":true,"label":"Zürich & <b>"}`).want(t, 200).is(t, "body.pinned", true, "body.label", "Zürich & <b>")
	a.restart(t, syscall.SIGKILL)
	operator.do(t, "DELETE", one, "").fails(t, 409, "Conflict", "").is(t, "error.details", map[string]any{"slot_id": 1.0, "state": "pinned"})
	operator.do(t, "PATCH", one, `{"label":""}`).want(t, 200).is(t, "body.pinned", true, "body.label", "")
	operator.do(t, "PATCH", one, `{"pinned":false}`).want(t, 200).is(t, "body.pinned", false)
	operator.do(t, "DELETE", one, "").want(t, 200)
	c.do(t, "GET", one, "").is(t, "body", map[string]any{})
	for action, want := range map[string]string{"slot.pin": "1 operator1", "slot.unpin": "1 operator1", "slot.label": "1 operator1,1 operator1"} {
		if got := strings.Join(a.events(t, action), ","); got != want {
			t.Errorf("%s: %s", action, got)
		}
	}
}

// The planner says what Reserve then does.
func TestPlanAndEvict(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "[slots]\ncount = 3\nevict = \"oldest\"\n")
	c, viewer := a.loginAdmin(t), a.user(t, "viewer")
	source := fetchtest.NewHTTP(t, nil)
	plan := func(size any) reply { return viewer.do(t, "GET", fmt.Sprint(slotsPath, "/plan?size=", size), "") }
	for _, bad := range []string{"?size=", "?size=x", "?size=-1", "?size=1&size=2", "?size=99999999999999999999"} {
		viewer.do(t, "GET", slotsPath+"/plan"+bad, "").fails(t, 400, "SemanticError", "size")
	}
	a.stranger(t).do(t, "GET", slotsPath+"/plan?size=1", "").want(t, 401)
	r := plan(1000).want(t, 200).is(t, "body.size", 1000, "body.fits", true, "body.slot_id", 1, "body.evicts_slot_id", nil, "body.gain", 0,
		"body.reserve", 64<<20, "body.number_of_empty_slots", 3, "body.reserved_slots", []any{})
	if r.get("body.free").(float64) <= 0 {
		t.Error(r.raw)
	}
	plan(int64(1)<<60).want(t, 200).is(t, "body.fits", false, "body.slot_id", 1)

	images := []*fetchtest.Image{fetchtest.NewImage(71, 100_000), fetchtest.NewImage(72, 200_000), fetchtest.NewImage(73, 300_000), fetchtest.NewImage(74, 400_000)}
	get := func(i int, status string) reply {
		t.Helper()
		url := source.Handle(fmt.Sprintf("/%d.iso", i), fetchtest.Whole(images[i]).Serve)
		return c.awaitStatus(t, c.fetch(t, url, images[i].SHA256()), status)
	}
	for i := range 3 {
		get(i, "finished").is(t, "body.slot_id", i+1)
	}
	plan(1).want(t, 200).is(t, "body.fits", false, "body.slot_id", nil, "body.number_of_empty_slots", 0)
	get(3, "failed").is(t, "body.error_details.code", "no_slot") // nobody knows what runs
	check(t, os.WriteFile(filepath.Join(a.state, "slots", "boot.json"), []byte(`{"current":1}`), 0o600))
	c.do(t, "PATCH", slotsPath+"/2", `{"pinned":true}`).want(t, 200)
	plan(1).want(t, 200).is(t, "body.fits", true, "body.slot_id", 3, "body.evicts_slot_id", 3, "body.gain", 300_000)
	dry := c.do(t, "POST", fetches+"?dry_run=true", order(source.URL+"/0.iso", images[3].SHA256())).want(t, 200)
	if dry.get("body.slot_id") != 3.0 || dry.get("body.verdict") != "warning" || !strings.Contains(dry.raw, `"code":"evicts"`) {
		t.Error(dry.raw)
	}
	// What never comes, or is not what it should be, costs no image.
	c.awaitStatus(t, c.fetch(t, source.URL+"/nowhere.iso", images[3].SHA256()), "failed")
	url := source.Handle("/other.iso", fetchtest.Whole(images[1]).Serve)
	c.awaitStatus(t, c.fetch(t, url, images[3].SHA256()), "failed").is(t, "body.error_details.code", "digest")
	c.upload(t, "?sha256="+images[3].SHA256(), "something else").fails(t, 400, "SemanticError", "sha256")
	c.do(t, "GET", slotsPath+"/3", "").want(t, 200).is(t, "body.sha256", images[2].SHA256())
	get(3, "finished").is(t, "body.slot_id", 3)
	c.do(t, "GET", slotsPath+"/3", "").is(t, "body.sha256", images[3].SHA256())
	c.do(t, "GET", slotsPath+"/2", "").is(t, "body.sha256", images[1].SHA256())
	if got := a.events(t, "slot.evict"); len(got) != 1 || got[0] != "3 slotfetchd" {
		t.Errorf("audit %v", got)
	}
	c.do(t, "PATCH", slotsPath+"/3", `{"pinned":true}`).want(t, 200)
	get(0, "failed").is(t, "body.error_details.code", "no_slot")
}
