package slots_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"slotfetch/slots"
)

// TestPreview holds Preview against what Reserve then does, and finds the directory as it was.
func TestPreview(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	names := func() (all []string) {
		must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			all = append(all, path)
			return err
		}))
		return all
	}
	same := func(what string, want *int) {
		t.Helper()
		before := names()
		for range 2 { // nothing is taken by looking
			id, err := s.Preview(want)
			if after := names(); !slices.Equal(before, after) {
				t.Errorf("%s: it left %v of %v", what, after, before)
			}
			w, rerr := s.Reserve(key(9), want, 0)
			if rerr == nil {
				if w.Slot() != id || err != nil {
					t.Errorf("%s: slot %d, %v; Reserve takes %d", what, id, err, w.Slot())
				}
				must(t, w.Abort())
				continue
			}
			for _, kind := range []error{slots.ErrNoEmpty, slots.ErrOccupied, slots.ErrProtected, slots.ErrUnknown, slots.ErrBoot} {
				if errors.Is(err, kind) != errors.Is(rerr, kind) {
					t.Errorf("%s: %v, but Reserve %v", what, err, rerr)
				}
			}
		}
	}
	same("empty box", nil)
	same("no such slot", ptr(6))
	fill(t, s, 1, nil, []byte("one"))
	same("slot 1 is full", nil)
	same("slot 1 wanted", ptr(1))
	must(t, s.SetBoot(ptr(2), nil))
	same("slot 2 is protected", nil)
	same("slot 2 wanted", ptr(2))
	w := reserve(t, s, key(1), nil, 0)
	same("slot 3 is reserved", nil)
	same("slot 3 wanted", ptr(3))
	must(t, w.Abort())
	for n := 3; n <= 5; n++ {
		fill(t, s, n, nil, []byte("more"))
	}
	same("full box", nil)
	must(t, os.WriteFile(filepath.Join(dir, "boot.json"), []byte("{"), 0o600))
	same("boot.json is damaged", nil)
}
