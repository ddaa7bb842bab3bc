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

	"slotfetch/fetch/fetchtest"
)

// onFileSystems runs test on an ext4 of its own in a file, and on a tmpfs: both are mounted at dir.
func onFileSystems(t *testing.T, megabytes int, test func(t *testing.T, mount func(dir string))) {
	t.Helper()
	for _, kind := range []string{"ext4", "tmpfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			test(t, func(dir string) { mount(t, kind, dir, megabytes) })
		})
	}
}

// mount mounts a new file system until the test is over, or skips the test where that is not possible.
func mount(t *testing.T, kind, dir string, megabytes int) {
	t.Helper()
	check(t, os.MkdirAll(dir, 0o700))
	args := []string{"-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", megabytes), "none", dir}
	if kind == "ext4" {
		image := filepath.Join(t.TempDir(), "ext4")
		check(t, os.WriteFile(image, nil, 0o600))
		check(t, os.Truncate(image, int64(megabytes)<<20))
		if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard", image).CombinedOutput(); err != nil {
			t.Skipf("cannot make an ext4: %v %s", err, out)
		}
		args = []string{"-o", "loop", image, dir}
	}
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Skipf("cannot mount: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
			_ = exec.Command("umount", "-l", dir).Run() // at least nothing stays behind
		}
	})
}

// fill takes all the space below dir, as another program would, and gives it back.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	var names []string
	chunk := make([]byte, 1<<20)
	for n, size := range []int{1 << 20, 4096, 1} { // what is left of a block too
		names = append(names, filepath.Join(dir, fmt.Sprint("filler", n)))
		f, err := os.Create(names[n])
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
		check(t, err)
		for err == nil {
			_, err = f.Write(chunk[:size])
		}
		if serr := f.Sync(); !errors.Is(err, syscall.ENOSPC) || serr != nil && !errors.Is(serr, syscall.ENOSPC) {
			t.Fatalf("cannot fill the disk: %v, %v", err, serr)
		}
		f.Close()
	}
	return func() {
		for _, name := range names {
			if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
	}
}

// stalling serves an image that stops in the middle, with or without saying how long it is.
func stalling(t *testing.T, img *fetchtest.Image, after int64, chunked bool) (*fetchtest.HTTP, string) {
	t.Helper()
	f := fetchtest.Whole(img)
	f.Fault, f.After, f.Chunked = fetchtest.Stall, after, chunked
	s := fetchtest.NewHTTP(t, nil)
	return s, s.Handle("/big.iso", f.Serve)
}

// TestFullDisk fetches what does not fit: before the first byte where the length is known, in the middle where it is
// not or where somebody else takes the space. Nothing stays behind, and what fits is fetched after as before.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	onFileSystems(t, 64, func(t *testing.T, mount func(string)) {
		dir := t.TempDir()
		mount(dir)
		a := startAgent(t, fmt.Sprintf("[slots]\ndir = %q\nreserve = 0\n", dir))
		c := a.loginAdmin(t)
		fits := func(slot int) {
			t.Helper()
			c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished").is(t, "body.slot_id", slot)
		}
		full := func(job string, says ...string) {
			t.Helper()
			e := c.awaitStatus(t, job, "failed").str("body.error")
			for _, want := range append(says, "DELETE /api/firmware/slots") {
				if !strings.Contains(e, want) {
					t.Errorf("error %q does not have %q", e, want)
				}
			}
			if left := partialsIn(t, dir); left != nil {
				t.Errorf("left behind: %v", left)
			}
			for slot := 1; c.do(t, "GET", fmt.Sprint(slotsPath, "/", slot), "").str("body.sha256") != ""; slot++ {
				holdsIn(t, dir, slot, small)
			}
		}
		fits(1)
		huge := fetchtest.NewImage(70, 100<<20)
		s := fetchtest.NewHTTP(t, nil)
		full(c.fetch(t, s.Handle("/huge.iso", fetchtest.Whole(huge).Serve), huge.SHA256()), "Not enough space: needs 104857600 bytes")
		fits(2)
		endless := fetchtest.Whole(huge)
		endless.Chunked = true
		full(c.fetch(t, s.Handle("/endless.iso", endless.Serve), huge.SHA256()), "Not enough space: needs ")
		fits(3)

		big := fetchtest.NewImage(71, 20<<20)
		for _, chunked := range []bool{true, false} {
			server, url := stalling(t, big, 6<<20, chunked)
			job := c.fetch(t, url, big.SHA256())
			x := server.Next(t)
			c.await(t, job, "going", func(r reply) bool { return r.get("body.bytes_downloaded") == float64(6<<20) })
			free := fill(t, dir)
			x.Release()
			// With a known length its blocks are set aside, and only those of the manifest are missing.
			full(job, map[bool]string{true: "Not enough space: needs ", false: "space"}[chunked])
			free()
		}
		fits(4)
	})
}

func partialsIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, ".part"))
	check(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func holdsIn(t *testing.T, dir string, slot int, img *fetchtest.Image) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(slot), "image"))
	check(t, err)
	if string(text) != string(img.Bytes()) {
		t.Errorf("slot %d holds something else", slot)
	}
}

// TestFullStateDirectory leaves no byte for the database: what was accepted stays, new orders are refused with 507,
// nothing is an internal error, the agent can be restarted, and all goes on when there is space again.
func TestFullStateDirectory(t *testing.T) {
	t.Parallel()
	onFileSystems(t, 40, func(t *testing.T, mount func(string)) {
		a := newAgent(t, "[slots]\nreserve = 0\n")
		mount(a.state)
		a.start(t)
		t.Cleanup(func() { a.stop(t, syscall.SIGTERM) })
		a.newPassword(t)
		c := a.loginAdmin(t)
		done := c.fetch(t, serveSmall(t), small.SHA256())
		c.awaitStatus(t, done, "finished")
		server, slow := serveStalling(t, small)
		running := c.fetch(t, slow, small.SHA256())
		server.Next(t)
		c.awaitPhase(t, running, "downloading")
		accepted := []string{done, running, c.fetch(t, serveSmall(t), small.SHA256())}

		free := fill(t, a.state)
		refused := 0
		for range 50 {
			r := c.do(t, "POST", fetches, order(serveSmall(t), small.SHA256()))
			if r.code == 202 { // into what the log had set aside
				accepted = append(accepted, r.str("meta.href"))
				continue
			}
			r.fails(t, 507, "InsufficientStorage", "")
			if refused++; refused == 3 {
				break
			}
		}
		if refused < 3 {
			t.Fatal("the disk is not full")
		}
		c.do(t, "GET", fetches, "").want(t, 200)
		c.do(t, "GET", slotsPath, "").want(t, 200)
		queued := "finished"
		for _, r := range []reply{ // both are small: they may still fit
			c.do(t, "DELETE", accepted[2], ""),
			a.stranger(t).do(t, "GET", "/api/authentication", "", "Authorization", basic("admin", a.admin)),
		} {
			if r.code != 200 {
				r.fails(t, 507, "InsufficientStorage", "")
			} else if s := r.str("body.status"); s != "" {
				queued = s
			}
		}
		a.restart(t, syscall.SIGKILL) // also without a byte
		c.do(t, "GET", running, "").want(t, 200)
		if list := c.do(t, "GET", fetches, "").want(t, 200); len(list.get("items").([]any)) != len(accepted) {
			t.Errorf("%d fetches accepted, listed: %s", len(accepted), list.raw)
		}
		c.do(t, "DELETE", slotsPath+"/1", "").want(t, 200) // how an admin makes room
		free()
		server.Next(t).Release()
		for _, job := range accepted[1:] {
			c.await(t, job, "an end", func(r reply) bool { return r.get("body.end_time") != nil })
		}
		c.awaitStatus(t, running, "finished")
		c.awaitStatus(t, accepted[2], queued)
		c.do(t, "DELETE", slotsPath+"/1", "").want(t, 200)
		c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished")
	})
}

// TestReadOnlySlots makes the slots directory read-only in several ways while the agent runs, and before it starts.
func TestReadOnlySlots(t *testing.T) {
	t.Parallel()
	const says = "The slots directory cannot be written"
	for _, tt := range []struct {
		name   string
		freeze func(t *testing.T, dir string) (thaw func())
		slots  bool // the whole file system, or only where a fetch writes
	}{
		{"partials", func(t *testing.T, dir string) func() { return immutable(t, filepath.Join(dir, ".part")) }, false},
		{"slots", func(t *testing.T, dir string) func() { return immutable(t, dir) }, false},
		{"file system", func(t *testing.T, dir string) func() {
			remount := func(how string) {
				t.Helper()
				if out, err := exec.Command("mount", "-o", "remount,"+how, dir).CombinedOutput(); err != nil {
					t.Fatalf("remount: %v %s", err, out)
				}
			}
			remount("ro")
			return func() { remount("rw") }
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			mount(t, "ext4", dir, 32)
			a := startAgent(t, fmt.Sprintf("[slots]\ndir = %q\nreserve = 0\n", dir))
			c := a.loginAdmin(t)
			c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished")
			thaw := tt.freeze(t, dir)
			if e := c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "failed").str("body.error"); !strings.Contains(e, says) {
				t.Errorf("error %q", e)
			}
			c.do(t, "GET", slotsPath+"/1", "").want(t, 200).is(t, "body.sha256", small.SHA256())
			holdsIn(t, dir, 1, small)
			if tt.slots {
				c.do(t, "DELETE", slotsPath+"/1", "").fails(t, 503, "ServiceUnavailable", "")
			}
			thaw()
			if left := partialsIn(t, dir); left != nil {
				t.Errorf("left behind: %v", left)
			}
			c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished").is(t, "body.slot_id", 2)

			a.stop(t, syscall.SIGTERM)
			thaw = tt.freeze(t, dir)
			a.start(t)
			c.do(t, "GET", slotsPath, "").want(t, 200).is(t, "body.number_of_empty_slots", 3)
			if e := c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "failed").str("body.error"); !strings.Contains(e, says) {
				t.Errorf("error %q", e)
			}
			thaw()
			c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished").is(t, "body.slot_id", 3)
		})
	}
}
