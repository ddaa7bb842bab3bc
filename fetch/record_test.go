package fetch_test

import (
	"context"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// TestCancelWithPartialLeft cancels a fetch whose partial cannot be removed: it is cancelled only once that is gone.
func TestCancelWithPartialLeft(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(66, 4<<20)
	stall := fetchtest.Whole(img)
	stall.Fault, stall.After = fetchtest.Stall, 1<<20
	dir := t.TempDir()
	b := newBox(t, dir, func(c *fetch.Config) { c.CancelWait = 10 * time.Millisecond })
	key := b.enqueue(fetchtest.NewHTTP(t, nil).Handle("/a.iso", stall.Serve), img.SHA256())
	b.arrives(key, 1<<20)
	part := filepath.Join(dir, "slots", ".part")
	if out, err := exec.Command("chattr", "+i", part).CombinedOutput(); err != nil {
		t.Skipf("cannot make a directory immutable here: %v %s", err, out)
	}
	thaw := func() { _ = exec.Command("chattr", "-i", part).Run() }
	defer thaw()
	for range 2 {
		if out, f, err := b.fetch.Delete(context.Background(), key, admin); out != store.CancelRequested || f.Status != store.InProgress || err != nil {
			t.Errorf("delete: %v, %s, %v", out, f.Status, err)
		}
	}
	if p, err := b.slots.Partials(); err != nil || len(p) != 1 {
		t.Fatalf("partials: %v, %v", p, err)
	}
	thaw()
	if f := b.until(key, final); f.Status != store.Cancelled {
		t.Errorf("got %+v", f)
	}
	b.noPartials()
	if w, err := b.slots.Reserve(otherKey, nil, 0); err != nil || w.Slot() != 1 {
		t.Errorf("the slot is not free: %v", err)
	} else if err := w.Abort(); err != nil {
		t.Error(err)
	}
}

// TestStopWithPartialLeft stops the agent while a partial cannot be removed: the cancel is completed at the next start.
func TestStopWithPartialLeft(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(67, 4<<20)
	stall := fetchtest.Whole(img)
	stall.Fault, stall.After = fetchtest.Stall, 1<<20
	dir := t.TempDir()
	b := newBox(t, dir, func(c *fetch.Config) { c.CancelWait = 10 * time.Millisecond })
	key := b.enqueue(fetchtest.NewHTTP(t, nil).Handle("/a.iso", stall.Serve), img.SHA256())
	b.arrives(key, 1<<20)
	part := filepath.Join(dir, "slots", ".part")
	if out, err := exec.Command("chattr", "+i", part).CombinedOutput(); err != nil {
		t.Skipf("cannot make a directory immutable here: %v %s", err, out)
	}
	thaw := func() { _ = exec.Command("chattr", "-i", part).Run() }
	defer thaw()
	if _, _, err := b.fetch.Delete(context.Background(), key, admin); err != nil {
		t.Error(err)
	}
	b.close()
	thaw()
	b = newBox(t, dir, nil)
	if f := b.get(key); f.Status != store.Cancelled {
		t.Errorf("got %+v", f)
	}
	b.noPartials()
}

// TestPrunedUnderWaiter prunes a cancelled fetch before the DELETE that waits for the cancel looks: it still tells of
// the fetch.
func TestPrunedUnderWaiter(t *testing.T) {
	img := fetchtest.NewImage(68, 4<<20)
	stall := fetchtest.Whole(img)
	stall.Fault, stall.After = fetchtest.Stall, 1<<20
	var b *box
	var key string
	h := &acting{message: "fetch cancelled"} // in the row; who waits is not woken yet
	h.act = func() {
		if out, _, err := b.store.Delete(key, admin); out != store.Pruned || err != nil {
			t.Errorf("prune: %v, %v", out, err)
		}
	}
	b = newBox(t, t.TempDir(), func(c *fetch.Config) {
		h.Handler = c.Log.Handler()
		c.Log = slog.New(h)
	})
	key = b.enqueue(fetchtest.NewHTTP(t, nil).Handle("/a.iso", stall.Serve), img.SHA256())
	b.arrives(key, 1<<20)
	out, f, err := b.fetch.Delete(context.Background(), key, admin)
	if out != store.CancelRequested || err != nil || f.Key != key || f.URL == "" || f.Status != store.Cancelled || f.EndTime.IsZero() || f.BytesDownloaded < 1<<20 {
		t.Errorf("delete: %v, %+v, %v", out, f, err)
	}
}
