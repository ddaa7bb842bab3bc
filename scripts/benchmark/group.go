package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// group is a memory control group, of version 1 or 2. A nil group limits nothing.
type group struct{ dir, limitFile string }

const (
	groups = "/sys/fs/cgroup"
	v1, v2 = "memory.limit_in_bytes", "memory.max"
)

// newGroup makes a group. Its error tells why there cannot be one.
func newGroup(name string) (*group, error) {
	g := &group{dir: filepath.Join(groups, "memory"), limitFile: v1}
	if on, err := os.ReadFile(filepath.Join(groups, "cgroup.subtree_control")); err == nil {
		if !slices.Contains(strings.Fields(string(on)), "memory") {
			return nil, errors.New("the memory controller is not enabled")
		}
		g = &group{dir: groups, limitFile: v2}
	}
	g.dir = filepath.Join(g.dir, fmt.Sprintf("slotfetch-bench-%d-%s", os.Getpid(), name))
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return nil, err
	}
	return g, nil
}

func (g *group) version() string {
	if g.limitFile == v2 {
		return "cgroup v2"
	}
	return "cgroup v1"
}

// limit bounds what the group's processes and their page cache may take; 0: no bound.
func (g *group) limit(bytes int64) error {
	text := strconv.FormatInt(bytes, 10)
	if bytes == 0 {
		text = map[bool]string{true: "max", false: "-1"}[g.limitFile == v2]
	}
	return os.WriteFile(filepath.Join(g.dir, g.limitFile), []byte(text), 0o644)
}

// command is a program that runs in the group from its first instruction on.
func (g *group) command(program string, args ...string) *exec.Cmd {
	if g == nil {
		return exec.Command(program, args...)
	}
	enter := []string{"-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(g.dir, "cgroup.procs"), program}
	return exec.Command("sh", append(enter, args...)...)
}

// remove waits for the group's last process.
func (g *group) remove() error {
	if g == nil {
		return nil
	}
	var err error
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(pause) {
		if err = os.Remove(g.dir); err == nil {
			return nil
		}
	}
	return err
}
