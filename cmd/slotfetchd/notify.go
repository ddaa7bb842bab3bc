package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
)

// notifier tells systemd how the agent is; without systemd it is silent.
type notifier struct {
	log  *slog.Logger
	send func(state string)
	// every is the time between two signs of life that systemd waits for; 0: it does not.
	every time.Duration
}

func newNotifier(log *slog.Logger) *notifier {
	n := &notifier{log: log}
	n.send = func(state string) {
		if _, err := systemd.SdNotify(false, state); err != nil {
			log.Warn("cannot notify systemd", "err", err)
		}
	}
	every, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("cannot understand systemd's watchdog", "err", err)
	}
	n.every = every
	return n
}

// watchdog gives a sign of life twice in each interval, but only while health has no complaint: systemd restarts an
// agent that goes on without being able to work.
func (n *notifier) watchdog(ctx context.Context, health func(context.Context) error) {
	if n.every == 0 {
		return
	}
	tick := time.NewTicker(n.every / 2)
	defer tick.Stop()
	for {
		if err := health(ctx); err == nil {
			n.send(systemd.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			n.log.Error("no sign of life to the watchdog", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// status keeps the line in "systemctl status" true.
func (n *notifier) status(ctx context.Context, fetches interface {
	Running() int
	Changed() <-chan struct{}
}) {
	last := ""
	for {
		changed := fetches.Changed()
		text := "STATUS=Idle"
		if k := fetches.Running(); k == 1 {
			text = "STATUS=1 fetch is running"
		} else if k > 1 {
			text = fmt.Sprintf("STATUS=%d fetches are running", k)
		}
		if text != last {
			n.send(text)
			last = text
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// reloading runs f between the messages that systemd expects around a reload.
func (n *notifier) reloading(f func()) {
	n.send(systemd.SdNotifyReloading + "\n" + systemd.SdNotifyMonotonicUsec())
	f()
	n.send(systemd.SdNotifyReady)
}
