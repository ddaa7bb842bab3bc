package fetch_test

import (
	"testing"
	"time"

	"slotfetch/fetch"
)

// TestRetryDelay: whatever is configured, the pause doubles up to its bound and is never negative.
func TestRetryDelay(t *testing.T) {
	for _, tt := range []struct {
		initial, most time.Duration
		round         int
		asked         time.Duration
		low, high     time.Duration
	}{
		{time.Second, 2 * time.Minute, 1, 0, time.Second / 2, time.Second},
		{time.Second, 2 * time.Minute, 4, 0, 4 * time.Second, 8 * time.Second},
		{time.Second, 2 * time.Minute, 8, 0, time.Minute, 2 * time.Minute},
		{time.Second, 2 * time.Minute, 1 << 40, 0, time.Minute, 2 * time.Minute},
		{3 * time.Hour, 2 * time.Minute, 21, 0, time.Minute, 2 * time.Minute},
		{3 * time.Hour, 1 << 62, 30, 0, 1 << 61, 1 << 62},
		{1, 1, 1, 0, 0, 1},
		{time.Second, time.Minute, 1, 10 * time.Minute, 10 * time.Minute, 10 * time.Minute},
	} {
		for range 100 {
			if got := (fetch.Retry{Rounds: 1, Initial: tt.initial, Max: tt.most}).Delay(tt.round, tt.asked); got < tt.low || got > tt.high {
				t.Errorf("%+v: got %s", tt, got)
				break
			}
		}
	}
}
