package store_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"slotfetch/store"
)

// expireRows are fetches that ended at t0 + n seconds, in another order than that of their arrival, and live ones between.
const expireRows = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
	INSERT INTO fetches (key, status, error, url, created_by, created_at, end_time)
	SELECT 'k' || i, iif(i % 2, 'failed', 'cancelled'), iif(i % 2, 'x', NULL), 'https://h/x', 'ann', 1, ?2 + 1000 * ((i * 7) % ?1) FROM n`

func TestExpire(t *testing.T) {
	t.Parallel()
	const rows = 501 // several transactions; 7 has no divisor with it
	for _, tc := range []struct {
		name      string
		old, keep int // seconds since t0, rows
		left      int
		why       string
	}{
		{"all stay", 0, 0, rows, ""},
		{"too old", 400, 0, rows - 400, "keep_age"},
		{"too many", 0, 3, 3, "keep_count"},
		{"as many", 0, rows, rows, ""},
		{"both", 500, 10, 1, "keep_age"},
		{"none", 1000, 1, 0, "keep_age"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s, _ := fresh(t)
			exec(t, s.Writer(), strings.NewReplacer("?1", fmt.Sprint(rows), "?2", fmt.Sprint(t0.UnixMilli())).Replace(expireRows))
			enqueue(t, s, "queued")
			enqueue(t, s, "running")
			if _, err := s.Reschedule("running", func(f store.Fetch) (store.Schedule, error) {
				f.Priority = 1
				return f.Schedule, nil
			}, nil, "", admin); err != nil {
				t.Fatal(err)
			}
			claim(t, s, "running")
			events := len(must[[]store.Event](t)(s.Events(t.Context(), 9)))
			var before time.Time
			if tc.old > 0 {
				before = t0.Add(time.Duration(tc.old) * time.Second)
			}
			n, err := s.Expire(before, tc.keep, t0.Add(rows*time.Second+store.Spared), admin)
			if err != nil || n != rows-tc.left {
				t.Fatalf("removed %d, %v", n, err)
			}
			left := 0
			for _, f := range all(t, s) {
				if !f.Status.Final() {
					continue
				}
				left++
				if age := f.EndTime.Sub(t0) / time.Second; int(age) < rows-tc.left {
					t.Errorf("%s, of second %d, is left", f.Key, age)
				}
			}
			if left != tc.left || len(all(t, s)) != left+2 {
				t.Errorf("%d are left of %d", left, len(all(t, s)))
			}
			list := must[[]store.Event](t)(s.Events(t.Context(), 1000))
			if len(list) != n+events {
				t.Errorf("%d events", len(list))
			}
			if e := list[0]; n > 0 && (e.Action != "fetch.expire" || e.Actor != "ann") || n > 0 && list[n-1].Detail != tc.why {
				t.Errorf("events %+v", list[:1])
			}
			if n, err := s.Expire(before, tc.keep, t0.Add(rows*time.Second+store.Spared), admin); n != 0 || err != nil {
				t.Errorf("again %d, %v", n, err)
			}
		})
	}
}

// What ended a moment ago stays, also where it is one too many or too old for the configuration; what ended in times that
// are still to come, by a clock that was wrong, does not.
func TestExpireSpares(t *testing.T) {
	t.Parallel()
	const rows = 501
	now := t0.Add(400 * time.Second)
	for name, tc := range map[string]struct {
		before time.Time
		keep   int
		want   int
	}{
		"too many": {time.Time{}, 1, 300 + 1},
		"too old":  {t0.Add(time.Hour), 0, 300},
	} {
		s, _ := fresh(t)
		exec(t, s.Writer(), strings.NewReplacer("?1", fmt.Sprint(rows), "?2", fmt.Sprint(t0.UnixMilli())).Replace(expireRows))
		if n, err := s.Expire(tc.before, tc.keep, now, admin); n != rows-tc.want || err != nil {
			t.Errorf("%s: removed %d, %v", name, n, err)
		}
		for _, f := range all(t, s) {
			if age := now.Sub(f.EndTime); age >= store.Spared {
				t.Errorf("%s: %s, which ended %s before, is left", name, f.Key, age)
			}
		}
		if n, err := s.Expire(tc.before, tc.keep, now.Add(time.Hour), admin); n != tc.want-tc.keep || err != nil {
			t.Errorf("%s: removed %d in the end, %v", name, n, err)
		}
	}
}
