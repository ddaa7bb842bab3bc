package slots_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"slotfetch/slots"
)

// key makes the n-th fetch key.
func key(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012x", n) }

func ptr(n int) *int { return &n }

func openIn(t testing.TB, dir string, change ...func(*slots.Config)) *slots.Slots {
	t.Helper()
	cfg := slots.Config{Dir: dir, First: 1, Count: 5, Log: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&cfg)
	}
	s, err := slots.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func reserve(t testing.TB, s *slots.Slots, k string, want *int, off int64) *slots.Writer {
	t.Helper()
	w, err := s.Reserve(k, want, off)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Abort() })
	return w
}

func random(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	return data
}

func sum(data []byte) string {
	d := sha256.Sum256(data)
	return hex.EncodeToString(d[:])
}

// put writes data in page-aligned pieces, as the pipeline does.
func put(t testing.TB, w *slots.Writer, data []byte) {
	t.Helper()
	bufs, release, err := slots.Buffers(1)
	must(t, err)
	defer func() { must(t, release()) }()
	for len(data) > 0 {
		n := copy(bufs[0], data)
		m, err := w.Write(bufs[0][:n])
		if err != nil || m != n {
			t.Fatalf("wrote %d of %d: %v", m, n, err)
		}
		data = data[n:]
	}
}

// fill commits data to a slot.
func fill(t testing.TB, s *slots.Slots, n int, want *int, data []byte) int {
	t.Helper()
	w := reserve(t, s, key(n), want, 0)
	put(t, w, data)
	id, err := w.Commit(slots.Manifest{Name: "fw.iso", SHA256: sum(data), Version: "1"})
	must(t, err)
	return id
}

func imageOf(dir string, id int) string { return filepath.Join(dir, fmt.Sprint(id), "image") }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestReserve(t *testing.T) {
	s := openIn(t, t.TempDir())
	a := reserve(t, s, key(1), nil, 0)
	if a.Slot() != 1 {
		t.Errorf("slot %d, want the lowest", a.Slot())
	}
	_, err := s.Reserve(key(2), ptr(1), 0)
	wantErr(t, err, slots.ErrOccupied)
	_, err = s.Reserve(key(1), nil, 0)
	wantErr(t, err, slots.ErrReserved)
	for _, id := range []int{-1, 0, 6} {
		_, err = s.Reserve(key(2), ptr(id), 0)
		wantErr(t, err, slots.ErrUnknown)
	}
	if w := reserve(t, s, key(3), ptr(3), 0); w.Slot() != 3 {
		t.Errorf("slot %d, want 3", w.Slot())
	}
	wantErr(t, s.Delete(3), slots.ErrReserved)
	wantErr(t, s.RemovePartial(key(3)), slots.ErrReserved)
	if id := fill(t, s, 4, nil, []byte("x")); id != 2 {
		t.Errorf("slot %d, want 2", id)
	}
	_, err = s.Reserve(key(5), ptr(2), 0)
	wantErr(t, err, slots.ErrOccupied)
	reserve(t, s, key(5), nil, 0)
	reserve(t, s, key(6), nil, 0)
	_, err = s.Reserve(key(7), nil, 0)
	wantErr(t, err, slots.ErrNoEmpty)
	must(t, a.Abort())
	if w := reserve(t, s, key(7), nil, 0); w.Slot() != 1 {
		t.Errorf("slot %d, want the one given free", w.Slot())
	}
	list, err := s.List()
	must(t, err)
	if len(list) != 5 || !list[0].Reserved || list[0].Manifest != nil || list[1].Manifest == nil || list[1].Reserved {
		t.Errorf("list %+v", list)
	}
	for _, bad := range []string{"", "../../etc/passwd", strings.ToUpper("aaaaaaaa-0000-4000-8000-000000000000"),
		"0000000000004000-8000-0000-000000000000", key(1) + "-", key(1)[:35] + "/"} {
		if _, err := s.Reserve(bad, nil, 0); err == nil {
			t.Errorf("took key %q", bad)
		}
	}
}

func TestReserveConcurrently(t *testing.T) {
	s := openIn(t, t.TempDir(), func(c *slots.Config) { c.Count = 8 })
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := map[int]bool{}
	full := 0
	for i := range 20 {
		wg.Go(func() {
			w, err := s.Reserve(key(i), nil, 0)
			if _, lerr := s.List(); lerr != nil {
				t.Error(lerr)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, slots.ErrNoEmpty):
				full++
				return
			case err != nil:
				t.Error(err)
				return
			case got[w.Slot()]:
				t.Errorf("slot %d twice", w.Slot())
			}
			got[w.Slot()] = true
		})
	}
	wg.Wait()
	if len(got) != 8 || full != 12 {
		t.Errorf("%d reserved, %d refused", len(got), full)
	}
}

// TestConcurrentLife runs whole lives side by side while others look: no slot may ever seem damaged.
func TestConcurrentLife(t *testing.T) {
	s := openIn(t, t.TempDir(), func(c *slots.Config) { c.Count = 3 })
	stop := make(chan struct{})
	var watch, work sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			list, err := s.List()
			if err != nil {
				t.Error(err)
				return
			}
			for _, sl := range list {
				if sl.Damaged {
					t.Errorf("slot %d seems damaged", sl.ID)
				}
			}
		}
	})
	data := random(5000)
	for i := range 3 {
		work.Go(func() {
			for range 10 {
				w, err := s.Reserve(key(i), nil, 0)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = w.Write(data)
				id, cerr := w.Commit(slots.Manifest{SHA256: sum(data)})
				if err := errors.Join(err, cerr, s.Delete(id)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	close(stop)
	watch.Wait()
}

func TestCommitSizes(t *testing.T) {
	for _, buffered := range []bool{false, true} {
		for _, size := range []int{0, 1, 4095, 4096, 1<<20 + 1, 3<<20 + 17, 33 << 20} {
			t.Run(fmt.Sprintf("%v/%d", buffered, size), func(t *testing.T) {
				dir := t.TempDir()
				s := openIn(t, dir, func(c *slots.Config) { c.Buffered = buffered })
				data := random(size)
				w := reserve(t, s, key(1), ptr(2), 0)
				must(t, w.Expect(int64(size)+1<<20)) // more than comes: the rest must be given back
				put(t, w, data)
				must(t, w.Sync())
				if again, err := io.ReadAll(w.Prefix()); err != nil || !bytes.Equal(again, data) {
					t.Errorf("prefix differs: %v", err)
				}
				id, err := w.Commit(slots.Manifest{SHA256: sum(data), Name: "a.iso"})
				if err != nil || id != 2 {
					t.Fatalf("slot %d: %v", id, err)
				}
				got, err := os.ReadFile(imageOf(dir, 2))
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("image differs: %v", err)
				}
				info, err := os.Stat(imageOf(dir, 2))
				must(t, err)
				if info.Mode() != 0o440 {
					t.Errorf("mode %v", info.Mode())
				}
				sl, ok := s.FindKey(key(1))
				if !ok || sl.ID != 2 || sl.Manifest.Size != int64(size) || sl.Manifest.FetchedAt.IsZero() || !s.Valid(2) {
					t.Errorf("slot %+v", sl)
				}
				if left, err := s.Partials(); err != nil || len(left) != 0 {
					t.Errorf("partials %v, %v", left, err)
				}
				must(t, w.Abort()) // and does nothing
				if !s.Valid(2) {
					t.Error("Abort after Commit took the slot away")
				}
			})
		}
	}
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	w := reserve(t, s, key(1), nil, 0)
	put(t, w, random(2<<20+5))
	must(t, w.Restart())
	if w.Offset() != 0 {
		t.Errorf("offset %d", w.Offset())
	}
	put(t, w, []byte("new"))
	_, err := w.Commit(slots.Manifest{SHA256: sum([]byte("new"))})
	must(t, err)
	if got, _ := os.ReadFile(imageOf(dir, 1)); string(got) != "new" {
		t.Errorf("image %q", got)
	}
	if err := w.Restart(); err == nil {
		t.Error("restarted a committed writer")
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("wrote to a committed writer")
	}
}

func TestSuspendAndResume(t *testing.T) {
	data := random(3<<20 + 17)
	for _, at := range []int64{1, 4096, 1 << 20, 1<<20 + 3} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			dir := t.TempDir()
			s := openIn(t, dir)
			w := reserve(t, s, key(1), nil, 0)
			put(t, w, data[:2<<20])
			must(t, w.Suspend())
			must(t, w.Suspend())
			must(t, w.Abort())
			must(t, s.Close())

			// as if a Commit had been cut short after its chmod
			must(t, os.Chmod(filepath.Join(dir, ".part", key(1)+".partial"), 0o440))
			s = openIn(t, dir)
			if keys, err := s.Partials(); err != nil || len(keys) != 1 || keys[0] != key(1) {
				t.Fatalf("partials %v, %v", keys, err)
			}
			w = reserve(t, s, key(1), nil, at)
			if w.Offset() != at {
				t.Fatalf("offset %d, want %d", w.Offset(), at)
			}
			put(t, w, data[at:])
			_, err := w.Commit(slots.Manifest{SHA256: sum(data)})
			must(t, err)
			if got, _ := os.ReadFile(imageOf(dir, 1)); !bytes.Equal(got, data) {
				t.Error("image differs")
			}
		})
	}
	s := openIn(t, t.TempDir())
	w := reserve(t, s, key(1), nil, 0)
	put(t, w, data[:100])
	must(t, w.Suspend())
	if w = reserve(t, s, key(1), nil, 101); w.Offset() != 0 {
		t.Errorf("offset %d of a partial that is too short", w.Offset())
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	w := reserve(t, s, key(1), nil, 0)
	put(t, w, random(5000))
	if _, err := w.Commit(slots.Manifest{SHA256: "nonsense"}); err == nil {
		t.Fatal("committed a bad manifest")
	}
	must(t, w.Abort())
	must(t, w.Abort())
	if keys, _ := s.Partials(); len(keys) != 0 || exists(imageOf(dir, 1)) {
		t.Error("something is left")
	}
	must(t, s.RemovePartial(key(1)))
}

func TestCommitNeverOverwrites(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	w := reserve(t, s, key(1), nil, 0)
	put(t, w, []byte("ours"))
	must(t, os.Mkdir(filepath.Join(dir, "1"), 0o700))
	must(t, os.WriteFile(imageOf(dir, 1), []byte("theirs"), 0o600))
	_, err := w.Commit(slots.Manifest{SHA256: sum(nil)})
	wantErr(t, err, slots.ErrOccupied)
	must(t, w.Abort())
	if got, _ := os.ReadFile(imageOf(dir, 1)); string(got) != "theirs" {
		t.Errorf("image %q", got)
	}
}

func TestSpace(t *testing.T) {
	s := openIn(t, t.TempDir(), func(c *slots.Config) { c.Reserve = 1 << 62 })
	if free, err := s.Free(); free != 0 || err != nil {
		t.Errorf("free %d, %v", free, err)
	}
	w := reserve(t, s, key(1), nil, 0)
	var space *slots.SpaceError
	if err := w.Expect(123); !errors.As(err, &space) || space.Needed != 123 || space.Free != 0 {
		t.Errorf("expect: %v", err)
	}
	if space.Error() != "Not enough space: needs 123 bytes, 0 are free" {
		t.Error(space)
	}
	if n, err := w.Write([]byte("x")); n != 0 || !errors.As(err, &space) {
		t.Errorf("write: %d, %v", n, err)
	}
}
