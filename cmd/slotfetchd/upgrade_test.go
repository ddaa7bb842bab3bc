package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

const (
	testPath, upgradePath, upgradesPath, rollbackPath = "/api/firmware/test", "/api/firmware/upgrade", "/api/firmware/upgrades", "/api/firmware/rollback"
	other                                             = 7 // the seed of another image
)

// box is an agent with two images, of which slot 1 runs, on a machine with a boot loader.
type box struct {
	*agent
	*boots
	c *client
}

func newBox(t *testing.T, extra string, scripts map[string]string) *box {
	t.Helper()
	b, config := newBoots(t, scripts)
	a := startAgent(t, config+extra)
	x := &box{a, b, a.loginAdmin(t)}
	server := fetchtest.NewHTTP(t, nil)
	for i, name := range []string{"fw-7.0.5.iso", "fw-7.4.0.iso"} {
		img := fetchtest.NewImage(uint64(other+i), 300_000)
		x.c.awaitStatus(t, x.c.fetch(t, server.Handle("/"+name, fetchtest.Whole(img).Serve), img.SHA256()), "finished")
	}
	x.reboot(t, 1)
	return x
}

// reboot stops the agent, as a reboot does, and starts it in a slot.
func (x *box) reboot(t *testing.T, slot int) {
	t.Helper()
	x.down(t)
	x.boots.reboot(t, slot)
	x.start(t)
}

func (x *box) down(t *testing.T) {
	t.Helper()
	x.stop(t, syscall.SIGTERM)
}

// upgrade asks for slot 2 and gives the path of its entry.
func (x *box) upgrade(t *testing.T, body string) string {
	t.Helper()
	return upgradesPath + "/" + x.c.do(t, "POST", upgradePath, body).want(t, 200).is(t, "key", "2").str("body.upgrade_id")
}

// becomes waits until an upgrade has a status. In place of systemd it starts the root side for every request.
func (x *box) becomes(t *testing.T, upgrade, status string) reply {
	t.Helper()
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(5 * time.Millisecond) {
		if x.handover(t, "request.json") != nil {
			x.root(t)
		}
		r := x.c.do(t, "GET", upgrade, "").want(t, 200)
		if r.str("body.status") == status {
			return r
		}
		if time.Now().After(end) {
			t.Fatalf("it did not become %s: %s", status, r.raw)
		}
	}
}

// boot compares boot.json, and that the slots in it are whole.
func (x *box) boot(t *testing.T, current, next int) {
	t.Helper()
	if c, n := x.bootFile(t); c != current || n != next {
		t.Errorf("boot.json says %d, then %d; want %d, then %d", c, n, current, next)
	}
}

// bootFile is what boot.json says; 0 is unknown.
func (x *box) bootFile(t *testing.T) (current, next int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(x.state, "slots", "boot.json"))
	check(t, err)
	var b struct {
		Current     int `json:"current"`
		AfterReboot int `json:"after_reboot"`
	}
	check(t, json.Unmarshal(text, &b))
	return b.Current, b.AfterReboot
}

// version is what GET /api/info says.
func (x *box) version(t *testing.T) string {
	t.Helper()
	return x.c.do(t, "GET", "/api/info", "").want(t, 200).str("body.firmware_version")
}

// Items 36 and 37 of the acceptance list: what the vendor's script does, with one session.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	x := newBox(t, "", nil)
	x.user(t, "operator").do(t, "POST", upgradePath, `{"slot_id":2}`).fails(t, 403, "Unauthorized", "").is(t, "error.details.required_role", "admin")
	if v := x.version(t); v != "fw-7.0.5" {
		t.Errorf("it runs %q", v)
	}
	r := x.c.do(t, "POST", upgradePath, `{"slot_id":2,"message":null}`).want(t, 200).is(t, "key", "2", "meta.href", upgradePath, "meta.parent", "/api/firmware",
		"meta.slot", slotsPath+"/2")
	if s := r.str("body.test_summary"); !strings.HasPrefix(s, "Image digest: ok\n") {
		t.Errorf("summary %q", s)
	}
	upgrade := upgradesPath + "/" + r.str("body.upgrade_id")
	x.c.do(t, "GET", slotsPath, "").want(t, 200).is(t, "meta.current_slot", slotsPath+"/1", "meta.slot_after_reboot", slotsPath+"/2")
	if ran := x.ran(t); ran != "" {
		t.Errorf("before the root side was started %q ran", ran)
	}
	x.becomes(t, upgrade, "activated").is(t, "body.from_slot", 1, "body.from_version", "fw-7.0.5", "body.to_slot", 2, "body.to_version", "fw-7.4.0",
		"body.message", "", "body.reboot", "now", "body.rollback", false, "body.reason", nil, "body.requested_by", "admin", "body.end_time", nil)
	if ran := x.ran(t); ran != "activate 2 from 1\nreboot 2 from 1" {
		t.Errorf("ran %q", ran)
	}
	x.boot(t, 1, 2)
	x.c.do(t, "POST", upgradePath, `{"slot_id":2}`).fails(t, 409, "Conflict", "").is(t, "error.details.upgrade_status", "activated")
	for _, slot := range []string{"1", "2"} {
		x.c.do(t, "DELETE", slotsPath+"/"+slot, "").fails(t, 409, "Conflict", "")
	}
	x.restart(t, syscall.SIGKILL) // the agent alone
	x.c.do(t, "GET", upgrade, "").want(t, 200).is(t, "body.status", "activated")

	x.reboot(t, 2)
	x.boot(t, 1, 2) // until it has proved healthy
	x.becomes(t, upgrade, "confirmed").is(t, "body.reason", nil)
	if ran := x.ran(t); ran != "health 2 from 1\nconfirm 2 from 1" {
		t.Errorf("ran %q", ran)
	}
	x.boot(t, 2, 2)
	if v := x.version(t); v != "fw-7.4.0" {
		t.Errorf("it runs %q", v)
	}
	if body := x.stranger(t).do(t, "GET", "/api/info", "").want(t, 200).keys("body"); body["firmware_version"] != nil || len(body) != 4 {
		t.Errorf("a stranger sees %v", body)
	}
	x.c.do(t, "POST", upgradePath, `{"slot_id":2}`).fails(t, 409, "Conflict", "").is(t, "error.details.state", "current")
	x.c.do(t, "DELETE", slotsPath+"/2", "").fails(t, 409, "Conflict", "")
	viewer := x.user(t, "viewer")
	viewer.do(t, "GET", upgradesPath, "").want(t, 200).is(t, "items.0.meta.href", upgrade, "items.0.body.status", "confirmed", "items.1", nil)
	viewer.do(t, "GET", upgradesPath+"/none", "").fails(t, 404, "ResourceNotFound", "")
	viewer.do(t, "POST", rollbackPath, "").want(t, 403)

	// And back, though it is a downgrade.
	r = x.c.do(t, "POST", rollbackPath, `{"message":"it hums","reboot":"next"}`).want(t, 200).is(t, "body.status", "requested", "body.rollback", true, "body.to_slot", 1,
		"body.message", "it hums")
	upgrade = r.str("meta.href")
	x.becomes(t, upgrade, "activated")
	if ran := x.ran(t); ran != "activate 1 from 2" {
		t.Errorf("ran %q", ran)
	}
	x.reboot(t, 1)
	x.becomes(t, upgrade, "confirmed")
	x.boot(t, 1, 1)
	if v := x.version(t); v != "fw-7.0.5" {
		t.Errorf("it runs %q", v)
	}
}

// What upgrade refuses, it refuses before anything has changed.
func TestUpgradeRefused(t *testing.T) {
	t.Parallel()
	x := newBox(t, "[upgrade]\nrequire_commit_log = true\n", nil)
	x.boot(t, 1, 1)
	for _, bad := range []struct {
		body  string
		code  int
		kind  string
		field string
	}{
		{"", 400, "IncompleteRequestBodyError", "slot_id"},
		{`{"slot_id":2}`, 400, "IncompleteRequestBodyError", "message"},
		{`{"slot_id":2,"message":" "}`, 400, "IncompleteRequestBodyError", "message"},
		{`{"slot_id":2,"message":7}`, 400, "SemanticError", "message"},
		{`{"slot_id":2,"message":"` + strings.Repeat("x", 5000) + `"}`, 400, "SemanticError", "message"},
		{`{"slot_id":"two","message":"m"}`, 400, "SemanticError", "slot_id"},
		{`{"slot_id":2,"message":"m","reboot":"soon"}`, 400, "SemanticError", "reboot"},
		{`{"slot_id":3,"message":"m"}`, 404, "ResourceNotFound", ""},
		{`{"slot_id":99,"message":"m"}`, 404, "ResourceNotFound", ""},
		{`{"slot_id":1,"message":"m"}`, 409, "Conflict", ""},
	} {
		x.c.do(t, "POST", upgradePath, bad.body).fails(t, bad.code, bad.kind, bad.field)
	}
	x.c.do(t, "POST", rollbackPath, `{"message":"m"}`).fails(t, 409, "Conflict", "")
	damage(t, x.agent, 2)
	x.c.do(t, "POST", upgradePath, `{"slot_id":2,"message":"m"}`).fails(t, 400, "FirmwareTestFailed", "")
	x.c.do(t, "GET", upgradesPath, "").want(t, 200).is(t, "items", []any{})
	x.boot(t, 1, 1)
	if x.handover(t, "request.json") != nil {
		t.Error("the root side was asked")
	}
}

// Upgrades that do not end well: what is left is the slot before, and the reason.
func TestUpgradeFails(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		scripts map[string]string
		slot    int // that boots; 0: the box never gets there
		ran     string
		reason  string
		current int
	}{
		{"hook", map[string]string{"activate": "echo 'no space on /boot' >&2; exit 1"}, 0, "activate 2 from 1\nrollback 2 from 1", "hook activate: no space on /boot", 1},
		{"fallback", nil, 1, "activate 2 from 1\nreboot 2 from 1\nrollback 2 from 1", "The box booted slot 1 instead.", 1},
		{"unhealthy", map[string]string{"health": "echo 'no cluster' >&2; exit 1"}, 2, "activate 2 from 1\nreboot 2 from 1\nhealth 2 from 1\nrollback 2 from 1\nreboot 2 from 1",
			"the box was not healthy within 1s: hook health: no cluster", 2},
		{"no word of the slot", nil, 9, "activate 2 from 1\nreboot 2 from 1\nrollback 2 from 1", "the box does not say which slot it runs", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			x := newBox(t, "", tt.scripts)
			upgrade := x.upgrade(t, `{"slot_id":2}`)
			if tt.slot > 0 {
				x.becomes(t, upgrade, "activated")
				x.reboot(t, tt.slot%9)
			}
			r := x.becomes(t, upgrade, "failed")
			if got := r.str("body.reason"); got != tt.reason {
				t.Errorf("reason %q, want %q", got, tt.reason)
			}
			if ran := x.ran(t); ran != tt.ran {
				t.Errorf("ran %q, want %q", ran, tt.ran)
			}
			x.boot(t, tt.current, 1)
			if tt.current == 2 { // the root side has rebooted
				x.c.do(t, "DELETE", slotsPath+"/2", "").fails(t, 409, "Conflict", "")
				x.reboot(t, 1)
			}
			x.boot(t, 1, 1)
			x.c.do(t, "DELETE", slotsPath+"/1", "").fails(t, 409, "Conflict", "")
			x.hook(t, "activate", "")
			x.hook(t, "health", "")
			again := x.upgrade(t, `{"slot_id":2}`) // nothing is in the way
			x.becomes(t, again, "activated")
			x.reboot(t, 2)
			x.becomes(t, again, "confirmed")
			x.boot(t, 2, 2)
		})
	}
}

// Before the reboot an upgrade is taken back; if that fails, the slot stays protected and it can be tried again.
func TestTakeBack(t *testing.T) {
	t.Parallel()
	x := newBox(t, "", nil)
	upgrade := x.upgrade(t, `{"slot_id":2,"reboot":"none"}`) // the root side has not run yet
	x.c.do(t, "POST", rollbackPath, `{"message":"not now"}`).want(t, 200).is(t, "meta.href", upgrade, "body.status", "reverting")
	x.c.do(t, "POST", rollbackPath, "").fails(t, 409, "Conflict", "").is(t, "error.details.upgrade_status", "reverting")
	x.boot(t, 1, 2)
	x.becomes(t, upgrade, "failed").is(t, "body.reason", "It was taken back by admin: not now")
	if ran := x.ran(t); ran != "rollback 2 from 1" {
		t.Errorf("ran %q", ran)
	}
	x.boot(t, 1, 1)

	x.hook(t, "rollback", "echo busy >&2; exit 1")
	upgrade = x.upgrade(t, `{"slot_id":2,"reboot":"next"}`)
	x.becomes(t, upgrade, "activated")
	x.c.do(t, "POST", rollbackPath, "").want(t, 200)
	x.becomes(t, upgrade, "activated").is(t, "body.reason", "It was taken back by admin. It could not be taken back: hook rollback: busy")
	x.boot(t, 1, 2)
	x.hook(t, "rollback", "")
	x.c.do(t, "POST", rollbackPath, "").want(t, 200)
	x.becomes(t, upgrade, "failed")
	x.boot(t, 1, 1)
	x.c.do(t, "DELETE", slotsPath+"/2", "").want(t, 200)
}

// On a box that does not say which slot it runs, the hook current does; the first upgrade comes from the unknown.
func TestUpgradeWithoutCmdline(t *testing.T) {
	t.Parallel()
	b, config := newBoots(t, nil)
	b.hook(t, "current", "echo 2")
	a := startAgent(t, config)
	x := &box{a, b, a.loginAdmin(t)}
	for range 2 {
		x.c.awaitStatus(t, x.c.fetch(t, serveSmall(t), small.SHA256()), "finished")
	}
	upgrade := x.upgrade(t, `{"slot_id":"2"}`)
	x.becomes(t, upgrade, "activated").is(t, "body.from_slot", nil, "body.from_version", nil)
	x.boot(t, 0, 2)
	x.reboot(t, 0)
	x.becomes(t, upgrade, "confirmed")
	x.boot(t, 2, 2)
	if ran := x.ran(t); ran != "activate 2 from \nreboot 2 from \ncurrent 2 from \nhealth 2 from \nconfirm 2 from" {
		t.Errorf("ran %q", ran)
	}
}

// Many want something of the same slots at the same time: one upgrade is accepted, its slot stays, and so does the order of
// the world.
func TestUpgradeRaces(t *testing.T) {
	t.Parallel()
	x := newBox(t, "[slots]\ncount = 4\n[fetch]\nworkers = 2\n", nil)
	img := fetchtest.NewImage(other+2, 300_000)
	x.c.awaitStatus(t, x.c.fetch(t, fetchtest.NewHTTP(t, nil).Handle("/fw-8.0.0.iso", fetchtest.Whole(img).Serve), img.SHA256()), "finished")
	_, slow := serveStalling(t, small)
	running := x.c.fetch(t, slow, small.SHA256())
	x.c.awaitPhase(t, running, "downloading")
	for round := range 5 {
		var mu sync.Mutex
		codes := map[string][]int{}
		var g sync.WaitGroup
		try := func(method, path, body string) {
			g.Go(func() {
				c := *x.c
				r := c.do(t, method, path, body)
				mu.Lock()
				defer mu.Unlock()
				codes[method+path+body] = append(codes[method+path+body], r.code)
			})
		}
		for range 3 {
			try("POST", upgradePath, `{"slot_id":2,"reboot":"none"}`)
			try("POST", upgradePath, `{"slot_id":3,"reboot":"none"}`)
			try("POST", testPath, `{"slot_id":3}`)
		}
		try("DELETE", slotsPath+"/2", "")
		g.Wait()
		accepted := 0
		for what, list := range codes {
			for _, code := range list {
				if code == 200 && strings.HasPrefix(what, "POST"+upgradePath) {
					accepted++
				}
				if code != 200 && code != 409 && code != 404 {
					t.Errorf("%s: %d", what, code)
				}
			}
		}
		list := x.c.do(t, "GET", upgradesPath, "").want(t, 200)
		current, next := x.bootFile(t)
		if live := list.get("items.0.body.end_time") == nil && list.get("items.0") != nil; accepted > 1 || live != (accepted == 1) || current != 1 ||
			live && fmt.Sprint(list.get("items.0.body.to_slot")) != fmt.Sprint(next) || !live && next != 1 {
			t.Fatalf("round %d: %d accepted, %v, boot.json %d and %d: %s", round, accepted, codes, current, next, list.raw)
		}
		x.c.do(t, "POST", testPath, fmt.Sprintf(`{"slot_id":%d}`, next)).want(t, 200) // whole
		if accepted == 1 {
			x.c.do(t, "POST", rollbackPath, "").want(t, 200)
			x.becomes(t, list.str("items.0.meta.href"), "failed")
		}
		if x.c.do(t, "GET", slotsPath+"/2", "").want(t, 200).str("body.version") == "" {
			two := fetchtest.NewImage(other+1, 300_000)
			x.c.awaitStatus(t, x.c.fetch(t, fetchtest.NewHTTP(t, nil).Handle("/fw-7.4.0.iso", fetchtest.Whole(two).Serve), two.SHA256(), "slot_id", 2), "finished")
		}
	}
	x.c.do(t, "GET", running, "").want(t, 200).is(t, "body.status", "in-progress") // nobody minded it
}
