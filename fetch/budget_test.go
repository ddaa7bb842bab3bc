package fetch_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/store"
)

// A fetch that gets on, but not in time, ends; what was received before a restart of the agent counts too.
func TestDeadline(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(80, 1<<20)
	stall := fetchtest.Whole(img)
	stall.Fault, stall.After = fetchtest.Stall, 1000
	b := newBox(t, t.TempDir(), func(c *fetch.Config) { c.Deadline = 300 * time.Millisecond })
	server := fetchtest.NewHTTP(t, nil)
	key := b.enqueue(server.Handle("/a.iso", stall.Serve), img.SHA256())
	f := b.until(key, final)
	if f.Status != store.Failed || f.ErrorCode != "deadline" || f.Error != "The fetch was not complete within 300ms (fetch.deadline). "+
		"Use another server or a mirror, or raise fetch.deadline in the agent's configuration, and start again." {
		t.Errorf("it is %s: %s %s", f.Status, f.ErrorCode, f.Error)
	}
	b.noPartials()
	// It does not touch one that is quick.
	b.until(b.enqueue(server.Handle("/b.iso", fetchtest.Whole(fetchtest.NewImage(81, 1000)).Serve), fetchtest.NewImage(81, 1000).SHA256()),
		func(f store.Fetch) bool { return f.Status == store.Finished })
}

// A server that always breaks off later than before, and never resumes, does not go on for ever.
func TestTraffic(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(82, 4<<20)
	var n atomic.Int64
	server := fetchtest.NewHTTP(t, nil)
	url := server.Handle("/a.iso", func(x *fetchtest.Exchange) {
		f := fetchtest.Whole(img)
		f.ETag, f.Modified, f.NoRange = "", time.Time{}, true
		f.Fault, f.After = fetchtest.FIN, n.Add(1)*(128<<10)
		f.Serve(x)
	})
	b := newBox(t, t.TempDir(), func(c *fetch.Config) { c.MaxTraffic = 2 })
	f := b.until(b.enqueue(url, img.SHA256()), final)
	if f.Status != store.Failed || f.ErrorCode != "traffic" || !strings.Contains(f.Error, "for an image of 4194304 bytes") {
		t.Errorf("it is %s: %s %s", f.Status, f.ErrorCode, f.Error)
	}
	var sent int64
	for _, x := range server.Requests() {
		sent += x.Sent()
	}
	if sent > 2*img.Size()+2<<20 { // and one attempt more, which is below 2 MiB here
		t.Errorf("%d bytes were sent", sent)
	}
}

// What a fetch says of its way: where its last attempt went on, and when the next one comes.
func TestProgressOfAttempts(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(83, 4<<20)
	broken := fetchtest.Whole(img)
	broken.Fault, broken.After = fetchtest.FIN, 3<<20
	server := fetchtest.NewHTTP(t, nil)
	url := server.Handle("/a.iso", fetchtest.Sequence(broken.Serve, fetchtest.Status(503), fetchtest.Whole(img).Serve))
	b := newBox(t, t.TempDir(), func(c *fetch.Config) {
		c.Retry = fetch.Retry{Rounds: 3, Initial: 300 * time.Millisecond, Max: time.Second}
	})
	key := b.enqueue(url, img.SHA256())
	before := time.Now()
	f := b.until(key, func(f store.Fetch) bool { return !f.NextAttempt.IsZero() })
	if wait := f.NextAttempt.Sub(before); f.Phase != store.Waiting || wait < 0 || wait > 5*time.Second || f.RetryReason == "" {
		t.Errorf("phase %s, next attempt in %v, because %q", f.Phase, wait, f.RetryReason)
	}
	f = b.until(key, final)
	if f.Status != store.Finished || f.ResumedFrom < 2<<20 || f.ResumedFrom > 3<<20 || !f.NextAttempt.IsZero() || f.RetryReason != "" {
		t.Errorf("it is %s, resumed from %d, next attempt %v", f.Status, f.ResumedFrom, f.NextAttempt)
	}
}

// When a partial is read again, a rotten byte in it is found, and the fetch begins at byte 0.
func TestResumeVerify(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		verify fetch.ResumeVerify
		clean  bool
		reads  bool // the partial again
	}{
		{"unclean, after a clean stop", fetch.VerifyUnclean, true, false},
		{"unclean, after a crash", fetch.VerifyUnclean, false, true},
		{"always, after a clean stop", fetch.VerifyAlways, true, true},
		{"never, after a crash", fetch.VerifyNever, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			img := fetchtest.NewImage(84, 4<<20)
			stall := fetchtest.Whole(img)
			stall.Fault, stall.After = fetchtest.Stall, 3<<20
			server := fetchtest.NewHTTP(t, nil)
			url := server.Handle("/a.iso", fetchtest.Sequence(stall.Serve, fetchtest.Whole(img).Serve))
			dir := t.TempDir()
			small := func(c *fetch.Config) { c.CheckpointBytes, c.ResumeVerify = 1<<20, tc.verify }
			b := newBox(t, dir, small)
			key := b.enqueue(url, img.SHA256())
			b.checkpointed(key, 1<<20)
			b.close()
			b = newBoxBefore(t, dir, small, func(s *store.Store) {
				if !tc.clean { // as a crash leaves it
					if _, _, err := s.Claim(); err != nil {
						t.Fatal(err)
					}
					if _, err := s.Requeue(key, true, false, 0); err != nil {
						t.Fatal(err)
					}
				}
			}, filepath.Join(dir, "slots", ".part", key+".partial"))
			f := b.until(key, final)
			if f.Status != store.Finished || (f.ResumedFrom == 0) != tc.reads {
				t.Errorf("it is %s (%s), resumed from %d", f.Status, f.Error, f.ResumedFrom)
			}
		})
	}
}

// checkpointed waits for a checkpoint of at least n bytes.
func (b *box) checkpointed(key string, n int64) {
	b.t.Helper()
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(time.Millisecond) {
		f, err := b.store.Fetch(b.t.Context(), key)
		if err != nil || time.Now().After(end) {
			b.t.Fatalf("fetch is %+v, %v", f, err)
		}
		if f.Checkpoint.Offset >= n {
			return
		}
	}
}

// newBoxBefore is newBox for a directory whose database is changed, and one byte of a partial rots, before.
func newBoxBefore(t *testing.T, dir string, change func(*fetch.Config), prepare func(*store.Store), partial string) *box {
	t.Helper()
	s, err := store.Open(filepath.Join(dir, "slotfetch.db"), store.Options{MustExist: true})
	if err != nil {
		t.Fatal(err)
	}
	prepare(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := os.OpenFile(partial, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.WriteAt([]byte{0xff, 0x00, 0xff}, 777); err != nil {
		t.Fatal(err)
	}
	return newBox(t, dir, change)
}
