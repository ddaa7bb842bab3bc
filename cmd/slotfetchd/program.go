package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode"
)

const (
	// hookGrace is for what a hook has left behind and that holds its output open.
	hookGrace = 5 * time.Second
	hookTail  = 8 << 10 // bytes of the output that are kept
	lineMax   = 300     // characters of a reason
)

// environment is all that a program of the vendor is told.
type environment []string

func newEnvironment() environment {
	return environment{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C"}
}

// set adds one variable.
func (e *environment) set(name, value string) { *e = append(*e, "SLOTFETCH_"+name+"="+value) }

// program is one of the vendor's programs. It runs in / and in a process group of its own.
type program struct {
	path  string
	env   environment
	limit time.Duration
	tidy  bool // when it ends, so does what it has left in its group
}

// run runs the program; at the limit, and when ctx ends, its group is killed. The error is the last line that it wrote to
// stderr, or why it was killed or not run.
func (p program) run(ctx context.Context) (stdout, stderr tail, err error) {
	ctx, stop := context.WithTimeoutCause(ctx, p.limit, fmt.Errorf("it took longer than %s", p.limit))
	defer stop()
	cmd := exec.CommandContext(ctx, p.path)
	cmd.Dir, cmd.Env = "/", p.env
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = kill
	cmd.WaitDelay = hookGrace
	err = cmd.Run()
	if p.tidy && cmd.Process != nil {
		_ = kill() // mostly there is nobody left
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it has done its work, and left something running
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	} else if line := stderr.lastLine(); err != nil && line != "" {
		err = errors.New(line)
	}
	return stdout, stderr, err
}

// tail keeps the end of what is written to it.
type tail struct{ text []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if n := len(t.text) - hookTail; n > 0 {
		t.text = append(t.text[:0], t.text[n:]...)
	}
	return len(p), nil
}

// lastLine is the last line with something in it, fit for a sentence.
func (t *tail) lastLine() string {
	text := strings.TrimSpace(strings.ToValidUTF8(string(t.text), ""))
	line := text[strings.LastIndexByte(text, '\n')+1:]
	line = strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return -1
		}
		return c
	}, line)
	if r := []rune(line); len(r) > lineMax {
		line = string(r[:lineMax]) + "…"
	}
	return line
}
