package slots_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"slotfetch/slots"
)

// versioned commits an image with a version to the lowest empty slot.
func versioned(t testing.TB, s *slots.Slots, n int, version string, data []byte) int {
	t.Helper()
	w := reserve(t, s, key(n), nil, 0)
	put(t, w, data)
	id, err := w.Commit(slots.Manifest{SHA256: sum(data), Version: version})
	must(t, err)
	return id
}

var plenty = slots.TestPolicy{Space: func() (int64, error) { return 1 << 30, nil }}

// examine is a test of a slot that is held for it.
func examine(t testing.TB, s *slots.Slots, id int, p slots.TestPolicy) slots.Report {
	t.Helper()
	release, err := s.Hold(id)
	must(t, err)
	defer release()
	r, err := s.Test(t.Context(), id, p)
	must(t, err)
	return r
}

func TestTest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, buffered := range []bool{false, true} {
		for _, tt := range []struct {
			name    string
			version string // that of the current slot is 7.0.5
			policy  slots.TestPolicy
			harm    func(t *testing.T, image string)
			iso     bool
			want    []string // a piece of each line
			failed  bool
		}{
			{name: "good", version: "7.4.0", want: []string{"Image digest: ok", "ISO structure: ok", "Version path: ok (7.0.5 to 7.4.0)", "Free space: ok"}},
			{name: "the same", version: "7.0.5", want: []string{"digest: ok", "ISO structure: ok", "path: ok", "space: ok"}},
			{name: "older", version: "7.0.4", failed: true, want: []string{"digest: ok", "ISO structure: ok", "path: FAILED (7.0.5 to 7.0.4 is a downgrade", "space: ok"}},
			{name: "older and allowed", version: "7.0.4", policy: slots.TestPolicy{AllowDowngrade: true, Space: plenty.Space}, want: []string{"digest: ok", "ISO structure: ok", "path: ok", "space: ok"}},
			{name: "another scheme", version: "zebra", want: []string{"digest: ok", "ISO structure: ok", "path: ok (7.0.5 to zebra, which cannot be compared)", "space: ok"}},
			{name: "not signed", version: "8.0", policy: slots.TestPolicy{Signed: true, Space: plenty.Space}, failed: true,
				want: []string{"digest: ok", "ISO structure: ok", "path: ok", "Signature: FAILED (the image did not come", "space: ok"}},
			{name: "no space", version: "8.0", policy: slots.TestPolicy{Space: func() (int64, error) { return 1, nil }}, failed: true,
				want: []string{"digest: ok", "ISO structure: ok", "path: ok", "Free space: FAILED"}},
			{name: "one bit", version: "8.0", failed: true, want: []string{"Image digest: FAILED (the image has changed", "ISO structure: ok", "path: ok", "space: ok"},
				harm: func(t *testing.T, image string) {
					f, err := os.OpenFile(image, os.O_RDWR, 0)
					must(t, err)
					_, err = f.WriteAt([]byte{1}, 10)
					must(t, errors.Join(err, f.Close()))
				}},
			{name: "short", version: "8.0", failed: true, want: []string{"Image: FAILED (the slot is damaged"}, harm: func(t *testing.T, image string) { must(t, os.Truncate(image, 40_000)) }},
			{name: "no manifest", version: "8.0", failed: true, want: []string{"Image: FAILED (the slot is damaged"},
				harm: func(t *testing.T, image string) {
					must(t, os.Remove(strings.TrimSuffix(image, "image")+"manifest.json"))
				}},
			{name: "no ISO", version: "8.0", iso: true, failed: true, want: []string{"Image digest: FAILED", "ISO structure: FAILED", "path: ok", "space: ok"},
				harm: func(t *testing.T, image string) {
					f, err := os.OpenFile(image, os.O_RDWR, 0)
					must(t, err)
					_, err = f.WriteAt([]byte("XX"), 16*2048+1)
					must(t, errors.Join(err, f.Close()))
				}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				sub, err := os.MkdirTemp(dir, "")
				must(t, err)
				s := openIn(t, sub, func(c *slots.Config) { c.RequireISO, c.Buffered = tt.iso, buffered })
				versioned(t, s, 1, "7.0.5", smallISO())
				must(t, s.SetBoot(ptr(1), nil))
				versioned(t, s, 2, tt.version, smallISO())
				if tt.harm != nil {
					must(t, os.Chmod(imageOf(sub, 2), 0o640))
					tt.harm(t, imageOf(sub, 2))
				}
				p := tt.policy
				if p.Space == nil {
					p = plenty
				}
				r := examine(t, s, 2, p)
				lines := strings.Split(r.Summary(), "\n")
				if len(lines) != len(tt.want) {
					t.Fatalf("summary:\n%s", r.Summary())
				}
				for i, want := range tt.want {
					if !strings.Contains(lines[i], want) {
						t.Errorf("%q lacks %q", lines[i], want)
					}
				}
				if bad := strings.Contains(r.Summary(), "Image digest: FAILED"); get(t, s, 2).Care.Degraded != bad {
					t.Errorf("degraded: %t, want %t", !bad, bad)
				}
				if (r.Failed() != "") != tt.failed || r.Failed() != "" && !strings.Contains(r.Summary(), r.Failed()) {
					t.Errorf("failed: %q", r.Failed())
				}
			})
		}
	}
}

// The digest of images of any length is right, past the cache and through it.
func TestDigestSizes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openIn(t, dir)
	for n, size := range []int{1, 4095, 4096, 1 << 20, 3<<20 + 1, 2<<20 + 8192} {
		data := random(size)
		versioned(t, s, n, "1", data)
		img, err := slots.OpenImage(dir, 1)
		must(t, err)
		if got, err := img.Digest(t.Context(), nil); err != nil || got != sum(data) {
			t.Errorf("%d bytes: %s %v, want %s", size, got, err, sum(data))
		}
		ctx, stop := context.WithCancelCause(t.Context())
		stop(errors.ErrUnsupported)
		if _, err := img.Digest(ctx, nil); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("cancelled: %v", err)
		}
		must(t, img.Close())
		must(t, s.Delete(1))
	}
	_, err := slots.OpenImage(dir, 1)
	wantErr(t, err, slots.ErrEmpty)
}

// Whoever holds a slot is alone with it, and finds it as it was.
func TestHold(t *testing.T) {
	t.Parallel()
	s := openIn(t, t.TempDir())
	_, err := s.Hold(9)
	wantErr(t, err, slots.ErrUnknown)
	_, err = s.Hold(1)
	wantErr(t, err, slots.ErrEmpty)
	w := reserve(t, s, key(1), nil, 0)
	_, err = s.Hold(1)
	wantErr(t, err, slots.ErrEmpty)
	put(t, w, random(10))
	must(t, w.Abort())
	fill(t, s, 2, nil, random(100))
	release, err := s.Hold(1)
	must(t, err)
	wantErr(t, s.Delete(1), slots.ErrBusy)
	_, err = s.Hold(1)
	wantErr(t, err, slots.ErrBusy)
	release()
	must(t, s.Delete(1))

	// Delete against hold: one of them wins, and a held slot stays whole.
	for n := range 50 {
		fill(t, s, 10+n, ptr(1), random(100))
		var g sync.WaitGroup
		g.Go(func() {
			if err := s.Delete(1); err != nil && !errors.Is(err, slots.ErrBusy) {
				t.Error(err)
			}
		})
		g.Go(func() {
			release, err := s.Hold(1)
			if errors.Is(err, slots.ErrEmpty) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			if r, err := s.Test(t.Context(), 1, plenty); err != nil || r.Failed() != "" {
				t.Errorf("a held slot: %s %v", r.Summary(), err)
			}
		})
		g.Wait()
		if s.Valid(1) {
			must(t, s.Delete(1))
		}
	}
}

// Versions are compared through what the test says of a path.
func TestVersionPath(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		from, to string
		down     bool
	}{
		{"7.0.5", "7.0.10", false}, {"7.0.10", "7.0.5", true}, {"7.0", "7.0.0", false}, {"7.0.1", "7.0", true}, {"7.10", "7.9.9", true},
		{"v8.0", "7.9", true}, {"8.0-rc1", "8.0", false}, {"8.0", "8.0-rc1", false}, {"8.0.1 (build 7)", "8.0.0", true}, {"08.1", "8.1", false},
		{"99999999999999999999.1", "100000000000000000000.0", false}, {"SPS_7_0", "SPS_6_0", false}, {"7", "6", false}, {"1.2.3.x", "1.2.2", false},
	} {
		s := openIn(t, t.TempDir())
		versioned(t, s, 1, tt.from, random(10))
		must(t, s.SetBoot(ptr(1), nil))
		versioned(t, s, 2, tt.to, random(20))
		r := examine(t, s, 2, plenty)
		if got := r.Failed() != ""; got != tt.down {
			t.Errorf("%s to %s: %s", tt.from, tt.to, r.Summary())
		}
	}
}
