package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

// No sign of life while there is a complaint, and again when it is gone.
func TestWatchdogFollowsHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var signs atomic.Int32
		n := &notifier{log: slog.New(slog.NewTextHandler(&log, nil)), send: func(string) { signs.Add(1) }, every: time.Minute}
		var ill atomic.Bool
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go n.watchdog(ctx, func(context.Context) error {
			if ill.Load() {
				return errors.New("the disk is on fire")
			}
			return nil
		})
		// step lets five minutes pass, which is ten ticks, and gives the signs of life in them.
		step := func() int32 {
			before := signs.Load()
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			return signs.Load() - before
		}
		time.Sleep(time.Second)
		if got := step(); got != 10 {
			t.Errorf("healthy: %d signs", got)
		}
		ill.Store(true)
		if got := step(); got != 0 {
			t.Errorf("with a complaint: %d signs", got)
		}
		if !strings.Contains(log.String(), "on fire") {
			t.Errorf("the log does not say why: %s", log.String())
		}
		ill.Store(false)
		if got := step(); got != 10 {
			t.Errorf("healthy again: %d signs", got)
		}
	})
}

func TestJournalHandler(t *testing.T) {
	t.Parallel()
	type entry struct {
		message  string
		priority journal.Priority
		fields   map[string]string
	}
	var got []entry
	var broken error
	var text bytes.Buffer
	log := slog.New(newJournalHandler(func(m string, p journal.Priority, f map[string]string) error {
		if broken != nil {
			return broken
		}
		got = append(got, entry{m, p, f})
		return nil
	}, slog.NewTextHandler(&text, nil)))
	with := log.With("key", "k-1")
	with.Warn("attempt failed", "url", "http://h/a b", "err", errors.New("a\nb"), "request_id", 7)
	log.Info("agent stopping")
	log.Error("panic in a handler", "naïve-key", true)
	log.Debug("nobody asked")
	want := []entry{
		{`attempt failed key=k-1 url="http://h/a b" err="a\nb" request_id=7`, journal.PriWarning,
			map[string]string{"SLOTFETCH_KEY": "k-1", "SLOTFETCH_URL": "http://h/a b", "SLOTFETCH_ERR": "a\nb", "SLOTFETCH_REQUEST_ID": "7"}},
		{"agent stopping", journal.PriInfo, map[string]string{}},
		{"panic in a handler naïve-key=true", journal.PriErr, map[string]string{"SLOTFETCH_NA_VE_KEY": "true"}},
	}
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i := range want {
		if got[i].message != want[i].message || got[i].priority != want[i].priority || !maps.Equal(got[i].fields, want[i].fields) {
			t.Errorf("entry %d is %+v, want %+v", i, got[i], want[i])
		}
	}
	broken = errors.New("no journal")
	with.Info("still heard", "n", 1)
	if s := text.String(); !strings.Contains(s, `msg="still heard" key=k-1 n=1`) {
		t.Errorf("without a journal: %q", s)
	}
}
