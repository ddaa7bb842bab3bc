package fetch_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
	"slotfetch/slots"
	"slotfetch/store"
)

var admin = store.Actor{Name: "admin", Address: "test"}

// box is a state directory with everything open on it.
type box struct {
	t     testing.TB
	dir   string
	store *store.Store
	slots *slots.Slots
	fetch *fetch.Manager
}

// newBox opens a box; change may adapt the configuration.
func newBox(t testing.TB, dir string, change func(*fetch.Config)) *box {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	b := &box{t: t, dir: dir}
	var err error
	if b.store, err = store.Open(filepath.Join(dir, "slotfetch.db"), store.Options{}); err != nil {
		t.Fatal(err)
	}
	if b.slots, err = slots.Open(slots.Config{Dir: filepath.Join(dir, "slots"), First: 1, Count: 5, Log: log}); err != nil {
		t.Fatal(err)
	}
	client, err := source.New(source.Config{Egress: fetchtest.Loopback()})
	if err != nil {
		t.Fatal(err)
	}
	cfg := fetch.Config{Store: b.store, Slots: b.slots, Source: client, SealKey: make([]byte, fetch.SealKeySize), Log: log,
		Retry: fetch.Retry{Rounds: 3, Initial: time.Millisecond, Max: 5 * time.Millisecond}}
	if change != nil {
		change(&cfg)
	}
	if b.fetch, err = fetch.Open(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.close)
	return b
}

func (b *box) close() {
	if b.fetch == nil {
		return
	}
	err := errors.Join(b.fetch.Close(), b.slots.Close(), b.store.Close())
	b.fetch = nil
	if err != nil {
		b.t.Error(err)
	}
}

func (b *box) enqueue(raw, sha256 string) string {
	b.t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		b.t.Fatal(err)
	}
	f, err := b.fetch.Enqueue(fetch.Request{URL: u, SHA256: sha256, Force: true}, admin)
	if err != nil {
		b.t.Fatal(err)
	}
	return f.Key
}

// until waits for the fetch to be as done says.
func (b *box) until(key string, done func(store.Fetch) bool) store.Fetch {
	b.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), fetchtest.Patience)
	defer stop()
	f, err := b.fetch.Wait(ctx, key, done)
	if err != nil {
		b.t.Fatalf("fetch is %s %s: %v", f.Status, f.Error, err)
	}
	return f
}

// arrives waits until the fetch has so many bytes.
func (b *box) arrives(key string, bytes int64) {
	b.t.Helper()
	for end := time.Now().Add(fetchtest.Patience); b.get(key).BytesDownloaded < bytes; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("it is %+v", b.get(key))
		}
	}
}

func final(f store.Fetch) bool { return f.Status.Final() }

// holds compares the image in a slot, on disk, with the digest.
func (b *box) holds(slot int, want string) {
	b.t.Helper()
	s, err := b.slots.Get(slot)
	if err != nil || s.Manifest == nil || s.Manifest.SHA256 != want {
		b.t.Fatalf("slot %d is %+v, %v", slot, s, err)
	}
	data, err := os.ReadFile(filepath.Join(b.dir, "slots", string(rune('0'+slot)), "image"))
	if err != nil {
		b.t.Fatal(err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != want {
		b.t.Fatalf("slot %d holds %x, want %s", slot, sum, want)
	}
}

func (b *box) noPartials() {
	b.t.Helper()
	if p, err := b.slots.Partials(); err != nil || len(p) > 0 {
		b.t.Fatalf("partials left: %v, %v", p, err)
	}
}

func TestFinish(t *testing.T) {
	for name, size := range map[string]int64{"empty": 0, "one byte": 1, "odd": 3<<20 + 17, "aligned": 8 << 20} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, t.TempDir(), nil)
			img := fetchtest.NewImage(1, size)
			f := b.until(b.enqueue(fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve), img.SHA256()), final)
			if f.Status != store.Finished || f.BytesDownloaded != size || f.BytesTotal != size || f.Attempts != 1 {
				t.Fatalf("got %+v", f)
			}
			b.holds(*f.SlotID, img.SHA256())
			b.noPartials()
		})
	}
}

func TestFailures(t *testing.T) {
	img := fetchtest.NewImage(2, 2<<20)
	srv := fetchtest.NewHTTP(t, nil)
	good := srv.Handle("/good.iso", fetchtest.Whole(img).Serve)
	other := strings.Repeat("0", 64)
	for _, c := range []struct{ name, url, sha256, message string }{
		{"wrong digest", good, other, "SHA-256 mismatch: expected " + other + ", got " + img.SHA256() + ". The file was discarded."},
		{"missing", srv.URL + "/missing.iso", img.SHA256(), "The server answered 404 Not Found for " + srv.URL + "/missing.iso."},
		{"nobody listens", "http://127.0.0.1:1/a.iso", img.SHA256(), "The server refused the connection. Check the port of the URL, and whether the server runs."},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t, t.TempDir(), nil)
			f := b.until(b.enqueue(c.url, c.sha256), final)
			if f.Status != store.Failed || f.Error != c.message {
				t.Errorf("got %s %q, want %q", f.Status, f.Error, c.message)
			}
			b.noPartials()
			if list, err := b.slots.List(); err != nil || list[0].Manifest != nil {
				t.Errorf("slots are %+v, %v", list, err)
			}
		})
	}
}

// TestResume breaks the connection, and then stops the agent, in the middle: no byte is fetched twice but for the
// rest of a block.
func TestResume(t *testing.T) {
	img := fetchtest.NewImage(3, 16<<20)
	srv := fetchtest.NewHTTP(t, nil)
	cut, stall := fetchtest.Whole(img), fetchtest.Whole(img)
	cut.Fault, cut.After = fetchtest.FIN, 5<<20+100
	stall.Fault, stall.After = fetchtest.Stall, 4<<20
	raw := srv.Handle("/a.iso", fetchtest.Sequence(cut.Serve, stall.Serve, fetchtest.Whole(img).Serve))
	dir := t.TempDir()
	b := newBox(t, dir, nil)
	key := b.enqueue(raw, img.SHA256())
	b.until(key, func(f store.Fetch) bool { return f.Attempts == 2 })
	first, second := srv.Next(t), srv.Next(t)
	if first.Header.Get("Range") != "" || second.Header.Get("Range") != "bytes=5242880-" {
		t.Fatalf("ranges are %q and %q", first.Header.Get("Range"), second.Header.Get("Range"))
	}
	// What is still in the sockets would count as sent twice.
	b.arrives(key, 5<<20+4<<20)
	b.close()
	fetchtest.Await(t, "the connection to close", second.Closed)

	b = newBox(t, dir, nil)
	f := b.until(key, final)
	if f.Status != store.Finished {
		t.Fatalf("got %+v", f)
	}
	third := srv.Next(t)
	if r := third.Header.Get("Range"); r == "" || r == "bytes=0-" {
		t.Errorf("the third attempt asked for %q", r)
	}
	b.holds(*f.SlotID, img.SHA256())
	if sent := first.Sent() + second.Sent() + third.Sent(); sent > img.Size()+2<<20 {
		t.Errorf("%d bytes were sent for %d", sent, img.Size())
	}
	b.noPartials()
}

// TestChangedFile replaces the file between two attempts: never a mix of both.
func TestChangedFile(t *testing.T) {
	old, img := fetchtest.NewImage(4, 4<<20), fetchtest.NewImage(5, 4<<20)
	srv := fetchtest.NewHTTP(t, nil)
	cut := fetchtest.Whole(old)
	cut.Fault, cut.After = fetchtest.FIN, 2<<20
	b := newBox(t, t.TempDir(), nil)
	f := b.until(b.enqueue(srv.Handle("/a.iso", fetchtest.Sequence(cut.Serve, fetchtest.Whole(img).Serve)), img.SHA256()), final)
	if f.Status != store.Finished || f.Attempts != 2 {
		t.Fatalf("got %+v", f)
	}
	b.holds(*f.SlotID, img.SHA256())
}

func TestCancel(t *testing.T) {
	img := fetchtest.NewImage(6, 4<<20)
	srv := fetchtest.NewHTTP(t, nil)
	stall := fetchtest.Whole(img)
	stall.Fault, stall.After = fetchtest.Stall, 1<<20
	b := newBox(t, t.TempDir(), nil)
	raw := srv.Handle("/a.iso", stall.Serve)
	running, queued := b.enqueue(raw, img.SHA256()), b.enqueue(raw, img.SHA256())
	x := srv.Next(t)

	if _, f, err := b.fetch.Delete(context.Background(), queued, admin); err != nil || f.Status != store.Cancelled {
		t.Fatalf("queued: %+v, %v", f, err)
	}
	var wg sync.WaitGroup
	for range 2 { // the second joins the first
		wg.Go(func() {
			if _, f, err := b.fetch.Delete(context.Background(), running, admin); err != nil || f.Status != store.Cancelled {
				t.Errorf("running: %+v, %v", f, err)
			}
			b.noPartials()
		})
	}
	wg.Wait()
	fetchtest.Await(t, "the connection to close", x.Closed)
}

// TestCancelSlowCleanup is item 30 of the contract's checklist, TestCancelInstalling item 31.
func TestCancelSlowCleanup(t *testing.T) {
	img := fetchtest.NewImage(7, 4<<20)
	srv := fetchtest.NewHTTP(t, nil)
	stall := fetchtest.Whole(img)
	stall.Fault, stall.After = fetchtest.Stall, 1<<20
	release := make(chan struct{})
	b := newBox(t, t.TempDir(), func(c *fetch.Config) {
		c.CancelWait = 10 * time.Millisecond
		*c = c.WithHooks(nil, func(string) { <-release })
	})
	key := b.enqueue(srv.Handle("/a.iso", stall.Serve), img.SHA256())
	srv.Next(t)
	if _, f, err := b.fetch.Delete(context.Background(), key, admin); err != nil || f.Status != store.InProgress {
		t.Errorf("got %+v, %v", f, err)
	}
	close(release)
	if f := b.until(key, final); f.Status != store.Cancelled {
		t.Errorf("got %+v", f)
	}
	b.noPartials()
}

func TestCancelInstalling(t *testing.T) {
	img := fetchtest.NewImage(8, 1<<20)
	installing, release := make(chan struct{}), make(chan struct{})
	b := newBox(t, t.TempDir(), func(c *fetch.Config) {
		*c = c.WithHooks(func(string) { close(installing); <-release }, nil)
	})
	key := b.enqueue(fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve), img.SHA256())
	fetchtest.Await(t, "the install", installing)
	out, f, err := b.fetch.Delete(context.Background(), key, admin)
	if err != nil || out != store.NotCancellable || f.Phase != store.Installing {
		t.Errorf("got %v %+v, %v", out, f, err)
	}
	close(release)
	if f := b.until(key, final); f.Status != store.Finished {
		t.Errorf("got %+v", f)
	}
}

// TestCancelAgainstFinish lets the two race: never a partial left, never a finished fetch without its slot, never two
// winners.
func TestCancelAgainstFinish(t *testing.T) {
	rounds := 1000
	if testing.Short() {
		rounds = 50
	}
	img := fetchtest.NewImage(9, 64<<10)
	raw := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve)
	b := newBox(t, t.TempDir(), nil)
	count := map[store.Status]int{}
	for i := range rounds {
		key := b.enqueue(raw, img.SHA256())
		if i%3 > 0 {
			b.until(key, func(f store.Fetch) bool { return f.Status != store.Queued })
		}
		if i%3 > 1 {
			b.until(key, func(f store.Fetch) bool { return f.Phase != store.Downloading })
		}
		out, f, err := b.fetch.Delete(context.Background(), key, admin)
		if err != nil {
			t.Fatal(err)
		}
		if out == store.NotCancellable {
			f = b.until(key, final)
		}
		count[f.Status]++
		b.noPartials()
		slot, installed := b.slots.FindKey(key)
		if installed != (f.Status == store.Finished) {
			t.Fatalf("round %d: outcome %v, status %s, installed %v", i, out, f.Status, installed)
		}
		if installed {
			if err := b.slots.Delete(slot.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("outcomes: %v", count)
}

// A worker that hangs is told from one that waits for its next attempt, or works.
func TestStuck(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(77, 1<<20)
	stall := fetchtest.Whole(img)
	stall.Fault, stall.After = fetchtest.Stall, img.Size()/2
	var mu sync.Mutex
	var ahead time.Duration
	b := newBox(t, t.TempDir(), func(c *fetch.Config) {
		c.Now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(ahead)
		}
		c.Retry = fetch.Retry{Rounds: 2, Initial: time.Hour, Max: time.Hour}
	})
	pass := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		ahead += d
	}
	stuck := func(want string) {
		t.Helper()
		if key, ok := b.fetch.Stuck(5 * time.Minute); key != want || ok != (want != "") {
			t.Errorf("stuck: %q, %v, want %q", key, ok, want)
		}
	}
	key := b.enqueue(fetchtest.NewHTTP(t, nil).Handle("/a.iso", stall.Serve), img.SHA256())
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(time.Millisecond) { // bytes alone wake nobody
		if f, err := b.fetch.Get(t.Context(), key); err != nil || time.Now().After(end) {
			t.Fatalf("fetch is %+v, %v", f, err)
		} else if f.BytesDownloaded >= img.Size()/2 {
			break
		}
	}
	stuck("")
	pass(6 * time.Minute)
	stuck(key)
	if _, _, err := b.fetch.Delete(t.Context(), key, admin); err != nil {
		t.Fatal(err)
	}
	stuck("")
	key = b.enqueue(fetchtest.NewHTTP(t, nil).Handle("/b.iso", fetchtest.Status(503)), img.SHA256())
	b.until(key, func(f store.Fetch) bool { return f.Phase == store.Waiting })
	pass(time.Hour)
	stuck("")
}
