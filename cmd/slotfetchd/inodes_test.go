package main_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// mountFewInodes mounts an ext4 of 64 MiB that holds a hundred files or so, until the test is over.
func mountFewInodes(t *testing.T, dir string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ext4")
	check(t, os.WriteFile(file, nil, 0o600))
	check(t, os.Truncate(file, 64<<20))
	if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", "-N", "128", file).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED %s: cannot make an ext4: %v %s", t.Name(), err, out)
	}
	check(t, os.MkdirAll(dir, 0o700))
	ext4.mounted(t, file, dir)
}

// takeInodes makes empty files below dir until it can hold no further one, and gives them back.
func takeInodes(t *testing.T, dir string) (free func()) {
	t.Helper()
	var st unix.Statfs_t
	check(t, unix.Statfs(dir, &st))
	own := filepath.Join(dir, "filler")
	check(t, os.Mkdir(own, 0o700))
	for n := 0; ; n++ {
		err := os.WriteFile(filepath.Join(own, fmt.Sprint(n)), nil, 0o600)
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
		check(t, err)
	}
	if check(t, unix.Statfs(dir, &st)); st.Ffree != 0 || st.Bavail*uint64(st.Bsize) < 16<<20 {
		t.Fatalf("%d inodes and %d blocks of %d are free", st.Ffree, st.Bavail, st.Bsize)
	}
	return func() { check(t, os.RemoveAll(own)) }
}

// TestNoInodes leaves the slots' file system no inode, and much space: fetches and uploads fail and say which of the two
// it is, nothing stays behind, and what has an inode comes to its end.
func TestNoInodes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mountFewInodes(t, dir)
	a := startAgent(t, fmt.Sprintf("[slots]\ndir = %q\nreserve = 0\n[fetch]\nworkers = 2\n", dir))
	c := a.loginAdmin(t)
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished").is(t, "body.slot_id", 1)
	server, slow := serveStalling(t, small)
	running := c.fetch(t, slow, small.SHA256())
	x := server.Next(t)
	c.awaitPhase(t, running, "downloading")

	free := takeInodes(t, dir)
	const says, helps = "no inode left", "mkfs.ext4 -N"
	failed := func(job string) {
		t.Helper()
		r := c.awaitStatus(t, job, "failed").is(t, "body.error_details.code", "inodes", "body.error_details.class", "human")
		if e := r.str("body.error"); !strings.Contains(e, says) || !strings.Contains(e, helps) {
			t.Errorf("error %q", e)
		}
	}
	failed(c.fetch(t, serveSmall(t), small.SHA256()))
	x.Release()
	failed(running) // there is no inode for its manifest
	if left := partialsIn(t, dir); left != nil {
		t.Errorf("left behind: %v", left)
	}
	u := c.send(t, "", fmt.Sprintf("Content-Type: application/octet-stream\r\nContent-Length: %d", small.Size()))
	u.write(t, string(small.Bytes()))
	r := u.answer(t, false).fails(t, 507, "InsufficientStorage", "")
	if e := r.str("error.message"); !strings.Contains(e, says) || !strings.Contains(e, helps) {
		t.Errorf("error %q", e)
	}
	c.do(t, "GET", slotsPath+"/1", "").want(t, 200).is(t, "body.sha256", small.SHA256())
	holdsIn(t, dir, 1, small)

	a.restart(t, syscall.SIGTERM) // which makes no file there
	failed(c.fetch(t, serveSmall(t), small.SHA256()))
	c.do(t, "DELETE", slotsPath+"/1", "").want(t, 200) // one remedy: its inodes
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished").is(t, "body.slot_id", 1)
	free()
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished").is(t, "body.slot_id", 2)
	holdsIn(t, dir, 2, small)
}

// TestNoInodesForState leaves the state directory no inode, and the slots theirs: the agent needs none while it runs,
// and none after a kill. A start after an orderly end needs two, for the database's log, and says so without them.
func TestNoInodesForState(t *testing.T) {
	t.Parallel()
	slots := t.TempDir()
	a := newAgent(t, fmt.Sprintf("[slots]\ndir = %q\nreserve = 0\n", slots))
	mountFewInodes(t, a.state)
	a.first(t)
	c := a.loginAdmin(t)
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished")
	free := takeInodes(t, a.state)
	good := func(slot int) {
		t.Helper()
		c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished").is(t, "body.slot_id", slot)
		holdsIn(t, slots, slot, small)
	}
	good(2)
	a.loginAdmin(t)
	a.restart(t, syscall.SIGKILL)
	good(3)
	c.do(t, "DELETE", slotsPath+"/3", "").want(t, 200)
	a.stop(t, syscall.SIGTERM)
	free()
	free = takeInodes(t, a.state) // those of the log too
	code, said := a.refuse(t)
	if code != 1 || !strings.Contains(said, "inode") {
		t.Errorf("code %d, said %s", code, said)
	}
	free()
	a.start(t)
	good(3)
}
