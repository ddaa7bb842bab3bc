package store_test

import (
	"maps"
	"testing"

	"slotfetch/store"
)

func TestCounts(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	counts := func() map[store.Status]int64 {
		t.Helper()
		n, err := s.Counts(t.Context())
		ok(t, err)
		return n
	}
	if n := counts(); len(n) != 0 {
		t.Errorf("an empty queue has %v", n)
	}
	for _, key := range []string{"a", "b", "c"} {
		_, err := s.Enqueue(store.Fetch{Key: key, URL: "https://h/x"}, admin)
		ok(t, err)
	}
	_, _, err := s.Claim()
	ok(t, err)
	_, err = s.Fail("a", "digest", "Wrong file.", 1, 2, nil)
	ok(t, err)
	if n := counts(); !maps.Equal(n, map[store.Status]int64{store.Queued: 2, store.Failed: 1}) {
		t.Errorf("got %v", n)
	}
}
