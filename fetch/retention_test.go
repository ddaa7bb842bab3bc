package fetch_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/store"
)

// keys are those of all fetches, oldest first.
func (b *box) keys() (keys []string) {
	b.t.Helper()
	if err := b.fetch.Each(context.Background(), func(f store.Fetch) error {
		keys = append(keys, f.Key)
		return nil
	}); err != nil {
		b.t.Fatal(err)
	}
	return keys
}

// has waits until the list is these.
func (b *box) has(want ...string) {
	b.t.Helper()
	for end := time.Now().Add(fetchtest.Patience); !slices.Equal(b.keys(), want); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("the list is %v, want %v", b.keys(), want)
		}
	}
}

// The list keeps the newest of the ended fetches, applied at each end and at the start, and all that live.
func TestRetention(t *testing.T) {
	t.Parallel()
	srv := fetchtest.NewHTTP(t, nil)
	gone := srv.Handle("/gone.iso", fetchtest.Status(404))
	sum := fetchtest.NewImage(1, 1).SHA256()
	b := newBox(t, t.TempDir(), nil)
	var keys []string
	one := func() {
		key := b.enqueue(gone, sum)
		b.until(key, final)
		keys = append(keys, key)
	}
	for range 4 {
		one()
	}
	b.has(keys...)
	b.close()
	b = newBox(t, b.dir, func(c *fetch.Config) { c.KeepCount = 2 })
	key := b.enqueue(gone, sum)
	b.until(key, final)
	b.has(append(slices.Clone(keys), key)...) // none of them ended long ago
	keys = append(keys, key)[1:]
	if _, _, err := b.fetch.Delete(t.Context(), b.keys()[0], admin); err != nil {
		t.Fatal(err)
	}
	b.close()
	b = newBox(t, b.dir, func(c *fetch.Config) {
		c.KeepCount, c.Now = 2, func() time.Time { return time.Now().Add(store.Spared + time.Second) }
	})
	b.has(keys[2:]...) // at the start
	_, slow := stalled(t, fetchtest.NewImage(2, 4<<20))
	live := b.enqueue(slow, sum)
	b.arrives(live, 1)
	b.has(append(slices.Clone(keys[2:]), live)...)
	if _, _, err := b.fetch.Delete(t.Context(), live, admin); err != nil {
		t.Fatal(err)
	}
	b.has(keys[3], live) // at an end
	b.close()
	b = newBox(t, b.dir, func(c *fetch.Config) {
		c.KeepAge, c.Now = time.Hour, func() time.Time { return time.Now().Add(time.Hour) }
	})
	b.has()
	events, err := b.store.Events(t.Context(), 100)
	if err != nil {
		t.Fatal(err)
	}
	why := map[string]int{}
	for _, e := range events {
		if e.Action == "fetch.expire" {
			why[e.Actor+" "+e.Detail]++
		}
	}
	if why["slotfetchd keep_count"] != 3 || why["slotfetchd keep_age"] != 2 || len(why) != 2 {
		t.Errorf("audit %v", why)
	}
}
