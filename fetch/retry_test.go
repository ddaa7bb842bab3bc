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
		{time.Second, 2 * time.Minute, 1, 0, time.Second / 10, time.Second},
		{time.Second, 2 * time.Minute, 4, 0, 800 * time.Millisecond, 8 * time.Second},
		{time.Second, 2 * time.Minute, 8, 0, 12 * time.Second, 2 * time.Minute},
		{time.Second, 2 * time.Minute, 1 << 40, 0, 12 * time.Second, 2 * time.Minute},
		{3 * time.Hour, 2 * time.Minute, 21, 0, 12 * time.Second, 2 * time.Minute},
		{3 * time.Hour, 1 << 62, 30, 0, 1 << 58, 1 << 62},
		{1, 1, 1, 0, 0, 1},
		{time.Second, time.Minute, 1, 10 * time.Minute, 10 * time.Minute, 11 * time.Minute},
	} {
		for range 100 {
			if got := (fetch.Retry{Rounds: 1, Initial: tt.initial, Max: tt.most}).Delay(tt.round, tt.asked); got < tt.low || got > tt.high {
				t.Errorf("%+v: got %s", tt, got)
				break
			}
		}
	}
}

// TestTour: which of three candidates is asked next, after which pause, and when it is enough.
func TestTour(t *testing.T) {
	const kib = 1 << 10
	fails, asks, gone := fetch.Step{}, fetch.Step{RetryAfter: time.Hour}, fetch.Step{Gone: true}
	far := func(offset int64) fetch.Step { return fetch.Step{Offset: offset} }
	for _, tt := range []struct {
		name  string
		retry fetch.Retry
		steps []fetch.Step
		want  string
	}{
		{"in turn, with a pause after a round", fetch.Retry{Rounds: 3}, []fetch.Step{fails, fails, fails, fails, fails, fails}, "1 2 0+ 1 2 0+"},
		{"enough after so many rounds", fetch.Retry{Rounds: 2}, []fetch.Step{fails, fails, fails, fails, fails, fails}, "1 2 0+ 1 2 end"},
		{"progress stays, and counts anew", fetch.Retry{Rounds: 2}, []fetch.Step{fails, fails, fails, far(64 * kib), far(128 * kib), fails, fails, fails, fails, fails},
			"1 2 0+ 0+ 0+ 1 2 0+ 1 2"},
		{"progress of a later one, and then none", fetch.Retry{Rounds: 2}, []fetch.Step{fails, far(64 * kib), far(64 * kib), far(64 * kib), far(64 * kib)}, "1 1+ 2 0+ 1"},
		{"too little progress is none", fetch.Retry{Rounds: 2}, []fetch.Step{far(64*kib - 1), far(64*kib + 1), far(64*kib + 2)}, "1 1+ 2"},
		{"what is gone is left out", fetch.Retry{Rounds: 9}, []fetch.Step{fails, gone, fails, fails, fails}, "1 2 0+ 2 0+"},
		{"a pause also where the last one is gone", fetch.Retry{Rounds: 9}, []fetch.Step{fails, fails, gone, fails}, "1 2 0+ 1"},
		{"all gone", fetch.Retry{Rounds: 9}, []fetch.Step{gone, gone, gone}, "1 2 end"},
		{"who asked for time gets it from the others", fetch.Retry{Rounds: 9}, []fetch.Step{asks, fails, fails, fails, fails}, "1 2 1+ 2 1+"},
		{"and its tries in the end", fetch.Retry{Rounds: 3}, []fetch.Step{asks, fails, fails, fails, fails, fails, fails, asks, asks, fails}, "1 2 1+ 2 1+ 2 0h 0h end"},
		{"and is waited for where there is nobody else", fetch.Retry{Rounds: 9}, []fetch.Step{asks, gone, gone}, "1 2 0h"},
		{"the one that asked for less time", fetch.Retry{Rounds: 9}, []fetch.Step{{RetryAfter: 4 * time.Hour}, asks, {RetryAfter: 2 * time.Hour}}, "1 2 1h"},
		{"a partial is kept for longer", fetch.Retry{Rounds: 1, Keep: time.Hour}, []fetch.Step{far(80 * kib), far(80 * kib), far(80 * kib), {Offset: 80 * kib, After: 30 * time.Minute},
			{Offset: 80 * kib, After: 31 * time.Minute}}, "0+ 1 2 0+ end"},
		{"nothing is not", fetch.Retry{Rounds: 1, Keep: time.Hour}, []fetch.Step{fails, fails, fails}, "1 2 end"},
		{"nor what nobody can continue", fetch.Retry{Rounds: 1, Keep: time.Hour}, []fetch.Step{{Offset: 80 * kib, Useless: true}, {Useless: true, Offset: 80 * kib}, {Useless: true, Offset: 80 * kib},
			{Useless: true, Offset: 80 * kib}}, "0+ 1 2 end"},
		{"nor what only one that is gone could", fetch.Retry{Rounds: 1, Keep: time.Hour}, []fetch.Step{far(80 * kib), {Offset: 80 * kib, Gone: true}, far(80 * kib), far(80 * kib)}, "0+ 1 2 end"},
		{"another file has a progress of its own", fetch.Retry{Rounds: 1}, []fetch.Step{far(900 * kib), {Offset: 100 * kib, Anew: true}, far(200 * kib), fails}, "0+ 0+ 0+ 1"},
		{"one that is another each time has not", fetch.Retry{Rounds: 2}, []fetch.Step{far(90 * kib), {Offset: 90 * kib, Anew: true}, {Offset: 90 * kib, Anew: true}, {Offset: 90 * kib, Anew: true},
			{Offset: 90 * kib, Anew: true}}, "0+ 0+ 0+ 1 2"},
	} {
		tt.retry.Initial, tt.retry.Max = time.Minute, time.Minute
		if got := fetch.Walk(tt.retry, 3, tt.steps); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
