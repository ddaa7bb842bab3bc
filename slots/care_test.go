package slots_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/mux"

	"slotfetch/api"
	"slotfetch/slots"
)

func careFile(dir string, id string) string { return filepath.Join(dir, id, "care.json") }

func get(t testing.TB, s *slots.Slots, id int) slots.Slot {
	t.Helper()
	sl, err := s.Get(id)
	must(t, err)
	return sl
}

// What is noted about an image outlives the agent, protects it, and goes with it.
func TestCare(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	fill(t, s, 1, nil, random(5000))
	sl, err := s.ChangeCare(1, func(c *slots.Care) { c.Pinned, c.Label = true, "known good" })
	must(t, err)
	if want := (slots.Care{Pinned: true, Label: "known good"}); sl.Care != want || get(t, s, 1).Care != want {
		t.Errorf("got %+v, %+v", sl.Care, get(t, s, 1).Care)
	}
	wantErr(t, s.Delete(1), slots.ErrPinned)
	must(t, s.Close())
	s = openIn(t, dir)
	if sl := get(t, s, 1); !sl.Care.Pinned || sl.Care.Label != "known good" {
		t.Errorf("after a restart %+v", sl.Care)
	}
	wantErr(t, s.Delete(1), slots.ErrPinned)
	_, err = s.ChangeCare(1, func(c *slots.Care) { c.Pinned = false })
	must(t, err)
	if c := get(t, s, 1).Care; c.Pinned || c.Label != "known good" {
		t.Errorf("got %+v", c)
	}
	must(t, s.Delete(1))
	if exists(careFile(dir, "1")) {
		t.Error("care.json outlives the image")
	}
	fill(t, s, 2, ptr(1), random(10))
	if c := get(t, s, 1).Care; c != (slots.Care{}) {
		t.Errorf("the next image begins with %+v", c)
	}

	for id, want := range map[int]error{0: slots.ErrUnknown, 6: slots.ErrUnknown, 3: slots.ErrEmpty} {
		_, err := s.ChangeCare(id, func(*slots.Care) { t.Error("called") })
		wantErr(t, err, want)
	}
	must(t, os.Truncate(imageOf(dir, 1), 3))
	_, err = s.ChangeCare(1, func(*slots.Care) { t.Error("called") })
	wantErr(t, err, slots.ErrDamaged)
}

// A care.json of another image says nothing, and one that cannot be read protects until somebody decides anew.
func TestCareFile(t *testing.T) {
	const head = `{"format":1,"key":"`
	for _, tc := range []struct {
		name, text string
		pinned     bool
	}{
		{"good", head + key(1) + `","pinned":true,"label":"x","degraded":false}`, true},
		{"unpinned", head + key(1) + `","pinned":false,"label":"x","degraded":false}`, false},
		{"of another image", head + key(2) + `","pinned":true,"label":"x","degraded":true}`, false},
		{"cut", head + key(1), true},
		{"empty", "", true},
		{"of a newer agent", `{"format":2,"key":"` + key(1) + `"}`, true},
		{"unknown field", head + key(1) + `","colour":"red"}`, true},
		{"followed by more", head + key(1) + `"} {}`, true},
		{"label with an escape", head + key(1) + `","label":"\u001b[1m"}`, true},
		{"too large", head + key(1) + `"}` + strings.Repeat(" ", 5000), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			s := openIn(t, dir)
			fill(t, s, 1, nil, []byte("image"))
			must(t, os.WriteFile(careFile(dir, "1"), []byte(tc.text), 0o600))
			must(t, s.Close())
			s = openIn(t, dir)
			if sl := get(t, s, 1); sl.Damaged || sl.Manifest == nil || sl.Care.Pinned != tc.pinned || sl.Care.Degraded {
				t.Errorf("got %+v", sl)
			}
			if tc.pinned {
				wantErr(t, s.Delete(1), slots.ErrPinned)
			}
			sl, err := s.ChangeCare(1, func(c *slots.Care) { c.Pinned = false })
			must(t, err)
			if sl.Care.Pinned {
				t.Errorf("got %+v", sl.Care)
			}
			must(t, s.Delete(1))
		})
	}
}

// A Delete that was cut off before its last step leaves a care.json, which the next Open removes.
func TestSweepCare(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	for id := range 2 {
		fill(t, s, id+1, nil, []byte("image"))
		_, err := s.ChangeCare(id+1, func(c *slots.Care) { c.Label = "x" })
		must(t, err)
	}
	must(t, s.Close())
	for _, name := range []string{"image", "manifest.json"} {
		must(t, os.Remove(filepath.Join(dir, "1", name)))
	}
	s = openIn(t, dir)
	if exists(careFile(dir, "1")) || get(t, s, 2).Care.Label != "x" {
		t.Errorf("one is there: %v, the other is %+v", exists(careFile(dir, "1")), get(t, s, 2).Care)
	}
}

func TestValidLabel(t *testing.T) {
	for text, want := range map[string]bool{"": true, "x": true, "Zürich 7.0.5 – good": true, strings.Repeat("ü", 64): true, strings.Repeat("x", 65): false,
		" x": false, "x ": false, "a\nb": false, "\x1b[1m": false, "\xff": false, "a\u202eb": false} {
		if got := slots.ValidLabel(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// flip changes one byte of an image behind the back of all.
func flip(t testing.TB, dir string, id int, at int64) {
	t.Helper()
	must(t, os.Chmod(imageOf(dir, id), 0o600))
	f, err := os.OpenFile(imageOf(dir, id), os.O_RDWR, 0)
	must(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	must(t, err)
	_, err = f.WriteAt([]byte{b[0] ^ 1}, at)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
}

func TestScrub(t *testing.T) {
	for _, buffered := range []bool{false, true} {
		dir, now := t.TempDir(), time.Date(2026, 5, 4, 8, 0, 0, 0, time.UTC)
		s := openIn(t, dir, func(c *slots.Config) { c.Buffered, c.Now = buffered, func() time.Time { return now } })
		sizes := []int{0, 1, 4096, slots.BufferSize, 2*slots.BufferSize + 5}
		for i, size := range sizes {
			fill(t, s, i+1, nil, random(size))
		}
		for i, size := range sizes {
			read := 0
			now = now.Add(time.Second)
			sl, err := s.Scrub(t.Context(), i+1, func(_ context.Context, n int) error { read += n; return nil })
			must(t, err)
			if sl.Care != (slots.Care{ScrubbedAt: now}) || get(t, s, i+1).Care != sl.Care || read != size {
				t.Errorf("%d bytes: %+v after %d", size, sl.Care, read)
			}
		}
		_, err := s.ChangeCare(5, func(c *slots.Care) { c.Pinned = true })
		must(t, err)
		flip(t, dir, 5, 2*slots.BufferSize+4)
		sl, err := s.Scrub(t.Context(), 5, nil)
		must(t, err)
		if want := (slots.Care{Pinned: true, ScrubbedAt: now, Degraded: true}); sl.Care != want || sl.Damaged || sl.Manifest == nil {
			t.Errorf("got %+v", sl)
		}
		if ids, err := s.Alarms(); err != nil || len(ids) != 1 || ids[0] != 5 {
			t.Errorf("alarms %v, %v", ids, err)
		}
		flip(t, dir, 5, 2*slots.BufferSize+4) // as if the disk had found it again
		sl, err = s.Scrub(t.Context(), 5, nil)
		must(t, err)
		if sl.Care.Degraded {
			t.Error("still degraded")
		}

		stop := errors.New("stop")
		_, err = s.Scrub(t.Context(), 4, func(context.Context, int) error { return stop })
		wantErr(t, err, stop)
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(stop)
		_, err = s.Scrub(ctx, 4, nil)
		wantErr(t, err, stop)
		// Emptied while it is read, and filled again with another image: that one has no result.
		before := get(t, s, 3).Care
		_, err = s.Scrub(t.Context(), 4, func(context.Context, int) error {
			must(t, s.Delete(4))
			fill(t, s, 9, ptr(4), []byte("another"))
			return nil
		})
		wantErr(t, err, slots.ErrEmpty)
		if c := get(t, s, 4).Care; c != (slots.Care{}) || get(t, s, 3).Care != before {
			t.Errorf("got %+v", c)
		}
		must(t, s.Delete(1))
		must(t, os.Truncate(imageOf(dir, 2), 0))
		for id, want := range map[int]error{0: slots.ErrUnknown, 1: slots.ErrEmpty, 2: slots.ErrDamaged} {
			_, err := s.Scrub(t.Context(), id, nil)
			wantErr(t, err, want)
		}
	}
}

// A disk that takes nothing, perhaps the same that lost the image, does not hide the result.
func TestScrubUnwritten(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	fill(t, s, 1, nil, random(5000))
	flip(t, dir, 1, 7)
	// A directory in its place keeps care.json from being written, for root too.
	must(t, os.Mkdir(careFile(dir, "1")+".tmp", 0o700))
	must(t, os.WriteFile(careFile(dir, "1")+".tmp/x", nil, 0o600))
	sl, err := s.Scrub(t.Context(), 1, nil)
	must(t, err)
	if !sl.Care.Degraded || !get(t, s, 1).Care.Degraded || exists(careFile(dir, "1")) {
		t.Errorf("got %+v", sl.Care)
	}
	must(t, os.RemoveAll(careFile(dir, "1")+".tmp"))
	_, err = s.ChangeCare(1, func(c *slots.Care) { c.Label = "lost" })
	must(t, err)
	must(t, s.Close())
	if c := get(t, openIn(t, dir), 1).Care; !c.Degraded || c.Label != "lost" {
		t.Errorf("after a restart %+v", c)
	}
}

// The scrubber reads what is due, never while a slot is being filled, and a Verify at once.
func TestScrubber(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	s := openIn(t, dir, func(c *slots.Config) { c.Now = clock })
	fill(t, s, 1, nil, random(3*slots.BufferSize))
	fill(t, s, 2, nil, random(10))
	w := reserve(t, s, key(3), nil, 0)
	mu.Lock()
	now = now.Add(time.Hour)
	mu.Unlock()
	c := slots.StartScrubber(s, slots.ScrubConfig{Interval: time.Minute, Rate: 1 << 30})
	defer c.Close()
	sl, err := c.Verify(t.Context(), 2)
	must(t, err)
	if !sl.Care.ScrubbedAt.Equal(clock().UTC()) {
		t.Errorf("got %+v", sl.Care)
	}
	if at := get(t, s, 1).Care.ScrubbedAt; !at.IsZero() {
		t.Error("scrubbed beside a fetch")
	}
	must(t, w.Abort())
	for end := time.Now().Add(30 * time.Second); get(t, s, 1).Care.ScrubbedAt.IsZero(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never scrubbed")
		}
	}
	_, err = c.Verify(t.Context(), 3)
	wantErr(t, err, slots.ErrEmpty)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Verify(ctx, 1); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.Close()
	if _, err := c.Verify(t.Context(), 1); err == nil {
		t.Error("verified after Close")
	}
}

// Several callers share one reading.
func TestVerifyTogether(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	fill(t, s, 1, nil, random(20*slots.BufferSize))
	c := slots.StartScrubber(s, slots.ScrubConfig{})
	defer c.Close()
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if sl, err := c.Verify(t.Context(), 1); err != nil || sl.Care.Degraded || sl.Care.ScrubbedAt.IsZero() {
				t.Errorf("%+v, %v", sl.Care, err)
			}
		})
	}
	group.Wait()
}

// Deletes, pins and scrubs at the same time leave a slot that is whole or empty.
func TestCareRaces(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	var group sync.WaitGroup
	for n := range 30 {
		fill(t, s, n+1, ptr(1), random(2*slots.BufferSize))
		group.Go(func() {
			if err := s.Delete(1); err != nil && !errors.Is(err, slots.ErrPinned) {
				t.Error(err)
			}
		})
		group.Go(func() {
			if _, err := s.Scrub(t.Context(), 1, nil); err != nil && !errors.Is(err, slots.ErrEmpty) {
				t.Error(err)
			}
		})
		pinned := false
		group.Go(func() {
			_, err := s.ChangeCare(1, func(c *slots.Care) { c.Pinned = true })
			if pinned = err == nil; err != nil && !errors.Is(err, slots.ErrEmpty) {
				t.Error(err)
			}
		})
		group.Wait()
		sl := get(t, s, 1)
		if sl.Damaged || (sl.Manifest != nil) != pinned || sl.Care.Pinned != pinned || sl.Care.Degraded {
			t.Fatalf("round %d: pinned %v, %+v", n, pinned, sl)
		}
		if pinned {
			_, err := s.ChangeCare(1, func(c *slots.Care) { c.Pinned = false })
			must(t, err)
			must(t, s.Delete(1))
		}
	}
}

// A verify that takes longer than the answer may is told of with 202, and goes on.
func TestVerifyLater(t *testing.T) {
	s := openIn(t, t.TempDir())
	fill(t, s, 1, nil, random(50*slots.BufferSize))
	c := slots.StartScrubber(s, slots.ScrubConfig{Wait: time.Nanosecond})
	defer c.Close()
	var told []string
	route := c.Routes(func(_ api.Principal, action, object string) error {
		told = append(told, action+" "+object)
		return nil
	})[0]
	verify := func() (api.Reply, error) {
		r := httptest.NewRequestWithContext(t.Context(), route.Method, "/api/firmware/slots/1/verify", nil)
		return route.Handler(mux.SetURLVars(r, map[string]string{"slot": "1"}))
	}
	reply, err := verify()
	must(t, err)
	if reply.Status != 202 || reply.Header.Get("Location") != "/api/firmware/slots/1" || reply.Header.Get("Retry-After") == "" || len(told) != 0 {
		t.Errorf("got %+v, %v", reply, told)
	}
	if b := reply.Body.(api.Slot).Body; b.ScrubbedAt != nil || b.Size != 50*slots.BufferSize {
		t.Errorf("got %+v", b)
	}
	for end := time.Now().Add(30 * time.Second); get(t, s, 1).Care.ScrubbedAt.IsZero(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never through")
		}
	}
	c.Close()
	var e *api.Error
	if _, err := verify(); !errors.As(err, &e) || e.Status != 503 {
		t.Errorf("after Close: %v", err)
	}
}

// Whatever care.json holds, a label is fit to be shown and a slot is not lost over it.
func FuzzCare(f *testing.F) {
	for _, s := range []string{`{"format":1,"key":"` + key(1) + `","pinned":true,"label":"x","degraded":true}`, `{"format":1}`, `{}`, ``, `null`,
		`{"format":1,"key":"` + key(1) + `","label":"\u001b"}`, `{"format":1,"scrubbed_at":"2026-05-04T08:00:00Z"}`} {
		f.Add(s)
	}
	dir := f.TempDir()
	s := openIn(f, dir)
	fill(f, s, 1, nil, []byte("image"))
	f.Fuzz(func(t *testing.T, text string) {
		must(t, os.WriteFile(careFile(dir, "1"), []byte(text), 0o600))
		sl := get(t, s, 1)
		if sl.Manifest == nil || sl.Damaged || !slots.ValidLabel(sl.Care.Label) {
			t.Errorf("%q: %+v", text, sl)
		}
	})
}

// The scrubber is no faster than its rate, whatever the disk can.
func TestScrubRate(t *testing.T) {
	s := openIn(t, t.TempDir())
	fill(t, s, 1, nil, random(3*slots.BufferSize))
	began := time.Now()
	c := slots.StartScrubber(s, slots.ScrubConfig{Interval: time.Nanosecond, Rate: 4 * slots.BufferSize})
	defer c.Close()
	for get(t, s, 1).Care.ScrubbedAt.IsZero() {
		if time.Since(began) > 30*time.Second {
			t.Fatal("never scrubbed")
		}
		time.Sleep(time.Millisecond)
	}
	// The first piece is free, the other two wait for their turn.
	if took := time.Since(began); took < 450*time.Millisecond {
		t.Errorf("3 MiB took %s at 4 MiB/s", took)
	}
}
