package main_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

// raceRounds is SLOTFETCH_ROUNDS; [race] takes 16 to let each caller win.
func raceRounds(t *testing.T) int { return max(16, setting(t, "SLOTFETCH_ROUNDS", 16)) }

// race has two callers at the same time. By turns each of them is ahead by a little, and at last by so much that it wins.
func race(round int, a, b func()) {
	if round%2 == 1 {
		a, b = b, a
	}
	var g sync.WaitGroup
	g.Go(a)
	if lead := round / 2 % 8; lead < 7 {
		time.Sleep(time.Duration(lead) * 500 * time.Microsecond) // the instant is the test
	} else {
		g.Wait()
	}
	g.Go(b)
	g.Wait()
}

// fill fetches an image into a slot.
func (x *box) fill(t *testing.T, url string, img *fetchtest.Image, slot int) {
	t.Helper()
	x.c.awaitStatus(t, x.c.fetch(t, url, img.SHA256(), "slot_id", slot), "finished")
}

// takeBack ends the upgrade that a caller was answered with, before any reboot.
func (x *box) takeBack(t *testing.T, upgrade string) {
	t.Helper()
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(time.Millisecond) {
		r := x.c.do(t, "POST", rollbackPath, "")
		if r.code == 200 {
			r.is(t, "meta.href", upgrade)
			break
		}
		if time.Now().After(end) { // it is not known to the agent at once that the answer has gone out
			r.want(t, 200)
		}
	}
	x.becomes(t, upgrade, "failed")
}

// idle wants no upgrade under way.
func (x *box) idle(t *testing.T) {
	t.Helper()
	if r := x.c.do(t, "GET", upgradesPath, "").want(t, 200); r.get("items.0") != nil && r.get("items.0.body.end_time") == nil {
		t.Errorf("under way: %s", r.raw)
	}
}

// content is what is in a slot: its digest, or empty.
func (x *box) content(t *testing.T, slot int) string {
	t.Helper()
	return x.c.do(t, "GET", fmt.Sprint(slotsPath, "/", slot), "").want(t, 200).str("body.sha256")
}

// TestDeleteAgainstUpgrade: either the slot is gone and nothing is under way, or it stays and boots next.
func TestDeleteAgainstUpgrade(t *testing.T) {
	t.Parallel()
	x := newBox(t, "", nil)
	img := fetchtest.NewImage(other+1, 300_000)
	url := fetchtest.NewHTTP(t, nil).Handle("/fw-7.4.0.iso", fetchtest.Whole(img).Serve)
	won := map[string]int{}
	for round := range raceRounds(t) {
		var up, del reply
		race(round, func() { up = x.c.do(t, "POST", upgradePath, `{"slot_id":2,"reboot":"none"}`) },
			func() { del = x.c.do(t, "DELETE", slotsPath+"/2", "") })
		switch {
		case up.code == 200 && del.code == 409:
			won["upgrade"]++
			x.boot(t, 1, 2)
			if got := x.content(t, 2); got != img.SHA256() {
				t.Errorf("slot 2 holds %q", got)
			}
			x.takeBack(t, upgradesPath+"/"+up.str("body.upgrade_id"))
		case up.code == 404 && del.code == 200:
			won["delete"]++
			x.idle(t)
			if got := x.content(t, 2); got != "" {
				t.Errorf("slot 2 holds %q", got)
			}
			x.fill(t, url, img, 2)
		default:
			t.Fatalf("round %d: %d %s, %d %s", round, up.code, up.raw, del.code, del.raw)
		}
		x.boot(t, 1, 1)
	}
	t.Logf("won: %v", won)
	if won["upgrade"] == 0 || won["delete"] == 0 {
		t.Error("one of them never wins")
	}
}

// TestTwoUpgrades: of two that are asked for at the same time one is under way, and boot.json has its slot.
func TestTwoUpgrades(t *testing.T) {
	t.Parallel()
	x := newBox(t, "", nil)
	img := fetchtest.NewImage(other+2, 300_000)
	x.fill(t, fetchtest.NewHTTP(t, nil).Handle("/fw-8.0.0.iso", fetchtest.Whole(img).Serve), img, 3)
	won := map[int]int{}
	for round := range raceRounds(t) {
		slots := [2]int{2, 3}
		if round%16 > 3 && round%16 < 8 {
			slots[1] = 2 // the same twice
		}
		var r [2]reply
		ask := func(i int) func() {
			return func() {
				r[i] = x.c.do(t, "POST", upgradePath, fmt.Sprintf(`{"slot_id":%d,"reboot":"none"}`, slots[i]))
			}
		}
		race(round, ask(0), ask(1))
		i := 0
		if r[1].code == 200 {
			i = 1
		}
		if r[i].code != 200 || r[1-i].code != 409 {
			t.Fatalf("round %d: %d %s, %d %s", round, r[0].code, r[0].raw, r[1].code, r[1].raw)
		}
		won[slots[i]]++
		upgrade := upgradesPath + "/" + r[i].str("body.upgrade_id")
		x.boot(t, 1, slots[i])
		x.c.do(t, "GET", upgradesPath, "").want(t, 200).is(t, "items.0.meta.href", upgrade, "items.0.body.end_time", nil, "items.0.body.to_slot", slots[i])
		x.takeBack(t, upgrade)
		x.idle(t)
		x.boot(t, 1, 1)
	}
	t.Logf("won: %v", won)
	if won[2] == 0 || won[3] == 0 {
		t.Error("one of them never wins")
	}
}

// TestUpgradeAgainstScrub: neither keeps the other from its work, and both say the same of a good and of a bad image.
func TestUpgradeAgainstScrub(t *testing.T) {
	t.Parallel()
	x := newBox(t, "[slots]\nscrub_interval = \"\"\n", nil)
	for round := range raceRounds(t) {
		bad := round%16 > 5 && round%16 < 10
		if bad {
			x.rot(t, 2)
		}
		var up, scrub reply
		race(round, func() { up = x.c.do(t, "POST", upgradePath, `{"slot_id":2,"reboot":"none"}`) },
			func() { scrub = x.c.do(t, "POST", slotsPath+"/2/verify", "") })
		scrub.want(t, 200)
		if bad {
			up.fails(t, 400, "FirmwareTestFailed", "")
			scrub.is(t, "body.state", "degraded")
			x.idle(t)
			x.rot(t, 2) // back
			x.c.do(t, "POST", slotsPath+"/2/verify", "").want(t, 200).is(t, "body.state", "not-iso")
		} else {
			up.want(t, 200)
			scrub.is(t, "body.state", "not-iso")
			x.boot(t, 1, 2)
			x.takeBack(t, upgradesPath+"/"+up.str("body.upgrade_id"))
		}
		x.boot(t, 1, 1)
	}
}

// A scrubber that never rests is in nobody's way.
func TestUpgradeUnderScrub(t *testing.T) {
	t.Parallel()
	x := newBox(t, "[slots]\nscrub_interval = \"1ms\"\nscrub_rate = 0\n", nil)
	for _, step := range []struct {
		path string
		slot int
	}{{upgradePath, 2}, {rollbackPath, 1}, {upgradePath, 2}} {
		before := x.c.do(t, "GET", slotsPath+"/2", "").str("body.scrubbed_at")
		body := fmt.Sprintf(`{"slot_id":%d,"reboot":"next"}`, step.slot)
		x.c.do(t, "POST", step.path, body).want(t, 200)
		upgrade := x.c.do(t, "GET", upgradesPath, "").want(t, 200).str("items.0.meta.href")
		x.becomes(t, upgrade, "activated")
		x.reboot(t, step.slot)
		x.becomes(t, upgrade, "confirmed")
		x.boot(t, step.slot, step.slot)
		for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(5 * time.Millisecond) {
			r := x.c.do(t, "GET", slotsPath+"/2", "").want(t, 200).is(t, "body.state", "not-iso")
			if at := r.str("body.scrubbed_at"); at != "" && at != before {
				break
			}
			if time.Now().After(end) {
				t.Fatal("nobody scrubs")
			}
		}
	}
}

// TestRollbackAgainstDelete: either the slot before is gone and the box stays where it is, or it stays and boots next.
func TestRollbackAgainstDelete(t *testing.T) {
	t.Parallel()
	x := newBox(t, "", nil)
	upgrade := x.upgrade(t, `{"slot_id":2,"reboot":"next"}`)
	x.becomes(t, upgrade, "activated")
	x.reboot(t, 2)
	x.becomes(t, upgrade, "confirmed")
	img := fetchtest.NewImage(other, 300_000)
	url := fetchtest.NewHTTP(t, nil).Handle("/fw-7.0.5.iso", fetchtest.Whole(img).Serve)
	won := map[string]int{}
	for round := range raceRounds(t) {
		var back, del reply
		race(round, func() { back = x.c.do(t, "POST", rollbackPath, `{"reboot":"none"}`) },
			func() { del = x.c.do(t, "DELETE", slotsPath+"/1", "") })
		switch {
		case back.code == 200 && del.code == 409:
			won["rollback"]++
			x.boot(t, 2, 1)
			if got := x.content(t, 1); got != img.SHA256() {
				t.Errorf("slot 1 holds %q", got)
			}
			x.takeBack(t, back.str("meta.href"))
		case (back.code == 409 || back.code == 404) && del.code == 200:
			won["delete"]++
			x.idle(t)
			x.fill(t, url, img, 1)
		default:
			t.Fatalf("round %d: %d %s, %d %s", round, back.code, back.raw, del.code, del.raw)
		}
		x.boot(t, 2, 2)
	}
	t.Logf("won: %v", won)
	if won["rollback"] == 0 || won["delete"] == 0 {
		t.Error("one of them never wins")
	}
}

// TestPinAgainstEvict: what was pinned stays, and what was evicted was not pinned.
func TestPinAgainstEvict(t *testing.T) {
	t.Parallel()
	x := newBox(t, "[slots]\ncount = 2\nevict = \"oldest\"\n", nil)
	source := fetchtest.NewHTTP(t, nil)
	var images [2]*fetchtest.Image
	var urls [2]string
	for i := range images {
		images[i] = fetchtest.NewImage(uint64(other+1+i), 300_000)
		urls[i] = source.Handle(fmt.Sprintf("/fw-8.0.%d.iso", i), fetchtest.Whole(images[i]).Serve)
	}
	here := 0 // is in slot 2; images[0] is the one of newBox
	won := map[string]int{}
	for round := range raceRounds(t) {
		next := 1 - here
		var pin, fetched reply
		race(round, func() { pin = x.c.do(t, "PATCH", slotsPath+"/2", `{"pinned":true}`) }, func() {
			job := x.c.fetch(t, urls[next], images[next].SHA256())
			fetched = x.c.await(t, job, "its end", func(r reply) bool { return r.get("body.end_time") != nil })
		})
		slot := x.c.do(t, "GET", slotsPath+"/2", "").want(t, 200)
		status, evicted := fetched.str("body.status"), slot.str("body.sha256") == images[next].SHA256()
		switch {
		case pin.code == 200 && pin.str("body.sha256") == images[here].SHA256() && status == "failed" && !evicted:
			won["pin"]++
			fetched.is(t, "body.error_details.code", "no_slot")
			slot.is(t, "body.sha256", images[here].SHA256(), "body.pinned", true)
		case pin.code == 200 && pin.str("body.sha256") == images[next].SHA256() && status == "finished" && evicted:
			won["evict"]++
			slot.is(t, "body.pinned", true) // the new one
		case pin.code == 404 && status == "finished" && evicted:
			won["evict"]++
			slot.is(t, "body.pinned", false)
		default:
			t.Fatalf("round %d: %d %s, %s, %s", round, pin.code, pin.raw, fetched.raw, slot.raw)
		}
		if evicted {
			here = next
		}
		x.c.do(t, "PATCH", slotsPath+"/2", `{"pinned":false}`).want(t, 200)
	}
	t.Logf("won: %v", won)
	if won["pin"] == 0 || won["evict"] == 0 {
		t.Error("one of them never wins")
	}
}
