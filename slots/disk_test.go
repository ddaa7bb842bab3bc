package slots_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"slotfetch/slots"
)

func TestLock(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	_, err := slots.Open(slots.Config{Dir: dir, First: 1, Count: 5})
	wantErr(t, err, slots.ErrLocked)
	must(t, s.Close())
	openIn(t, dir)
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	fill(t, s, 1, ptr(1), []byte("one"))
	fill(t, s, 2, ptr(2), []byte("two"))
	must(t, s.SetBoot(ptr(2), nil))
	must(t, s.Close())
	for _, n := range []string{"1", "2"} {
		must(t, os.Rename(filepath.Join(dir, n, "manifest.json"), filepath.Join(dir, n, "manifest.json.tmp")))
	}
	for range 2 { // recovery run twice gives the same disk
		s = openIn(t, dir)
		if exists(imageOf(dir, 1)) || exists(filepath.Join(dir, "1", "manifest.json.tmp")) {
			t.Error("not swept")
		}
		// Never take away what the box boots, even if nobody promised it.
		if sl, err := s.Get(2); err != nil || !sl.Damaged || !sl.Current || !exists(imageOf(dir, 2)) {
			t.Errorf("current slot: %+v, %v", sl, err)
		}
		must(t, s.Close())
	}
}

// TestReadOnly opens a directory that cannot be written: what is there can be read, nothing can be changed, and as soon as
// it can be written all works, the sweep of what a crash left included.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	fill(t, s, 1, nil, []byte("one"))
	fill(t, s, 2, nil, []byte("two"))
	must(t, s.Close())
	must(t, os.Remove(filepath.Join(dir, "2", "manifest.json")))
	mount := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("mount", append(args, dir)...).CombinedOutput(); err != nil {
			t.Skipf("cannot mount here: %v %s", err, out)
		}
	}
	mount("--bind", dir)
	defer func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	}()
	for _, bare := range []bool{false, true} { // with and without what an earlier Open made
		if bare {
			must(t, errors.Join(os.Remove(filepath.Join(dir, ".lock")), os.Remove(filepath.Join(dir, ".part"))))
		}
		mount("-o", "remount,bind,ro")
		s = openIn(t, dir)
		if sl, err := s.Get(1); err != nil || sl.Manifest == nil || !s.Valid(1) {
			t.Errorf("slot 1 is %+v, %v", sl, err)
		}
		list, err := s.List()
		if err != nil || len(list) != 5 {
			t.Errorf("%d slots, %v", len(list), err)
		}
		if _, err := s.Free(); err != nil {
			t.Error(err)
		}
		if keys, err := s.Partials(); err != nil || len(keys) > 0 {
			t.Errorf("partials %v, %v", keys, err)
		}
		must(t, s.RemovePartial(key(3)))
		_, err = s.Reserve(key(3), nil, 0)
		_, perr := s.Preview(nil)
		for what, err := range map[string]error{"reserve": err, "preview": perr, "delete": s.Delete(1), "boot": s.SetBoot(ptr(1), nil)} {
			if !slots.ReadOnly(err) {
				t.Errorf("%s: %v", what, err)
			}
		}
		mount("-o", "remount,bind,rw")
		if bare {
			must(t, s.Delete(2))
		}
		if id := fill(t, s, 3, nil, []byte("three")); id != 2 {
			t.Errorf("slot %d", id)
		}
		_, err = slots.Open(slots.Config{Dir: dir, First: 1, Count: 5})
		wantErr(t, err, slots.ErrLocked)
		must(t, s.Close())
	}
}

func TestDamaged(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"no image": func(dir string) error { return os.Remove(imageOf(dir, 1)) },
		"short":    func(dir string) error { return os.Truncate(imageOf(dir, 1), 1) },
		"garbage": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "1", "manifest.json"), []byte("{"), 0o600)
		},
		"link": func(dir string) error {
			if err := os.Rename(filepath.Join(dir, "1"), filepath.Join(dir, "9")); err != nil {
				return err
			}
			return os.Symlink("9", filepath.Join(dir, "1"))
		},
		"image link": func(dir string) error {
			if err := os.Rename(imageOf(dir, 1), filepath.Join(dir, "elsewhere")); err != nil {
				return err
			}
			return os.Symlink("../elsewhere", imageOf(dir, 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openIn(t, dir)
			fill(t, s, 1, nil, []byte("one"))
			must(t, s.Close())
			for _, name := range []string{"image", "manifest.json"} { // read-only, and we may not be root
				must(t, os.Chmod(filepath.Join(dir, "1", name), 0o600))
			}
			must(t, damage(dir))
			s = openIn(t, dir)
			sl, err := s.Get(1)
			if err != nil || !sl.Damaged || sl.Manifest != nil || s.Valid(1) {
				t.Fatalf("slot %+v, %v", sl, err)
			}
			if _, ok := s.FindKey(key(1)); ok {
				t.Error("found a damaged slot by key")
			}
			_, err = s.Reserve(key(2), ptr(1), 0)
			wantErr(t, err, slots.ErrOccupied)
			must(t, s.Delete(1))
			if id := fill(t, s, 3, nil, []byte("new")); id != 1 {
				t.Errorf("slot %d", id)
			}
			if name == "link" && !exists(imageOf(dir, 9)) {
				t.Error("deleted through the link")
			}
		})
	}
}

func TestDeleteAndBoot(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	if cur, next, err := s.Boot(); cur != nil || next != nil || err != nil {
		t.Errorf("boot %v %v %v", cur, next, err)
	}
	for i := 1; i <= 3; i++ {
		fill(t, s, i, nil, []byte("image"))
	}
	must(t, s.SetBoot(ptr(1), ptr(2)))
	wantErr(t, s.SetBoot(ptr(9), nil), slots.ErrUnknown)
	wantErr(t, s.SetBoot(nil, ptr(0)), slots.ErrUnknown)
	wantErr(t, s.Delete(1), slots.ErrProtected)
	wantErr(t, s.Delete(2), slots.ErrProtected)
	wantErr(t, s.Delete(5), slots.ErrEmpty)
	wantErr(t, s.Delete(6), slots.ErrUnknown)
	must(t, s.Delete(3))
	if exists(imageOf(dir, 3)) {
		t.Error("image is still there")
	}
	wantErr(t, s.Delete(3), slots.ErrEmpty)
	list, err := s.List()
	if err != nil || !list[0].Current || list[0].AfterReboot || !list[1].AfterReboot || list[1].Current {
		t.Errorf("list %+v, %v", list, err)
	}
	// A hook writes the file behind our back.
	must(t, os.WriteFile(filepath.Join(dir, "boot.json"), []byte(`{"current":2,"hook":"x"}`), 0o600))
	if cur, next, err := s.Boot(); err != nil || *cur != 2 || *next != 2 {
		t.Errorf("boot %v %v %v", cur, next, err)
	}
	must(t, s.Delete(1))
	must(t, os.WriteFile(filepath.Join(dir, "boot.json"), []byte(`{"cur`), 0o600))
	if s.Delete(2) == nil || !s.Valid(2) {
		t.Error("deleted without knowing what boots")
	}
	_, err = s.Get(6)
	wantErr(t, err, slots.ErrUnknown)
}

func TestNothingThroughLinks(t *testing.T) {
	for _, name := range []string{".part", ".lock"} {
		dir := t.TempDir()
		must(t, os.Symlink("target", filepath.Join(dir, name)))
		if name == ".part" {
			must(t, os.Mkdir(filepath.Join(dir, "target"), 0o700))
		}
		if s, err := slots.Open(slots.Config{Dir: dir, First: 1, Count: 5}); err == nil {
			must(t, s.Close())
			t.Errorf("opened through link %s", name)
		}
		if name == ".lock" && exists(filepath.Join(dir, "target")) {
			t.Error("made a file through a link")
		}
	}
	dir := t.TempDir()
	s := openIn(t, dir)
	victim := filepath.Join(dir, "victim")
	must(t, os.WriteFile(victim, []byte("precious"), 0o600))
	must(t, os.Symlink("../victim", filepath.Join(dir, ".part", key(1)+".partial")))
	for _, off := range []int64{0, 3} {
		if _, err := s.Reserve(key(1), nil, off); err == nil {
			t.Error("opened a partial through a link")
		}
	}
	must(t, s.RemovePartial(key(1)))
	must(t, os.Symlink("victim", filepath.Join(dir, "boot.json.tmp")))
	must(t, s.SetBoot(ptr(1), nil))
	w := reserve(t, s, key(2), ptr(2), 0)
	must(t, os.Symlink(".", filepath.Join(dir, "2")))
	if _, err := w.Commit(slots.Manifest{SHA256: sum(nil)}); err == nil || exists(filepath.Join(dir, "image")) {
		t.Error("committed through a link")
	}
	must(t, w.Abort())
	if got, _ := os.ReadFile(victim); string(got) != "precious" {
		t.Errorf("victim has %q", got)
	}
}

func TestBuffers(t *testing.T) {
	bufs, release, err := slots.Buffers(4)
	must(t, err)
	if len(bufs) != 4 || len(bufs[3]) != slots.BufferSize || cap(bufs[0]) != slots.BufferSize {
		t.Error("wrong shape")
	}
	bufs[3][slots.BufferSize-1] = 1
	must(t, release())
	must(t, release())
	if _, _, err := slots.Buffers(0); err == nil {
		t.Error("took 0")
	}
}

func TestAbortAfterHalfACommit(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	w := reserve(t, s, key(1), nil, 0)
	put(t, w, []byte("x"))
	block := filepath.Join(dir, "1", "manifest.json.tmp", "x") // the manifest cannot be written
	must(t, os.MkdirAll(block, 0o700))
	if _, err := w.Commit(slots.Manifest{SHA256: sum([]byte("x"))}); err == nil || !exists(imageOf(dir, 1)) {
		t.Fatalf("did not fail after the rename: %v", err)
	}
	if sl, err := s.Get(1); err != nil || sl.Manifest != nil || sl.Damaged || !sl.Reserved {
		t.Errorf("slot %+v, %v", sl, err)
	}
	must(t, os.RemoveAll(filepath.Dir(block)))
	must(t, w.Abort())
	if exists(imageOf(dir, 1)) {
		t.Error("image is left")
	}
	if id := fill(t, s, 2, nil, []byte("y")); id != 1 {
		t.Errorf("slot %d", id)
	}
}

// TestReserveBoot has current and next slots that are empty: no fetch may land there.
func TestReserveBoot(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	must(t, s.SetBoot(ptr(1), ptr(3)))
	for _, id := range []int{1, 3} {
		_, err := s.Reserve(key(1), ptr(id), 0)
		wantErr(t, err, slots.ErrProtected)
	}
	for i, want := range []int{2, 4, 5} {
		if id := fill(t, s, i, nil, []byte("x")); id != want {
			t.Errorf("slot %d, want %d", id, want)
		}
	}
	_, err := s.Reserve(key(9), nil, 0)
	wantErr(t, err, slots.ErrNoEmpty)
}

// TestBootUnreadable has a boot.json that is garbage: slots are shown all the same, and nothing is filled or deleted.
func TestBootUnreadable(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	s := openIn(t, dir, func(c *slots.Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	fill(t, s, 1, nil, []byte("one"))
	must(t, s.SetBoot(ptr(1), nil))
	for range 2 { // it is logged each time that it begins
		must(t, os.WriteFile(filepath.Join(dir, "boot.json"), []byte("{"), 0o600))
		for range 2 {
			list, err := s.List()
			if err != nil || len(list) != 5 || list[0].Manifest == nil || list[0].Current || list[0].AfterReboot {
				t.Errorf("list %+v, %v", list, err)
			}
			if sl, err := s.Get(1); err != nil || sl.Manifest == nil || sl.Current {
				t.Errorf("slot %+v, %v", sl, err)
			}
		}
		_, err := s.Reserve(key(2), nil, 0)
		wantErr(t, err, slots.ErrBoot)
		_, err = s.Reserve(key(2), ptr(2), 0)
		wantErr(t, err, slots.ErrBoot)
		wantErr(t, s.Delete(1), slots.ErrBoot)
		must(t, os.Remove(filepath.Join(dir, "boot.json")))
		if _, err := s.List(); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(log.String(), "cannot tell which slot boots"); n != 4 { // message and error in each
		t.Errorf("logged %d times:\n%s", n, log.String())
	}
	must(t, s.Delete(1))
}

// TestRestartLeavesNoDescriptor has a Restart that makes the new file and cannot sync the directory.
func TestRestartLeavesNoDescriptor(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	w := reserve(t, s, key(1), nil, 0)
	// Writing names and not reading the directory is enough to make a file, and not to sync. Root may read it all the same,
	// unless its thread gives that up.
	part := filepath.Join(dir, ".part")
	must(t, os.Chmod(part, 0o333))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	root := os.Getuid() == 0
	if root {
		must(t, unix.Setfsuid(65534))
	}
	err := w.Restart()
	if root {
		must(t, unix.Setfsuid(0))
	}
	must(t, os.Chmod(part, 0o700))
	if !slots.ReadOnly(err) {
		t.Fatalf("restart: %v", err)
	}
	must(t, w.Abort())
	open, err := filepath.Glob("/proc/self/fd/*")
	must(t, err)
	for _, fd := range open {
		if target, _ := os.Readlink(fd); strings.Contains(target, key(1)) {
			t.Errorf("%s is still open: %s", fd, target)
		}
	}
}
