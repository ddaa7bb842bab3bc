package ontap

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"

	"slotfetch/api"
	"slotfetch/fetch/fetchtest"
	"slotfetch/store"
)

var ann = store.Actor{Name: "ann"}

// lock lets nobody write to the database until unlock is called.
func (b *box) lock(t *testing.T) (unlock func()) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+b.database)
	check(t, err)
	c, err := db.Conn(context.Background())
	check(t, err)
	_, err = c.ExecContext(context.Background(), "BEGIN IMMEDIATE")
	check(t, err)
	return func() {
		_, err := c.ExecContext(context.Background(), "ROLLBACK")
		check(t, errors.Join(err, c.Close(), db.Close()))
	}
}

// eventually waits for what happens beside.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(fetchtest.Patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// stored is the state of a job in the database.
func (b *box) stored(t *testing.T, id string) store.JobState {
	t.Helper()
	row, err := b.cfg.Store.Job(t.Context(), id)
	check(t, err)
	return row.State
}

// TestEndUnderLock: the end of a job is seen though the database does not take it, and comes to it when it does.
func TestEndUnderLock(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s := b.open(t)
	var unlock func()
	running, locked := make(chan struct{}), make(chan struct{})
	row, err := s.run(describeUpdate, "11111111-1111-4111-8111-111111111111", "Working", ann, func(context.Context) finding {
		close(running)
		<-locked
		return finding{code: codeInternal, message: "It went wrong."}
	})
	check(t, err)
	<-running
	unlock = b.lock(t)
	close(locked)
	eventually(t, "the end is seen", func() bool {
		j, err := get(t, s, row.ID)
		check(t, err)
		return j.State == stateFailure && j.Message == "It went wrong." && j.Error != nil && j.EndTime != nil
	})
	eventually(t, "a try fails", func() bool { return strings.Contains(b.log.String(), "cannot note the end of a job") })
	if got := b.stored(t, row.ID); got != store.JobRunning {
		t.Fatalf("the database has %s", got)
	}
	unlock()
	eventually(t, "the end is stored", func() bool { return b.stored(t, row.ID) == store.JobFailure })
}

// TestSettleUnderLock: what an earlier run left is settled though the database cannot be written at the start.
func TestSettleUnderLock(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	const id = "22222222-2222-4222-8222-222222222222"
	_, err := b.cfg.Store.AddJob(store.Job{ID: id, Description: describeUpdate, State: store.JobRunning, Message: "Testing"}, ann)
	check(t, err)
	unlock := b.lock(t)
	s := b.open(t)
	if j, err := get(t, s, id); err != nil || j.State != stateFailure || !strings.Contains(j.Message, "restarted") {
		t.Errorf("%+v, %v", j, err)
	}
	if got := b.stored(t, id); got != store.JobRunning {
		t.Fatalf("the database has %s", got)
	}
	unlock()
	eventually(t, "it is stored", func() bool { return b.stored(t, id) == store.JobFailure })
}

// TestPanic: a panic ends its job and nothing else, and the next one may run.
func TestPanic(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.cfg.Updates = panics{}
	s := b.open(t)
	for range 2 {
		r := httptest.NewRequest(http.MethodPatch, softwarePath+"?return_timeout=60", http.NoBody)
		_, err := s.update(r, listed{}, time.Minute)
		var e *api.Error
		if !errors.As(err, &e) || e.Code != "10551391" || e.Message == "" {
			t.Fatalf("%v", err)
		}
	}
	if !strings.Contains(b.log.String(), "panic in a job") {
		t.Error("the log does not tell")
	}
}

type panics struct{ noUpdates }

func (panics) Begin(context.Context, string, int, string, store.Actor) error { panic("boom") }

// TestClosed: no job begins after Close, nor is one stored that would never end.
func TestClosed(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s := b.open(t)
	s.Close()
	_, err := s.run(describeUpdate, "33333333-3333-4333-8333-333333333333", "Working", ann, func(context.Context) finding {
		t.Error("it ran")
		return finding{}
	})
	var e *api.Error
	if !errors.As(err, &e) || e.Code != "10551892" || e.Status != http.StatusServiceUnavailable {
		t.Errorf("%v", err)
	}
	rows, err := b.cfg.Store.Jobs(t.Context(), 0, 10)
	check(t, err)
	if len(rows) != 0 {
		t.Errorf("%+v", rows)
	}
}
