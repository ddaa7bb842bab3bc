package slots_test

import (
	"os"
	"testing"

	"slotfetch/slots"
)

// TestDeleteImage: only the image that is meant is deleted.
func TestDeleteImage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openIn(t, dir)
	a, b := random(5000), random(5001)
	fill(t, s, 1, ptr(1), b)
	wantErr(t, s.DeleteImage(1, sum(a)), slots.ErrEmpty)
	if sl := get(t, s, 1); sl.Manifest == nil {
		t.Fatal("another image was deleted")
	}
	must(t, s.SetBoot(ptr(1), nil))
	wantErr(t, s.DeleteImage(1, sum(b)), slots.ErrProtected)
	must(t, s.SetBoot(nil, nil))
	must(t, s.DeleteImage(1, sum(b)))
	wantErr(t, s.DeleteImage(1, sum(b)), slots.ErrEmpty)
	fill(t, s, 2, ptr(1), b)
	must(t, os.Truncate(imageOf(dir, 1), 1))
	wantErr(t, s.DeleteImage(1, sum(b)), slots.ErrEmpty) // it is damaged
	must(t, s.Delete(1))
}
