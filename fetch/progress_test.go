package fetch_test

import (
	"sync/atomic"
	"testing"
	"time"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/store"
)

// TestRateOfStall: when nothing has come for longer than the rate is taken over, the rate is 0, and no time left is known.
func TestRateOfStall(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(76, 4<<20)
	stall := fetchtest.Whole(img)
	stall.Fault, stall.After = fetchtest.Stall, 2<<20
	var later atomic.Int64
	b := newBox(t, t.TempDir(), func(c *fetch.Config) { c.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) } })
	key := b.enqueue(fetchtest.NewHTTP(t, nil).Handle("/a.iso", stall.Serve), img.SHA256())
	b.arrives(key, stall.After)
	rate := func() int64 {
		t.Helper()
		f := b.get(key)
		if f.Phase != store.Downloading || f.BytesPerSecond == nil {
			t.Fatalf("it is %+v", f)
		}
		return *f.BytesPerSecond
	}
	if rate() <= 0 {
		t.Errorf("at first %d bytes a second", rate())
	}
	later.Store(int64(6 * time.Second))
	if rate() != 0 {
		t.Errorf("%d bytes a second, but nothing came for six", rate())
	}
}
