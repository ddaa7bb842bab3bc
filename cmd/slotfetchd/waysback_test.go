package main_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

// This file is about the slot that a box goes back to: whatever goes wrong, nobody can empty it.

func (x *box) keeps(t *testing.T, slots ...string) {
	t.Helper()
	for _, slot := range slots {
		x.c.do(t, "DELETE", slotsPath+"/"+slot, "").fails(t, 409, "Conflict", "").is(t, "error.details.state", "protected")
	}
}

// TestPickedByHand: somebody picked another slot in the boot loader's menu, whose default is still the first.
func TestPickedByHand(t *testing.T) {
	t.Parallel()
	x := newBox(t, "", nil)
	x.reboot(t, 2)
	x.boot(t, 2, 1)
	x.keeps(t, "1", "2")
	img := fetchtest.NewImage(90, 300_000)
	x.c.awaitStatus(t, x.c.fetch(t, fetchtest.NewHTTP(t, nil).Handle("/third.iso", fetchtest.Whole(img).Serve), img.SHA256()), "finished")
	x.c.do(t, "POST", upgradePath, `{"slot_id":3}`).fails(t, 409, "Conflict", "").is(t, "error.details.state", "reboot-pending", "error.details.next_slot_id", 1)
	x.reboot(t, 1)
	x.boot(t, 1, 1)
	x.becomes(t, upgradesPath+"/"+x.c.do(t, "POST", upgradePath, `{"slot_id":3}`).want(t, 200).str("body.upgrade_id"), "activated")
}

// TestBootFileRemoved: our messages advise it, and it must not cost the slot that runs.
func TestBootFileRemoved(t *testing.T) {
	t.Parallel()
	x := newBox(t, "", nil)
	check(t, os.Remove(filepath.Join(x.state, "slots", "boot.json")))
	x.keeps(t, "1")
	x.becomes(t, x.upgrade(t, `{"slot_id":2}`), "activated").is(t, "body.from_slot", 1)
	if ran := x.ran(t); ran != "activate 2 from 1\nreboot 2 from 1" {
		t.Errorf("ran %q", ran)
	}
	x.keeps(t, "1", "2")
}

// TestRefilled: a rollback leads to the image that ran before, and not to what has come into its slot since.
func TestRefilled(t *testing.T) {
	t.Parallel()
	x := newBox(t, "", nil)
	upgrade := x.upgrade(t, `{"slot_id":2}`)
	x.becomes(t, upgrade, "activated")
	x.reboot(t, 2)
	x.becomes(t, upgrade, "confirmed")
	x.c.do(t, "DELETE", slotsPath+"/1", "").want(t, 200)
	img := fetchtest.NewImage(91, 300_000)
	url := fetchtest.NewHTTP(t, nil).Handle("/other.iso", fetchtest.Whole(img).Serve)
	x.c.awaitStatus(t, x.c.fetch(t, url, img.SHA256(), "slot_id", 1), "finished")
	x.c.do(t, "POST", rollbackPath, "").fails(t, 409, "Conflict", "").is(t, "error.details.slot_id", 1)
}

// TestHalfActivated: the boot loader may boot the slot, though the hook failed, and could not be told otherwise.
func TestHalfActivated(t *testing.T) {
	t.Parallel()
	x := newBox(t, "", map[string]string{"activate": "echo no >&2; exit 1", "rollback": "echo nor back >&2; exit 1"})
	upgrade := x.upgrade(t, `{"slot_id":2}`)
	r := x.becomes(t, upgrade, "activated")
	if reason := r.str("body.reason"); !strings.Contains(reason, "nor could it be taken back") {
		t.Error(reason)
	}
	x.keeps(t, "1", "2")
	x.hook(t, "rollback", "")
	x.c.do(t, "POST", rollbackPath, "").want(t, 200)
	x.becomes(t, upgrade, "failed")
	x.boot(t, 1, 1)
}

// TestUnhealthyAndStuck: the box goes down though the boot loader could not be told, for it boots a new slot only once.
func TestUnhealthyAndStuck(t *testing.T) {
	t.Parallel()
	x := newBox(t, "", map[string]string{"health": "exit 1", "rollback": "exit 1"})
	upgrade := x.upgrade(t, `{"slot_id":2}`)
	x.becomes(t, upgrade, "activated")
	x.reboot(t, 2)
	x.ran(t)
	x.becomes(t, upgrade, "failed")
	if ran := x.ran(t); !strings.HasSuffix(ran, "rollback 2 from 1\nreboot 2 from 1") {
		t.Errorf("ran %q", ran)
	}
	x.boot(t, 2, 1)
	x.keeps(t, "1", "2")
}

// TestUntoldByTheKernel: only the vendor's hook knows which slot runs.
func TestUntoldByTheKernel(t *testing.T) {
	t.Parallel()
	x := newBox(t, "", map[string]string{"health": "exit 1"})
	upgrade := x.upgrade(t, `{"slot_id":2,"reboot":"none"}`)
	x.becomes(t, upgrade, "activated")
	x.hook(t, "current", "echo 2")
	x.reboot(t, 0)
	x.becomes(t, upgrade, "failed")
	x.boot(t, 2, 1)
	x.keeps(t, "1", "2")
}

// TestFirmwareBefore: a newer agent has migrated the database, and its firmware did not stay.
func TestFirmwareBefore(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	done := c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished").str("meta.href")
	a.run(t, "", "db", "backup", a.database()+".schema8") // as the newer one makes it before
	a.stop(t, 15)
	raw, err := sql.Open("sqlite3", "file:"+a.database())
	check(t, err)
	_, err = raw.Exec("PRAGMA user_version = 1000")
	check(t, err)
	check(t, raw.Close())
	a.start(t)
	c = a.loginAdmin(t)
	c.do(t, "GET", done, "").want(t, 200).is(t, "body.status", "finished")
	if _, err := os.Stat(a.database() + ".newer-1"); err != nil {
		t.Error(err)
	}
}

// TestRootSideOfBrokenConfiguration: systemd starts it again at once, which must not be all the time.
func TestRootSideOfBrokenConfiguration(t *testing.T) {
	t.Parallel()
	a := newAgent(t, "[slots]\ncount = \"many\"\n")
	begun := time.Now()
	if out, ok := a.root(t); ok {
		t.Errorf("%s", out)
	}
	if took := time.Since(begun); took < 2*time.Second {
		t.Errorf("it ended after %s", took)
	}
}
