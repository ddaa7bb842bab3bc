package auth

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
)

// Dummy is compared with the passwords of unknown users.
const Dummy = dummy

// Seen is the number of sessions whose last use is in memory.
func (a *Auth) Seen() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.seen)
}

// CountFailures counts from now on the logins whose password was compared and found wrong. Call it before the first.
func (a *Auth) CountFailures() *atomic.Int64 {
	c := &counter{message: "login failed"}
	a.cfg.Log = slog.New(c)
	return &c.n
}

// CountBlocks counts from now on the blocks that are logged. Call it before the first.
func (a *Auth) CountBlocks() *atomic.Int64 {
	c := &counter{message: "too many failed logins"}
	a.cfg.Log = slog.New(c)
	return &c.n
}

// TakeTurn keeps every password from being checked until release.
func (a *Auth) TakeTurn() (release func()) {
	a.turn <- struct{}{}
	return func() { <-a.turn }
}

type counter struct {
	message string // what the records that count begin with
	n       atomic.Int64
}

func (*counter) Enabled(context.Context, slog.Level) bool { return true }

func (c *counter) Handle(_ context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, c.message) {
		c.n.Add(1)
	}
	return nil
}

func (c *counter) WithAttrs([]slog.Attr) slog.Handler { return c }

func (c *counter) WithGroup(string) slog.Handler { return c }

// FillThrottle counts n failures, of names that end in user and from addresses of one provider, and returns what
// remembers them.
func FillThrottle(n int, user string) any {
	t := newThrottle(time.Now)
	for i := range n {
		t.failed(fmt.Sprint(i)+user, fmt.Sprintf("2001:db8:1:%x::1", i))
	}
	return t
}
