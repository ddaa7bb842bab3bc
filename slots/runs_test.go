package slots_test

import (
	"os"
	"path/filepath"
	"testing"

	"slotfetch/slots"
)

// TestRuns: the slot that runs is protected without boot.json, if there is an image in it; an empty one is as good as any.
func TestRuns(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir)
	s.Runs(1)
	if current, _, err := s.Boot(); err != nil || current != nil {
		t.Errorf("an empty slot runs: %v, %v", current, err)
	}
	if id := fill(t, s, 1, nil, random(5000)); id != 1 {
		t.Fatalf("slot %d was filled", id)
	}
	if current, next, err := s.Boot(); err != nil || current == nil || *current != 1 || next == nil || *next != 1 {
		t.Errorf("%v, %v, %v", current, next, err)
	}
	two := 2
	must(t, s.SetBoot(&two, nil))
	if current, _, _ := s.Boot(); current == nil || *current != 2 {
		t.Errorf("what boot.json says does not count: %v", current)
	}
	must(t, os.Remove(filepath.Join(dir, "boot.json")))
	wantErr(t, s.Delete(1), slots.ErrProtected)
}
