package fetch_test

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	_ "github.com/mattn/go-sqlite3"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
	"slotfetch/slots"
	"slotfetch/store"
)

const (
	recoverKey = "3b0a6a52-6c1e-4f0e-9d57-1f6f3f0f8a11"
	otherKey   = "3b0a6a52-6c1e-4f0e-9d57-1f6f3f0f8a12"
)

// crashed is a state directory as a dead agent may have left it.
type crashed struct {
	t     *testing.T
	dir   string
	url   string
	img   *fetchtest.Image
	store *store.Store
}

// row adds a queued fetch.
func (c *crashed) row(key string) {
	c.do(c.store.Enqueue(store.Fetch{Key: key, URL: c.url, SHA256: c.img.SHA256(), Force: true}, admin))
}

// do takes the results of a transition, which has to succeed.
func (c *crashed) do(_ any, err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *crashed) claim() {
	_, ok, err := c.store.Claim()
	if err != nil || !ok {
		c.t.Fatalf("nothing to claim: %v", err)
	}
	c.do(c.store.BeginAttempt(recoverKey))
}

func (c *crashed) phase(p store.Phase) {
	c.do(c.store.SetPhase(recoverKey, p, c.img.Size()/2, c.img.Size()))
}

func (c *crashed) checkpoint(offset int64) {
	v, err := json.Marshal(source.Validator{ETag: `"x"`, Size: c.img.Size()})
	c.do(v, err)
	c.do(nil, c.store.SaveCheckpoint(recoverKey, store.Checkpoint{Offset: offset, State: []byte("{}"), Validator: string(v), Source: c.url}, 0, c.img.Size(), nil))
}

func (c *crashed) installing() {
	c.do(c.store.BeginInstall(recoverKey, c.img.Size(), nil))
}

func (c *crashed) cancel() {
	_, _, err := c.store.Delete(recoverKey, admin)
	c.do(nil, err)
}

func (c *crashed) write(data []byte, perm os.FileMode, path ...string) {
	name := filepath.Join(append([]string{c.dir, "slots"}, path...)...)
	c.do(nil, os.MkdirAll(filepath.Dir(name), 0o700))
	c.do(nil, os.WriteFile(name, data, perm))
}

func (c *crashed) partial(key string, size int64) {
	c.write(c.img.Bytes()[:size], 0o640, ".part", key+".partial")
}

// image puts one into slot 2, with a manifest of key unless that is empty.
func (c *crashed) image(key, sha256 string) {
	c.write(c.img.Bytes(), 0o440, "2", "image")
	if key == "" {
		return
	}
	text, err := json.Marshal(map[string]any{"format": 1, "key": key, "name": "a.iso", "source": c.url, "sha256": sha256, "size": c.img.Size(),
		"fetched_at": time.Unix(1_700_000_000, 0).UTC(), "volume_id": "", "version": "a", "iso": false})
	c.do(text, err)
	c.write(text, 0o440, "2", "manifest.json")
}

// TestRecover has a case for each row of the table in recover.go, by what the row says and what is on disk. The
// fetches are looked at before any worker runs, and run to their end after.
func TestRecover(t *testing.T) {
	img := fetchtest.NewImage(60, 64<<10)
	url := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve)
	other := fetchtest.NewImage(61, 1).SHA256()
	const half = 32 << 10
	for _, tt := range []struct {
		name string
		left func(*crashed)
		// What recovery makes of it. No status: there is no row.
		status  store.Status
		offset  int64 // of the checkpoint
		partial bool
		slot    bool // slot 2 is full
		end     store.Status
	}{
		{"queued", func(c *crashed) { c.row(recoverKey) }, store.Queued, 0, false, false, store.Finished},
		{"queued, partial without a checkpoint", func(c *crashed) { c.row(recoverKey); c.partial(recoverKey, half) }, store.Queued, 0, false, false, store.Finished},
		{"queued with a checkpoint, partial", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.checkpoint(half)
			c.do(c.store.Requeue(recoverKey, true, true, 0))
			c.partial(recoverKey, half)
		}, store.Queued, half, true, false, store.Finished},
		{"queued with a checkpoint, no partial", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.checkpoint(half)
			c.do(c.store.Requeue(recoverKey, true, true, 0))
		}, store.Queued, half, false, false, store.Finished},

		{"cancel requested, partial", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.checkpoint(half)
			c.cancel()
			c.partial(recoverKey, half)
		}, store.Cancelled, 0, false, false, store.Cancelled},
		{"cancel requested, no partial", func(c *crashed) { c.row(recoverKey); c.claim(); c.cancel() }, store.Cancelled, 0, false, false, store.Cancelled},
		{"cancel requested while waiting", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.phase(store.Waiting)
			c.cancel()
			c.partial(recoverKey, half)
		}, store.Cancelled, 0, false, false, store.Cancelled},

		{"downloading, nothing", func(c *crashed) { c.row(recoverKey); c.claim() }, store.Queued, 0, false, false, store.Finished},
		{"downloading, partial without a checkpoint", func(c *crashed) { c.row(recoverKey); c.claim(); c.partial(recoverKey, half) }, store.Queued, 0, false, false, store.Finished},
		{"downloading, partial beyond its checkpoint", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.checkpoint(half)
			c.partial(recoverKey, half+8192)
		}, store.Queued, half, true, false, store.Finished},
		{"downloading, partial short of its checkpoint", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.checkpoint(half)
			c.partial(recoverKey, 4096)
		}, store.Queued, half, true, false, store.Finished},
		{"waiting, partial with a checkpoint", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.checkpoint(half)
			c.phase(store.Waiting)
			c.partial(recoverKey, half)
		}, store.Queued, half, true, false, store.Finished},
		{"verifying, whole partial with a checkpoint", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.checkpoint(c.img.Size())
			c.phase(store.Verifying)
			c.partial(recoverKey, c.img.Size())
		}, store.Queued, 64 << 10, true, false, store.Finished},
		{"verifying, whole partial without a checkpoint", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.phase(store.Verifying)
			c.partial(recoverKey, c.img.Size())
		}, store.Queued, 0, false, false, store.Finished},

		{"installing, slot is published", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.installing()
			c.image(recoverKey, c.img.SHA256())
		}, store.Finished, 0, false, true, store.Finished},
		{"installing, image without a manifest", func(c *crashed) { c.row(recoverKey); c.claim(); c.installing(); c.image("", "") }, store.Queued, 0, false, false, store.Finished},
		{"installing, image and a manifest not renamed", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.installing()
			c.image("", "")
			c.write([]byte(`{"format":`), 0o440, "2", "manifest.json.tmp")
		}, store.Queued, 0, false, false, store.Finished},
		{"installing, sealed partial", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.checkpoint(half)
			c.installing()
			c.partial(recoverKey, c.img.Size())
			c.do(nil, os.Chmod(filepath.Join(c.dir, "slots", ".part", recoverKey+".partial"), 0o440))
		}, store.Queued, half, true, false, store.Finished},
		{"installing, image without a manifest, with a checkpoint", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.checkpoint(half)
			c.installing()
			c.image("", "")
		}, store.Queued, half, false, false, store.Finished},
		{"installing, slot of another fetch", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.installing()
			c.image(otherKey, c.img.SHA256())
		}, store.Queued, 0, false, true, store.Finished},
		{"installing, slot of this fetch with another digest", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.installing()
			c.image(recoverKey, other)
		}, store.Queued, 0, false, true, store.Finished},

		{"partial of no fetch", func(c *crashed) { c.partial(recoverKey, half) }, "", 0, false, false, ""},
		{"partial of a failed fetch", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.checkpoint(half)
			c.partial(recoverKey, half)
			c.do(c.store.Fail(recoverKey, "x", "It failed.", 0, 0, nil))
		}, store.Failed, 0, false, false, store.Failed},
		{"partial of a fetch that was cancelled in the queue", func(c *crashed) {
			c.row(recoverKey)
			c.cancel()
			c.partial(recoverKey, half)
		}, store.Cancelled, 0, false, false, store.Cancelled},
		{"slot of no fetch", func(c *crashed) { c.image(otherKey, c.img.SHA256()) }, "", 0, false, true, ""},
		{"finished, slot is gone", func(c *crashed) {
			c.row(recoverKey)
			c.claim()
			c.installing()
			c.do(c.store.Finish(recoverKey, 2, nil))
		}, store.Finished, 0, false, false, store.Finished},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := &crashed{t: t, dir: t.TempDir(), url: url, img: img}
			var err error
			if c.store, err = store.Open(filepath.Join(c.dir, "slotfetch.db"), store.Options{}); err != nil {
				t.Fatal(err)
			}
			c.write(nil, 0o600, ".lock")
			c.do(nil, os.MkdirAll(filepath.Join(c.dir, "slots", ".part"), 0o700))
			tt.left(c)
			var before []any
			for life := range 2 { // the second finds nothing to do
				s := c.recover()
				f, err := c.store.Fetch(t.Context(), recoverKey)
				if tt.status == "" && !errors.Is(err, store.ErrNotFound) || tt.status != "" && err != nil ||
					f.Status != tt.status || f.Checkpoint.Offset != tt.offset || f.CancelRequested {
					t.Fatalf("life %d: row is %+v, %v", life, f, err)
				}
				partials, err := s.Partials()
				if err != nil || tt.partial != (len(partials) == 1) {
					t.Errorf("life %d: partials %v, %v", life, partials, err)
				}
				slot, err := s.Get(2)
				if err != nil || tt.slot != (slot.Manifest != nil) || slot.Damaged {
					t.Errorf("life %d: slot 2 is %+v, %v", life, slot, err)
				}
				now := []any{f, partials, slot}
				if diff := cmp.Diff(before, now); life > 0 && diff != "" {
					t.Errorf("recovery again changed something:\n%s", diff)
				}
				before = now
				c.do(nil, s.Close())
			}
			c.do(nil, c.store.Close())
			if tt.end == "" {
				return
			}
			b := newBox(t, c.dir, nil)
			if f := b.until(recoverKey, final); f.Status != tt.end {
				t.Errorf("in the end it is %s: %s", f.Status, f.Error)
			} else if f.Status == store.Finished && tt.name != "finished, slot is gone" {
				b.holds(*f.SlotID, img.SHA256())
			}
			b.noPartials()
		})
	}
}

// recover opens slots and fetches without any worker.
func (c *crashed) recover() *slots.Slots {
	c.t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	s, err := slots.Open(slots.Config{Dir: filepath.Join(c.dir, "slots"), First: 1, Count: 5, Log: log})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := fetch.Recover(fetch.Config{Store: c.store, Slots: s, Log: log}); err != nil {
		c.t.Fatal(err)
	}
	return s
}

// TestStopWhileReadingAgain stops the agent in order while it reads a partial again after a crash: the bytes that it
// has not looked at yet must not count as good at the next start.
func TestStopWhileReadingAgain(t *testing.T) {
	img := fetchtest.NewImage(62, 64<<10)
	c := &crashed{t: t, dir: t.TempDir(), url: fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve), img: img}
	var err error
	if c.store, err = store.Open(filepath.Join(c.dir, "slotfetch.db"), store.Options{}); err != nil {
		t.Fatal(err)
	}
	const long = 1 << 30 // sparse, and long enough to be read when the agent stops
	c.row(recoverKey)
	c.claim()
	c.checkpoint(long)
	c.partial(recoverKey, 0)
	c.do(nil, os.Truncate(filepath.Join(c.dir, "slots", ".part", recoverKey+".partial"), long))
	c.do(nil, c.store.Close())

	b := newBox(t, c.dir, nil)
	b.until(recoverKey, func(f store.Fetch) bool { return f.Status == store.InProgress })
	b.close()
	if c.store, err = store.Open(filepath.Join(c.dir, "slotfetch.db"), store.Options{}); err != nil {
		t.Fatal(err)
	}
	defer c.store.Close()
	f, err := c.store.Fetch(t.Context(), recoverKey)
	if err != nil || f.Status != store.Queued || f.Checkpoint.Offset != long || f.Checkpoint.Clean {
		t.Errorf("got %s, %+v, %v", f.Status, f.Checkpoint, err)
	}
}

// TestLostClaim has a claim that reports an error and is durable all the same, as a COMMIT may be: the fetch must not
// stay in progress with nobody working on it. Here it is another connection that makes the claim.
func TestLostClaim(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(63, 64<<10)
	c := &crashed{t: t, dir: t.TempDir(), url: fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve), img: img}
	var err error
	if c.store, err = store.Open(filepath.Join(c.dir, "slotfetch.db"), store.Options{}); err != nil {
		t.Fatal(err)
	}
	c.row(recoverKey)
	c.row(otherKey)
	c.do(nil, c.store.Close())
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(c.dir, "slotfetch.db"))
	c.do(nil, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	c.do(db.Exec("BEGIN IMMEDIATE"))

	failed := make(chan struct{})
	b := newBox(t, c.dir, func(cfg *fetch.Config) {
		cfg.Log = slog.New(&awaited{Handler: cfg.Log.Handler(), message: "cannot claim a fetch", seen: failed})
	})
	fetchtest.Await(t, "the claim to fail", failed)
	c.do(db.Exec("UPDATE fetches SET status = 'in-progress', phase = 'downloading', start_time = created_at WHERE key = ?", recoverKey))
	c.do(db.Exec("COMMIT"))
	for _, key := range []string{recoverKey, otherKey} {
		if f := b.until(key, final); f.Status != store.Finished || f.Attempts != 1 {
			t.Errorf("got %+v", f)
		}
	}
}

// awaited closes seen at the first record with the message.
type awaited struct {
	slog.Handler
	message string
	seen    chan struct{}
	once    sync.Once
}

func (h *awaited) Enabled(context.Context, slog.Level) bool { return true }

func (h *awaited) Handle(_ context.Context, r slog.Record) error {
	if r.Message == h.message {
		h.once.Do(func() { close(h.seen) })
	}
	return nil
}

func (h *awaited) WithAttrs([]slog.Attr) slog.Handler { return h }

// TestRecoverReadOnly starts where a partial of no fetch cannot be removed: the agent is there, and fetches wait until it
// can.
func TestRecoverReadOnly(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(71, 64<<10)
	c := &crashed{t: t, dir: t.TempDir(), img: img}
	c.partial(otherKey, 4096)
	part := filepath.Join(c.dir, "slots", ".part")
	if out, err := exec.Command("chattr", "+i", part).CombinedOutput(); err != nil {
		t.Skipf("cannot make a directory immutable here: %v %s", err, out)
	}
	thaw := func() { _ = exec.Command("chattr", "-i", part).Run() }
	defer thaw()
	b := newBox(t, c.dir, nil)
	key := b.enqueue(fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve), img.SHA256())
	if f := b.get(key); f.Status != store.Queued {
		t.Errorf("got %+v", f)
	}
	thaw()
	if f := b.until(key, final); f.Status != store.Finished {
		t.Errorf("got %+v", f)
	}
	b.noPartials()
}

// TestRateAfterResume finishes a fetch of which all was there before, and one of which the half was: only what came in
// this run counts for the rate.
func TestRateAfterResume(t *testing.T) {
	img := fetchtest.NewImage(69, 64<<10)
	for name, there := range map[string]int64{"half": 32 << 10, "all": 64 << 10} {
		t.Run(name, func(t *testing.T) {
			clock := &jumpy{at: time.Now()}
			c := &crashed{t: t, dir: t.TempDir(), img: img}
			c.url = fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve)
			var err error
			if c.store, err = store.Open(filepath.Join(c.dir, "slotfetch.db"), store.Options{}); err != nil {
				t.Fatal(err)
			}
			d := sha256.New()
			d.Write(img.Bytes()[:there])
			sum, err := d.(encoding.BinaryMarshaler).MarshalBinary()
			c.do(nil, err)
			state, err := json.Marshal(map[string][]byte{"sha256": sum})
			c.do(nil, err)
			v, err := json.Marshal(source.Validator{ETag: fetchtest.Whole(img).ETag, Size: img.Size()})
			c.do(nil, err)
			c.row(recoverKey)
			c.claim()
			c.do(nil, c.store.SaveCheckpoint(recoverKey, store.Checkpoint{Offset: there, State: state, Validator: string(v), Source: c.url}, 0, img.Size(), nil))
			c.do(c.store.Requeue(recoverKey, true, true, 0))
			c.partial(recoverKey, there)
			c.do(nil, c.store.Close())
			b := newBox(t, c.dir, func(cfg *fetch.Config) {
				cfg.Now = clock.now
				*cfg = cfg.WithHooks(func(string) { clock.jump(time.Hour) }, nil)
			})
			f := b.until(recoverKey, final)
			switch missing := img.Size() - there; {
			case f.Status != store.Finished:
				t.Errorf("got %+v", f)
			case missing == 0 && f.BytesPerSecond != nil:
				t.Errorf("nothing came, at %d bytes a second", *f.BytesPerSecond)
			case missing > 0 && (f.BytesPerSecond == nil || *f.BytesPerSecond != missing/3600):
				t.Errorf("%d bytes came in an hour: %v a second", missing, f.BytesPerSecond)
			}
		})
	}
}
