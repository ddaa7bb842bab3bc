package main_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfetch/fetch/fetchtest"
)

// A log that nobody reads stops neither the API nor the end of the agent, and says what was lost when it is read again.
func TestLogThatHangs(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c := a.stranger(t)
	unread := func(f func()) { // does f while nobody reads, and pipe and backlog are full
		a.log.mu.Lock()
		defer a.log.mu.Unlock()
		for range 1500 {
			c.do(t, "GET", "/api/setup", "").want(t, 200)
		}
		f()
	}
	unread(func() {})
	for end := time.Now().Add(fetchtest.Patience); !strings.Contains(a.log.String(), "log records were dropped"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing about the records that were dropped")
		}
	}
	unread(func() {
		check(t, a.cmd.Process.Signal(syscall.SIGTERM))
		gone := make(chan error, 1)
		go func() {
			gone <- unix.Waitid(unix.P_PID, a.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		}()
		check(t, fetchtest.Await(t, "the end of the agent", gone))
	})
}
