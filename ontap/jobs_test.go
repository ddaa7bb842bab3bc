package ontap

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/mux"

	"slotfetch/api"
	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
	"slotfetch/slots"
	"slotfetch/store"
)

var t0 = time.Date(2026, 5, 4, 8, 0, 0, 0, time.UTC)

// noUpdates is a box that nobody updates.
type noUpdates struct{}

func (noUpdates) Possible() bool                                { return true }
func (noUpdates) Answered(string)                               {}
func (noUpdates) List(context.Context) ([]store.Upgrade, error) { return nil, nil }
func (noUpdates) Begin(context.Context, string, int, string, store.Actor) error {
	return errors.New("no")
}

// box is what the dialect stands on, with a clock.
type box struct {
	cfg      Config
	now      atomic.Pointer[time.Time]
	database string
	log      *journal
}

// set sets the clock.
func (b *box) set(now time.Time) { b.now.Store(&now) }

// journal keeps what is logged.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func newBox(t *testing.T) *box {
	t.Helper()
	b := &box{database: filepath.Join(t.TempDir(), "db"), log: &journal{}}
	b.set(t0)
	clock := func() time.Time { return *b.now.Load() }
	log := slog.New(slog.NewTextHandler(b.log, nil))
	st, err := store.Open(b.database, store.Options{Now: clock})
	check(t, err)
	sl, err := slots.Open(slots.Config{Dir: filepath.Join(t.TempDir(), "slots"), First: 1, Count: 2, Log: log})
	check(t, err)
	src, err := source.New(source.Config{Egress: fetchtest.Loopback()})
	check(t, err)
	m, err := fetch.Open(fetch.Config{Store: st, Slots: sl, Source: src, SealKey: make([]byte, fetch.SealKeySize), Log: log})
	check(t, err)
	t.Cleanup(func() {
		check(t, m.Close())
		check(t, sl.Close())
		check(t, st.Close())
	})
	b.cfg = Config{Fetch: m, Slots: sl, Store: st, Updates: noUpdates{}, Log: log, Now: clock, Name: func() (string, error) { return "box1", nil }}
	return b
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *box) open(t *testing.T) *Server {
	t.Helper()
	s, err := Open(b.cfg)
	check(t, err)
	t.Cleanup(s.Close)
	return s
}

// get is a job, by its uuid.
func get(t *testing.T, s *Server, id string) (Job, error) {
	t.Helper()
	r := mux.SetURLVars(httptest.NewRequest(http.MethodGet, jobsPath+"/"+id, nil), map[string]string{"uuid": id})
	reply, err := s.getJob(r)
	j, _ := reply.Body.(Job)
	return j, err
}

// TestJobLife: a job answers long after the 300 s of ONTAP, and is forgotten after a week; a download is not.
func TestJobLife(t *testing.T) {
	b := newBox(t)
	s := b.open(t)
	by := store.Actor{Name: "ann"}
	row, err := s.done("POST "+uploadPath, 0, "success", by)
	check(t, err)
	f, err := b.cfg.Store.EnqueueFinished(store.Fetch{Key: "77777777-7777-4777-8777-777777777777", URL: "http://127.0.0.1:1/x", SHA256: strings.Repeat("0", 64)}, 1, 5, by)
	check(t, err)
	b.set(t0.Add(301 * time.Second))
	if j, err := get(t, s, f.Key); err != nil || j.State != stateSuccess || *j.EndTime != "2026-05-04T08:00:00+00:00" {
		t.Errorf("%+v, %v", j, err)
	}
	if j, err := get(t, s, row.ID); err != nil || j.State != stateSuccess || *j.EndTime != "2026-05-04T08:00:00+00:00" {
		t.Errorf("%+v, %v", j, err)
	}
	b.set(t0.Add(jobLife + time.Second))
	_, err = s.done("POST "+uploadPath, codeUploadWrite, "It could not be written.", by)
	check(t, err)
	var e *api.Error
	if _, err := get(t, s, row.ID); !errors.As(err, &e) || e.Code != "4" {
		t.Errorf("a week later: %v", err)
	}
	if j, err := get(t, s, f.Key); err != nil || j.State != stateSuccess {
		t.Errorf("a week later: %+v, %v", j, err)
	}
}

// TestMessages: whatever code a fetch fails with, its job has a message that no client takes for another one (rules 4, 5, 7).
func TestMessages(t *testing.T) {
	s := newBox(t).open(t)
	for _, fault := range source.Faults() {
		for _, message := range []string{fault.Meaning + " " + fault.Remedy, ""} {
			j := s.download(store.Fetch{Status: store.Failed, ErrorCode: fault.Code, Error: message}, "box1")
			if j.State != stateFailure || j.Message == "" || j.Code == 0 || j.Error == nil || j.Error.Code == "" || j.Error.Message != j.Message {
				t.Errorf("%s: %+v", fault.Code, j)
			}
			for _, phrase := range []string{"Package image with the same name already exists", "entry doesn't exist", "User is not authorized.",
				"Software get operation already in progress", "are available in precluster.", "temporarily locked"} {
				if strings.Contains(j.Message, phrase) {
					t.Errorf("%s: %q", fault.Code, j.Message)
				}
			}
			if status := statusOf(j.Code); status < 400 {
				t.Errorf("%s: %d", fault.Code, status)
			}
		}
	}
}
