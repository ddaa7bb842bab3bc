package main_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// fileSystem is a kind of file system that is made in a file, for the agent's state to be on.
type fileSystem struct {
	kind      string
	megabytes int64 // small, because each state after a power cut is a copy; not less than mkfs takes
	mkfs      string
	options   string // of mount
	repair    string // what a box does before it mounts; empty if the mount does all
}

var (
	// Of itself ext4 writes a file before it is renamed over another one; here nothing is flushed that was not asked for.
	ext4 = fileSystem{"ext4", 40, "mkfs.ext4 -q -m 0 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0",
		"noatime,commit=1,noauto_da_alloc,errors=remount-ro", "e2fsck -p"}
	btrfs = fileSystem{"btrfs", 128, "mkfs.btrfs -q -M", "noatime,commit=1,noflushoncommit", ""}
	// The states of a disk have one UUID, and a mount may end later than umount does.
	xfs = fileSystem{"xfs", 320, "mkfs.xfs -q", "noatime,nouuid", ""}
)

// with makes a file system that holds a copy of dir, or skips the test where that is not possible.
func (fs fileSystem) with(t *testing.T, dir string) []byte {
	t.Helper()
	file := filepath.Join(memory(t), fs.kind)
	check(t, os.WriteFile(file, nil, 0o600))
	check(t, os.Truncate(file, fs.megabytes<<20))
	mkfs := append(strings.Fields(fs.mkfs), file)
	if out, err := exec.Command(mkfs[0], mkfs[1:]...).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED %s: cannot make a file system: %s: %v %s", t.Name(), fs.mkfs, err, out)
	}
	root := t.TempDir()
	unmount := fs.mounted(t, file, root)
	if out, err := exec.Command("cp", "-a", dir+"/.", root).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v %s", err, out)
	}
	unmount()
	image, err := os.ReadFile(file)
	check(t, err)
	check(t, os.Remove(file))
	return image
}

// mounted is mount, or skips the test where that is not possible.
func (fs fileSystem) mounted(t *testing.T, file, dir string) (unmount func()) {
	t.Helper()
	unmount, err := fs.mount(t, file, dir)
	if err != nil {
		t.Skipf("SKIPPED %s: %v", t.Name(), err)
	}
	return unmount
}

// recover mounts what a power cut has left, as a box does when it boots.
func (fs fileSystem) recover(t *testing.T, file, dir string) (unmount func(), err error) {
	t.Helper()
	if fs.repair != "" {
		repair := append(strings.Fields(fs.repair), file)
		if out, err := exec.Command(repair[0], repair[1:]...).CombinedOutput(); err != nil {
			t.Logf("%s: %v %s", fs.repair, err, out) // it may only have had to do something; the mount tells
		}
	}
	return fs.mount(t, file, dir)
}

// mount mounts the file system in a file until the test is over. The file must be a new one: mount(8) takes a loop device
// again that is still bound to the same file, with what it has of it in memory.
func (fs fileSystem) mount(t *testing.T, file, dir string) (unmount func(), err error) {
	t.Helper()
	if out, err := exec.Command("mount", "-t", fs.kind, "-o", "loop,"+fs.options, file, dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cannot mount: %w: %s", err, bytes.TrimSpace(out))
	}
	unmount = sync.OnceFunc(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
			_ = exec.Command("umount", "-l", dir).Run() // at least nothing stays behind
		}
	})
	t.Cleanup(unmount)
	return unmount, nil
}
