package fetch_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/store"
)

// acting does something at each record with the message.
type acting struct {
	slog.Handler
	message string
	act     func()
}

func (h *acting) Enabled(context.Context, slog.Level) bool { return true }

func (h *acting) Handle(_ context.Context, r slog.Record) error {
	if r.Message == h.message {
		h.act()
	}
	return nil
}

func (h *acting) WithAttrs([]slog.Attr) slog.Handler { return h }

// TestCancelWhileFailing has a failure that the database does not take, and a cancel before it is tried again: the row
// must not stay in progress with nobody working on it.
func TestCancelWhileFailing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var b *box
	var key string
	var unlock func()
	began := make(chan struct{})
	h := &acting{message: "cannot record that the fetch is failed"}
	h.act = func() {
		unlock()
		if out, _, err := b.store.Delete(key, admin); out != store.CancelRequested || err != nil {
			t.Errorf("delete: %v, %v", out, err)
		}
	}
	b = newBox(t, dir, func(c *fetch.Config) {
		h.Handler = c.Log.Handler()
		c.Log = slog.New(h)
	})
	key = b.enqueue(fetchtest.NewHTTP(t, nil).Handle("/a.iso", func(x *fetchtest.Exchange) {
		<-began
		unlock = locked(t, dir)
		fetchtest.Status(404)(x)
	}), strings.Repeat("0", 64))
	close(began)
	if f := b.until(key, final); f.Status != store.Cancelled {
		t.Errorf("got %+v", f)
	}
}
