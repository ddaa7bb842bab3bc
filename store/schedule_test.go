package store_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"slotfetch/store"
)

// reschedule changes the fetch key by what change does to its schedule.
func reschedule(s *store.Store, key string, change func(*store.Schedule), place *store.Place) (store.Fetch, error) {
	return s.Reschedule(key, func(f store.Fetch) (store.Schedule, error) {
		if change != nil {
			change(&f.Schedule)
		}
		return f.Schedule, nil
	}, place, "test", admin)
}

// queue is the keys whose turn may come, in its order.
func queue(t *testing.T, s *store.Store) string {
	t.Helper()
	places := must[map[int64]int](t)(s.Positions(t.Context()))
	keys := make([]string, len(places))
	ok(t, s.Fetches(t.Context(), func(f store.Fetch) error {
		if n := places[f.Seq]; n > 0 {
			keys[n-1] = f.Key
		}
		return nil
	}))
	return strings.Join(keys, "")
}

func TestOrder(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	for _, key := range "abcde" {
		enqueue(t, s, string(key))
	}
	priority := func(p int) func(*store.Schedule) { return func(c *store.Schedule) { c.Priority = p } }
	paused := func(p bool) func(*store.Schedule) { return func(c *store.Schedule) { c.Paused = p } }
	for _, step := range []struct {
		key    string
		change func(*store.Schedule)
		place  *store.Place
		want   string
	}{
		{"d", nil, &store.Place{First: true}, "dabce"},
		{"a", nil, &store.Place{Last: true}, "dbcea"},
		{"a", nil, &store.Place{Before: "c"}, "dbace"},
		{"e", nil, &store.Place{Before: "d"}, "edbac"},
		{"c", priority(5), nil, "cedba"},
		{"b", nil, &store.Place{Before: "c"}, "bceda"},         // takes its priority
		{"a", priority(5), &store.Place{First: true}, "abced"}, // among those of its new priority
		{"b", priority(-1), nil, "acedb"},
		{"c", paused(true), nil, "aedb"},
		{"c", paused(false), nil, "acedb"},
	} {
		must[store.Fetch](t)(reschedule(s, step.key, step.change, step.place))
		if got := queue(t, s); got != step.want {
			t.Fatalf("%+v: %s, want %s", step, got, step.want)
		}
		for i, key := range step.want {
			if n := must[int](t)(s.Position(t.Context(), string(key))); n != i+1 {
				t.Errorf("%c is %d of %s", key, n, step.want)
			}
		}
	}
	must[store.Fetch](t)(reschedule(s, "d", nil, &store.Place{Last: true}))
	enqueue(t, s, "f") // behind those of its priority that were here, before the lower one
	for _, key := range "acedfb" {
		claim(t, s, string(key))
	}
}

// Whoever is moved to the end stays before what comes later, however often that happens.
func TestLastIsNotAfterTheNext(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	for _, key := range "ab" {
		enqueue(t, s, string(key))
	}
	for i := range 80 {
		must[store.Fetch](t)(reschedule(s, string("ab"[i%2]), nil, &store.Place{Last: true}))
	}
	for _, key := range "cd" {
		enqueue(t, s, string(key))
	}
	if got := queue(t, s); got != "abcd" {
		t.Errorf("got %s", got)
	}
}

// TestOrderHalves moves two by turns before a third until halving has used up the numbers between.
func TestOrderHalves(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	for _, key := range "abc" {
		enqueue(t, s, string(key))
	}
	for i := range 120 {
		key, want := "a", "bac"
		if i%2 == 1 {
			key, want = "b", "abc"
		}
		must[store.Fetch](t)(reschedule(s, key, nil, &store.Place{Before: "c"}))
		if got := queue(t, s); got != want {
			t.Fatalf("after %d moves it is %s, want %s", i+1, got, want)
		}
	}
}

func TestReschedule(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	free := map[string]bool{"queued": true, "downloading": true, "waiting": true, "verifying": true}
	for _, state := range states {
		for _, place := range []*store.Place{nil, {Last: true}} {
			arrive(t, s, state)
			f, err := reschedule(s, "k", func(c *store.Schedule) { c.RateLimit = 5000 }, place)
			switch want := free[state] && (place == nil || state == "queued"); {
			case state == "missing" && !errors.Is(err, store.ErrNotFound),
				state != "missing" && !want && !errors.Is(err, store.ErrConflict),
				want && (err != nil || f.RateLimit != 5000):
				t.Errorf("%s, %v: %+v, %v", state, place, f, err)
			}
		}
	}
	arrive(t, s, "queued")
	if _, err := reschedule(s, "k", nil, &store.Place{Before: "nobody"}); !errors.Is(err, store.ErrNoPlace) {
		t.Error(err)
	}
	if _, err := reschedule(s, "k", nil, &store.Place{Before: "k"}); !errors.Is(err, store.ErrNoPlace) {
		t.Error(err)
	}
	bad := errors.New("no")
	if _, err := s.Reschedule("k", func(store.Fetch) (store.Schedule, error) { return store.Schedule{}, bad }, nil, "", admin); !errors.Is(err, bad) {
		t.Error(err)
	}
	must[store.Fetch](t)(reschedule(s, "k", nil, nil))
	if e := must[[]store.Event](t)(s.Events(t.Context(), 1))[0]; e.Action != "fetch.change" || e.Object != "k" || e.Detail != "test" {
		t.Errorf("the audit has %+v", e)
	}
}

// A final fetch has nothing left of its schedule but what was asked for.
func TestScheduleEnds(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	arrive(t, s, "queued")
	must[store.Fetch](t)(reschedule(s, "k", func(c *store.Schedule) {
		*c = store.Schedule{Priority: 3, Paused: true, NotBefore: t0, Window: "22:00-04:00", EligibleAt: t0, RateLimit: 4096}
	}, nil))
	_, f, err := s.Delete("k", admin)
	ok(t, err)
	equal(t, store.Schedule{Priority: 3, NotBefore: t0, Window: "22:00-04:00", RateLimit: 4096}, f.Schedule)
}

func TestEligible(t *testing.T) {
	t.Parallel()
	now := t0
	s := must[*store.Store](t)(store.Open(filepath.Join(t.TempDir(), "slotfetch.db"), store.Options{Now: func() time.Time { return now }}))
	defer s.Close()
	for i, key := range "abc" {
		enqueue(t, s, string(key))
		if i > 0 {
			ok(t, s.Postpone(map[string]time.Time{string(key): t0.Add(time.Duration(i) * time.Hour)}))
		}
	}
	claim(t, s, "a")
	if f, found, err := s.Claim(); found || err != nil {
		t.Fatalf("nobody's time has come, but %v, %v", f.Key, err)
	}
	next := func(want time.Time, some bool) {
		t.Helper()
		if at, found, err := s.NextEligible(t.Context()); err != nil || found != some || !at.Equal(want) {
			t.Errorf("next at %v, %v, %v", at, found, err)
		}
	}
	next(t0.Add(time.Hour), true)
	now = t0.Add(time.Hour)
	claim(t, s, "b")
	next(t0.Add(2*time.Hour), true)
	must[store.Fetch](t)(reschedule(s, "c", func(c *store.Schedule) { c.Paused = true }, nil))
	next(time.Time{}, false)
	must[store.Fetch](t)(reschedule(s, "c", func(c *store.Schedule) { c.Paused, c.EligibleAt = false, time.Time{} }, nil))
	claim(t, s, "c")
}

func TestSetDigest(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	must[store.Fetch](t)(s.Enqueue(store.Fetch{Key: "k", URL: "https://h/a.iso", ChecksumURL: "https://h/SHA256SUMS"}, admin))
	if _, err := s.SetDigest("k", "aa", nil); !errors.Is(err, store.ErrConflict) {
		t.Error("a queued fetch takes a digest:", err)
	}
	claim(t, s, "k")
	for range 2 { // a COMMIT that reports an error may be durable
		if f, err := s.SetDigest("k", "aa", ptr(true)); err != nil || f.SHA256 != "aa" || f.TLSVerify == nil || !*f.TLSVerify || f.ChecksumURL != "https://h/SHA256SUMS" {
			t.Errorf("got %+v, %v", f, err)
		}
	}
	if _, err := s.SetDigest("k", "bb", nil); !errors.Is(err, store.ErrConflict) {
		t.Error("another digest is taken:", err)
	}
}

// TestClaimScales looks at the plan: the order has to come from the index, however long the queue is.
func TestClaimScales(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	rows, err := s.Writer().Query(`EXPLAIN QUERY PLAN SELECT seq FROM fetches WHERE status = 'queued' AND paused = 0 AND coalesce(eligible_at, 0) <= 1
		ORDER BY priority DESC, coalesce(rank, seq), seq LIMIT 1`)
	ok(t, err)
	defer rows.Close()
	plan := ""
	for rows.Next() {
		var id, parent, none int
		var detail string
		ok(t, rows.Scan(&id, &parent, &none, &detail))
		plan += fmt.Sprintln(detail)
	}
	if !strings.Contains(plan, "fetches_queue") || strings.Contains(plan, "TEMP B-TREE") {
		t.Error(plan)
	}
}
