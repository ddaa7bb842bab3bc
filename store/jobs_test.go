package store_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"slotfetch/store"
)

func TestJobs(t *testing.T) {
	t.Parallel()
	now := t0
	s, err := store.Open(filepath.Join(t.TempDir(), "slotfetch.db"), store.Options{Now: func() time.Time { return now }})
	ok(t, err)
	t.Cleanup(func() { ok(t, s.Close()) })
	alice := store.Actor{Name: "alice", Address: "192.0.2.1"}
	want := store.Job{Seq: 1, ID: "a", Description: "PATCH /api/cluster/software", State: store.JobRunning, Message: "Testing", CreatedBy: "alice", StartTime: t0}
	equal(t, want, must[store.Job](t)(s.AddJob(want, alice)))
	done := store.Job{ID: "b", Description: "DELETE /api/cluster/software/packages/9", State: store.JobSuccess, Message: "success"}
	_, err = s.AddJob(done, store.Actor{Name: "alice", Address: "192.0.2.1", App: "ansible/9"})
	ok(t, err)
	if _, err := s.AddJob(done, alice); err == nil {
		t.Error("an id was used twice")
	}
	equal(t, store.Event{At: t0, Actor: "alice", Address: "192.0.2.1", Action: "job.add", Object: "b", Detail: done.Description + " app=ansible/9"},
		must[[]store.Event](t)(s.Events(t.Context(), 1))[0])

	now = now.Add(time.Minute)
	want.State, want.Code, want.Message, want.EndTime = store.JobFailure, 7, "The test said no.", t0.Add(time.Minute)
	equal(t, want, must[store.Job](t)(s.EndJob("a", store.JobFailure, 7, "The test said no.", now)))
	for _, id := range []string{"a", "b", "c"} {
		if _, err := s.EndJob(id, store.JobSuccess, 0, "success", now); !errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: %v, want a conflict", id, err)
		}
	}
	equal(t, want, must[store.Job](t)(s.Job(t.Context(), "a")))
	if _, err := s.Job(t.Context(), "c"); !errors.Is(err, store.ErrNotFound) {
		t.Error(err)
	}
	ok(t, s.ExpireJobs(t0.Add(time.Second), 10))
	equal(t, []store.Job{want}, must[[]store.Job](t)(s.Jobs(t.Context(), 0, 10)))
}

// TestManyJobs: of those that have ended only the newest are kept, and they can be read piece by piece.
func TestManyJobs(t *testing.T) {
	t.Parallel()
	s, err := store.Open(filepath.Join(t.TempDir(), "slotfetch.db"), store.Options{Now: func() time.Time { return t0 }})
	ok(t, err)
	t.Cleanup(func() { ok(t, s.Close()) })
	for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
		j := store.Job{ID: id, Description: "x", State: store.JobSuccess, Message: "success"}
		if id == "a" || id == "e" {
			j.State = store.JobRunning
		}
		_, err := s.AddJob(j, store.Actor{Name: "alice"})
		ok(t, err)
	}
	list := func(after int64, limit int) (ids string) {
		for _, j := range must[[]store.Job](t)(s.Jobs(t.Context(), after, limit)) {
			ids += j.ID
		}
		return ids
	}
	for _, tt := range []struct {
		keep int
		want string
	}{{4, "abcdef"}, {3, "acdef"}, {1, "aef"}, {1, "aef"}, {0, "ae"}} {
		ok(t, s.ExpireJobs(t0, tt.keep))
		equal(t, tt.want, list(0, 10))
	}
	equal(t, "a", list(0, 1))
	equal(t, "e", list(1, 1))
	equal(t, "", list(5, 1))
	equal(t, 2, len(must[[]store.Job](t)(s.RunningJobs(t.Context()))))
}

// TestUpgradeAnswered: it is the first move that counts.
func TestUpgradeAnswered(t *testing.T) {
	t.Parallel()
	now := t0
	s, err := store.Open(filepath.Join(t.TempDir(), "slotfetch.db"), store.Options{Now: func() time.Time { return now }})
	ok(t, err)
	t.Cleanup(func() { ok(t, s.Close()) })
	by := store.Actor{Name: "alice"}
	u := store.Upgrade{ID: "u", Request: "r", BootID: "b", To: 1, Reboot: "now"}
	ok(t, s.AddUpgrade(u, by))
	equal(t, time.Time{}, must[time.Time](t)(s.UpgradeAnswered(t.Context(), "u")))
	from := store.UpgradeRequested
	for _, to := range []store.UpgradeStatus{store.UpgradeActivated, store.UpgradeBooted} {
		now = now.Add(time.Minute)
		u.Status = to
		ok(t, s.MoveUpgrade(u, from, by))
		from = to
	}
	equal(t, t0.Add(time.Minute), must[time.Time](t)(s.UpgradeAnswered(t.Context(), "u")))
}

// TestForemost: what is under way comes before what waits, and that before what is over.
func TestForemost(t *testing.T) {
	t.Parallel()
	now := t0
	s, err := store.Open(filepath.Join(t.TempDir(), "slotfetch.db"), store.Options{Now: func() time.Time { return now }})
	ok(t, err)
	t.Cleanup(func() { ok(t, s.Close()) })
	is := func(key string) {
		t.Helper()
		equal(t, key, must[store.Fetch](t)(s.Foremost(t.Context())).Key)
	}
	by := store.Actor{Name: "alice"}
	if _, err := s.Foremost(t.Context()); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	for _, key := range []string{"old", "new", "next", "paused"} {
		f := store.Fetch{Key: key, URL: "https://example.com/x"}
		f.Paused = key == "paused"
		_, err := s.Enqueue(f, by)
		ok(t, err)
	}
	is("old")
	for _, key := range []string{"old", "new"} {
		_, _, err := s.Claim()
		ok(t, err)
		is(key)
		now = now.Add(time.Second)
		_, err = s.Fail(key, "digest", "It is another.", 0, 0, nil)
		ok(t, err)
	}
	is("next")
	_, _, err = s.Delete("next", by)
	ok(t, err)
	is("next") // ended last
	_, _, err = s.Delete("next", by)
	ok(t, err)
	is("new")
}
