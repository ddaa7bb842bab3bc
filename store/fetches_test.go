package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"slotfetch/store"
)

// seed inserts rows k1, k2, … in one statement: how many, status, phase, what the URL ends with. The status is
// not a final one.
const seed = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
	INSERT INTO fetches (key, status, phase, url, created_by, created_at) SELECT 'k' || i, ?2, ?3, 'https://h/' || ?4, 'ann', 1 FROM n`

func enqueue(t testing.TB, s *store.Store, key string) store.Fetch {
	t.Helper()
	return must[store.Fetch](t)(s.Enqueue(store.Fetch{Key: key, URL: "https://h/x", Secrets: []byte("sealed")}, admin))
}

func claim(t testing.TB, s *store.Store, want string) store.Fetch {
	t.Helper()
	f, found, err := s.Claim()
	if err != nil || !found || f.Key != want {
		t.Fatalf("claimed %q, %v, %v, want %q", f.Key, found, err, want)
	}
	return f
}

func ptr[T any](v T) *T { return &v }

func TestEnqueue(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	in := store.Fetch{Key: "k", URL: "https://h/x", Mirrors: []string{"ftp://m/x", "file:///x"}, SHA256: "aa", SHA512: "bb",
		WantSlot: ptr(2), TLSVerify: ptr(false), TLSCA: "pem", Secrets: []byte{1, 0, 2}}
	want := in
	want.Seq, want.Status, want.CreatedBy, want.CreatedAt = 1, store.Queued, "ann", t0
	// What is no part of the request is not taken from the caller.
	in.Status, in.Phase, in.Attempts, in.BytesTotal, in.CreatedBy = store.Finished, store.Installing, 7, 8, "eve"
	equal(t, want, must[store.Fetch](t)(s.Enqueue(in, admin)))
	equal(t, want, must[store.Fetch](t)(s.Fetch(t.Context(), "k")))
	if _, err := s.Enqueue(store.Fetch{Key: "k", URL: "https://other/"}, admin); !errors.Is(err, store.ErrExists) {
		t.Errorf("a second one of the key gives %v", err)
	}
	equal(t, []store.Fetch{want}, all(t, s))
	equal(t, []store.Event{{At: t0, Actor: "ann", Address: "192.0.2.1", Action: "fetch.enqueue", Object: "k"}}, must[[]store.Event](t)(s.Events(t.Context(), 9)))
	plain := must[store.Fetch](t)(s.Enqueue(store.Fetch{Key: "p", URL: "https://h/y"}, admin))
	equal(t, store.Fetch{Seq: plain.Seq, Key: "p", Status: store.Queued, URL: "https://h/y", Mirrors: []string{}, CreatedBy: "ann", CreatedAt: t0}, plain)
}

// states are all that a fetch can be in; arrive brings the fetch "k" of an empty queue there.
var states = []string{"missing", "queued", "downloading", "waiting", "verifying", "installing", "cancelling", "finished", "failed", "cancelled"}

func arrive(t *testing.T, s *store.Store, state string) {
	t.Helper()
	exec(t, s.Writer(), "DELETE FROM fetches")
	if state == "missing" {
		return
	}
	enqueue(t, s, "k")
	if state == "queued" {
		return
	}
	claim(t, s, "k")
	fetch := must[store.Fetch](t)
	install := func() { fetch(s.BeginInstall("k", 9, ptr(true))) }
	request := func() {
		if out, _, err := s.Delete("k", admin); err != nil || out != store.CancelRequested {
			t.Fatal(out, err)
		}
	}
	switch state {
	case "waiting", "verifying":
		fetch(s.SetPhase("k", store.Phase(state), 3, 9))
	case "installing":
		install()
	case "cancelling":
		request()
	case "finished":
		install()
		fetch(s.Finish("k", 1, nil))
	case "failed":
		fetch(s.Fail("k", "timeout", "It took too long.", 3, 9, nil))
	case "cancelled":
		request()
		fetch(s.Cancelled("k", 3, 9))
	}
}

func TestTransitions(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	working := func(to string) map[string]string {
		return map[string]string{"downloading": to, "waiting": to, "verifying": to}
	}
	stay := map[string]string{"downloading": "in-progress/downloading", "waiting": "in-progress/waiting", "verifying": "in-progress/verifying"}
	and := func(m map[string]string, state, to string) map[string]string { m[state] = to; return m }
	tests := []struct {
		name string
		call func() (store.Fetch, error)
		// allowed maps starting states to status/phase afterwards. All others are a conflict and change nothing.
		allowed map[string]string
	}{
		{"BeginAttempt", func() (store.Fetch, error) { return s.BeginAttempt("k") }, working("in-progress/downloading")},
		{"Opened", func() (store.Fetch, error) { return s.Opened("k", 4, 2, 9, ptr(true)) }, stay},
		{"Deduplicate", func() (store.Fetch, error) { return s.Deduplicate("k", 3, 9) }, working("finished/")},
		{"SetPhase waiting", func() (store.Fetch, error) { return s.SetPhase("k", store.Waiting, 4, 9) }, working("in-progress/waiting")},
		{"SetPhase verifying", func() (store.Fetch, error) { return s.SetPhase("k", store.Verifying, 4, 9) }, working("in-progress/verifying")},
		{"SaveCheckpoint", func() (store.Fetch, error) {
			if err := s.SaveCheckpoint("k", store.Checkpoint{Offset: 5}, 3, 9, nil); err != nil {
				return store.Fetch{}, err
			}
			return s.Fetch(t.Context(), "k")
		}, stay},
		{"BeginInstall", func() (store.Fetch, error) { return s.BeginInstall("k", 9, ptr(true)) }, working("in-progress/installing")},
		{"Finish", func() (store.Fetch, error) { return s.Finish("k", 2, ptr(int64(7))) }, map[string]string{"installing": "finished/"}},
		{"Fail", func() (store.Fetch, error) { return s.Fail("k", "digest", "It is another file.", 9, 9, ptr(false)) },
			and(working("failed/"), "installing", "failed/")},
		{"Cancelled", func() (store.Fetch, error) { return s.Cancelled("k", 4, 9) }, map[string]string{"cancelling": "cancelled/"}},
		{"Requeue keep", func() (store.Fetch, error) { return s.Requeue("k", true, true, 7) }, and(working("queued/"), "installing", "queued/")},
		{"Requeue", func() (store.Fetch, error) { return s.Requeue("k", false, false, 7) }, and(working("queued/"), "installing", "queued/")},
		{"Claim", func() (store.Fetch, error) {
			f, found, err := s.Claim()
			if err == nil && !found { // it has no error for that
				if _, err = s.Fetch(t.Context(), "k"); err == nil {
					err = store.ErrConflict
				}
			}
			return f, err
		}, map[string]string{"queued": "in-progress/downloading"}},
	}
	for _, tt := range tests {
		for _, state := range states {
			t.Run(tt.name+"/"+state, func(t *testing.T) {
				arrive(t, s, state)
				before := all(t, s)
				f, err := tt.call()
				to, allowed := tt.allowed[state]
				switch {
				case allowed:
					ok(t, err)
					equal(t, to, string(f.Status)+"/"+string(f.Phase))
					equal(t, []store.Fetch{f}, all(t, s))
					equal(t, f.Status.Final(), !f.EndTime.IsZero())
					equal(t, f.Status.Final(), f.Secrets == nil)
					equal(t, false, f.CancelRequested)
					return
				case state == "missing":
					if !errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrConflict) {
						t.Errorf("error %v, want not found", err)
					}
				case !errors.Is(err, store.ErrConflict):
					t.Errorf("error %v, want a conflict", err)
				}
				equal(t, before, all(t, s))
			})
		}
	}
	for _, phase := range []store.Phase{"sleeping", store.Installing, store.Downloading} {
		t.Run("not a phase to set: "+string(phase), func(t *testing.T) {
			arrive(t, s, "verifying")
			before := all(t, s)
			if _, err := s.SetPhase("k", phase, 0, 0); err == nil || errors.Is(err, store.ErrConflict) {
				t.Errorf("error %v", err)
			}
			equal(t, before, all(t, s))
		})
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	requested := func(f *store.Fetch) { f.CancelRequested, f.CancelledBy = true, "bob" }
	tests := map[string]struct {
		out    store.Outcome
		change func(*store.Fetch) // what differs afterwards; nil: the row is gone
		event  string             // action and detail
	}{
		"queued": {store.CancelledQueued, func(f *store.Fetch) {
			f.Status, f.EndTime, f.Secrets, f.CancelledBy = store.Cancelled, t0, nil, "bob"
		}, "fetch.cancel cancelled"},
		"downloading": {store.CancelRequested, requested, "fetch.cancel in-progress"},
		"waiting":     {store.CancelRequested, requested, "fetch.cancel in-progress"},
		"verifying":   {store.CancelRequested, requested, "fetch.cancel in-progress"},
		"cancelling":  {store.CancelRequested, func(*store.Fetch) {}, "fetch.cancel in-progress"}, // joins the first
		"installing":  {store.NotCancellable, func(*store.Fetch) {}, ""},
		"finished":    {store.Pruned, nil, "fetch.prune finished"},
		"failed":      {store.Pruned, nil, "fetch.prune failed"},
		"cancelled":   {store.Pruned, nil, "fetch.prune cancelled"},
	}
	for _, state := range states {
		t.Run(state, func(t *testing.T) {
			arrive(t, s, state)
			before, events := all(t, s), must[[]store.Event](t)(s.Events(t.Context(), 1000))
			out, f, err := s.Delete("k", store.Actor{Name: "bob", Address: "192.0.2.2"})
			after := must[[]store.Event](t)(s.Events(t.Context(), 1000))
			tt, live := tests[state]
			if !live {
				if !errors.Is(err, store.ErrNotFound) {
					t.Fatalf("error %v, want not found", err)
				}
				equal(t, events, after)
				return
			}
			ok(t, err)
			equal(t, tt.out, out)
			want := before[0]
			if tt.change == nil {
				equal(t, 0, len(all(t, s)))
			} else {
				tt.change(&want)
				equal(t, []store.Fetch{want}, all(t, s))
			}
			equal(t, want, f)
			if action, detail, noted := strings.Cut(tt.event, " "); noted {
				equal(t, store.Event{At: t0, Actor: "bob", Address: "192.0.2.2", Action: action, Object: "k", Detail: detail}, after[0])
				after = after[1:]
			}
			equal(t, events, after)
		})
	}
}

func TestFinalRows(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	fetch := must[store.Fetch](t)
	base := store.Fetch{Key: "k", URL: "https://h/x", Mirrors: []string{}, CreatedBy: "ann", CreatedAt: t0, StartTime: t0, EndTime: t0, Attempts: 1}
	tests := []struct {
		name string
		end  func() (store.Fetch, error)
		want func(*store.Fetch)
	}{
		{"finished", func() (store.Fetch, error) {
			fetch(s.BeginInstall("k", 9, ptr(true)))
			return s.Finish("k", 3, ptr(int64(77)))
		}, func(f *store.Fetch) {
			f.Status, f.SlotID, f.BytesPerSecond = store.Finished, ptr(3), ptr(int64(77))
			f.BytesDownloaded, f.BytesTotal, f.TLSVerified = 9, 9, ptr(true)
		}},
		{"failed", func() (store.Fetch, error) { return s.Fail("k", "digest", "Wrong file.", 8, 9, ptr(false)) }, func(f *store.Fetch) {
			f.Status, f.ErrorCode, f.Error = store.Failed, "digest", "Wrong file."
			f.BytesDownloaded, f.BytesTotal, f.TLSVerified = 8, 9, ptr(false)
		}},
		{"cancelled", func() (store.Fetch, error) {
			_, _, err := s.Delete("k", admin)
			ok(t, err)
			return s.Cancelled("k", 7, 9)
		}, func(f *store.Fetch) {
			f.Status, f.BytesDownloaded, f.BytesTotal, f.TLSVerified, f.CancelledBy = store.Cancelled, 7, 9, ptr(true), "ann"
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			arrive(t, s, "downloading")
			fetch(s.BeginAttempt("k"))
			ok(t, s.SaveCheckpoint("k", store.Checkpoint{Offset: 5, State: []byte{1}, Validator: `{"etag":"x"}`, Source: "https://h/x"}, 3, 9, ptr(true)))
			got := fetch(tt.end())
			want := base
			want.Seq, want.BytesReceived = got.Seq, 3
			tt.want(&want)
			equal(t, want, got)
			equal(t, want, fetch(s.Fetch(t.Context(), "k")))
		})
	}
}

func TestClaimIsFIFO(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	for _, key := range []string{"c", "a", "b"} { // neither by key nor by time, all of which are the same
		enqueue(t, s, key)
	}
	first := claim(t, s, "c")
	equal(t, t0, first.StartTime)
	claim(t, s, "a")
	must[store.Fetch](t)(s.Requeue("c", true, true, 0)) // back at its old place, ahead of b
	claim(t, s, "c")
	out, _, err := s.Delete("b", admin)
	if err != nil || out != store.CancelledQueued {
		t.Fatal(out, err)
	}
	if f, found, err := s.Claim(); found || err != nil {
		t.Errorf("an empty queue gives %v, %v", f, err)
	}
	var live []string
	ok(t, s.Unfinished(t.Context(), func(f store.Fetch) error { live = append(live, f.Key); return nil }))
	equal(t, []string{"c", "a"}, live)
}

func TestClaimOnce(t *testing.T) {
	t.Parallel()
	s, path := fresh(t)
	const rows, workers = 200, 8
	exec(t, s.Writer(), seed, rows, "queued", nil, "x")
	handles := []*store.Store{s, open(t, path)} // two processes on one file
	var mu sync.Mutex
	claimed := map[string]int{}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			last := int64(0)
			for {
				f, found, err := handles[w%2].Claim()
				if err != nil {
					t.Error(err)
				}
				if err != nil || !found {
					return
				}
				if f.Seq <= last {
					t.Errorf("row %d was handed out after %d", f.Seq, last)
				}
				last = f.Seq
				mu.Lock()
				claimed[f.Key]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	equal(t, rows, len(claimed))
	for key, n := range claimed {
		if n != 1 {
			t.Errorf("%s was claimed %d times", key, n)
		}
	}
}

// race runs rounds of a and b at the same moment, each on a row of its own in phase verifying.
func race(t *testing.T, s *store.Store, rounds int, a, b, after func(key string)) {
	t.Helper()
	exec(t, s.Writer(), seed, rounds, "in-progress", "verifying", "x")
	for n := range rounds {
		key := fmt.Sprint("k", n+1)
		gate := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { <-gate; a(key) })
		wg.Go(func() { <-gate; b(key) })
		close(gate)
		wg.Wait()
		after(key)
		if t.Failed() {
			t.Fatalf("in round %d", n)
		}
	}
}

func TestDeleteAgainstWorker(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		// work ends the fetch as a worker does and tells whether it won.
		work func(s *store.Store, key string) (bool, error)
		// lost are the outcomes of a Delete that came too late.
		lost   []store.Outcome
		status store.Status
		rounds int
		two    bool // with a database handle for each side
	}{
		{"install", install, []store.Outcome{store.NotCancellable, store.Pruned}, store.Finished, 1000, false},
		{"fail", fail, []store.Outcome{store.Pruned}, store.Failed, 1000, false},
		{"install, two processes", install, []store.Outcome{store.NotCancellable, store.Pruned}, store.Finished, 100, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, path := fresh(t)
			worker := s
			if tt.two {
				worker = open(t, path)
			}
			var out store.Outcome
			var pruned store.Fetch
			var won bool
			wins := map[bool]int{}
			race(t, s, tt.rounds, func(key string) {
				var err error
				if out, pruned, err = s.Delete(key, admin); err != nil {
					t.Error(err)
				}
			}, func(key string) {
				var err error
				if won, err = tt.work(worker, key); err != nil {
					t.Error(err)
				}
			}, func(key string) {
				wins[won]++
				f, err := s.Fetch(t.Context(), key)
				switch {
				case won && !slices.Contains(tt.lost, out), !won && out != store.CancelRequested:
					t.Errorf("worker won: %v, outcome %d", won, out)
				case won && out == store.Pruned:
					if !errors.Is(err, store.ErrNotFound) || pruned.Status != tt.status {
						t.Errorf("pruned: %v, it was %s", err, pruned.Status)
					}
				case won:
					if err != nil || f.Status != tt.status || f.CancelRequested {
						t.Errorf("worker won: %v, %+v", err, f)
					}
				default:
					if err != nil || f.Status != store.InProgress || !f.CancelRequested {
						t.Errorf("Delete won: %v, %+v", err, f)
					}
					if _, err := s.Cancelled(key, 1, 1); err != nil {
						t.Error(err)
					}
				}
			})
			t.Logf("the worker won %d, Delete %d", wins[true], wins[false])
		})
	}
}

func install(s *store.Store, key string) (bool, error) {
	_, err := s.BeginInstall(key, 9, nil)
	if errors.Is(err, store.ErrConflict) {
		return false, nil
	}
	if err == nil {
		_, err = s.Finish(key, 1, nil)
	}
	return true, err
}

func fail(s *store.Store, key string) (bool, error) {
	_, err := s.Fail(key, "x", "y", 1, 1, nil)
	if errors.Is(err, store.ErrConflict) {
		return false, nil
	}
	return true, err
}

func TestCheckpoint(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		keep, clean bool
	}{{"keep, clean", true, true}, {"keep, after a crash", true, false}, {"drop", false, false}}
	saved := store.Checkpoint{Offset: 1 << 40, State: []byte("sha\x00\x03\xff"), Validator: `{"etag":"\"x\""}`, Source: "ftp://m/x"}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, path := fresh(t)
			enqueue(t, s, "k")
			claim(t, s, "k")
			must[store.Fetch](t)(s.BeginAttempt("k"))
			c := saved
			c.Clean = true // only Requeue can say that
			ok(t, s.SaveCheckpoint("k", c, 3, 1<<41, ptr(true)))
			f := must[store.Fetch](t)(s.Fetch(t.Context(), "k"))
			equal(t, saved, f.Checkpoint)
			equal(t, []int64{1 << 40, 3, 1 << 41}, []int64{f.BytesDownloaded, f.BytesReceived, f.BytesTotal})

			want := f
			want.Status, want.Phase, want.BytesReceived = store.Queued, "", 7
			want.Checkpoint.Clean = tt.clean
			if !tt.keep {
				want.Checkpoint, want.BytesDownloaded = store.Checkpoint{}, 0
			}
			equal(t, want, must[store.Fetch](t)(s.Requeue("k", tt.keep, tt.clean, 7)))
			ok(t, s.Close())
			s = open(t, path) // the restart
			again := claim(t, s, "k")
			want.Status, want.Phase = store.InProgress, store.Downloading
			equal(t, want, again)

			// A newer one is not clean any more; what is not known of TLS does not erase what was.
			ok(t, s.SaveCheckpoint("k", store.Checkpoint{Offset: 7}, 3, 9, nil))
			f = must[store.Fetch](t)(s.Fetch(t.Context(), "k"))
			equal(t, store.Checkpoint{Offset: 7}, f.Checkpoint)
			equal(t, ptr(true), f.TLSVerified)
		})
	}
}

// holding lists the database's files that contain text.
func holding(t *testing.T, path string, text []byte) []string {
	t.Helper()
	var out []string
	for _, name := range must[[]string](t)(filepath.Glob(path + "*")) {
		if bytes.Contains(must[[]byte](t)(os.ReadFile(name)), text) {
			out = append(out, filepath.Base(name))
		}
	}
	return out
}

func TestSecretsAreErased(t *testing.T) {
	t.Parallel()
	canary := []byte("CANARY-5f1c8a90-do-not-keep")
	finals := []struct {
		name string
		end  func(s *store.Store, key string) error
	}{
		{"finished", func(s *store.Store, key string) error {
			_, err := s.BeginInstall(key, 9, nil)
			_, err2 := s.Finish(key, 1, nil)
			return errors.Join(err, err2)
		}},
		{"failed", func(s *store.Store, key string) error { _, err := s.Fail(key, "x", "y", 1, 1, nil); return err }},
		{"cancelled", func(s *store.Store, key string) error {
			_, _, err := s.Delete(key, admin)
			_, err2 := s.Cancelled(key, 1, 1)
			return errors.Join(err, err2)
		}},
		{"cancelled while queued", func(s *store.Store, key string) error {
			_, err := s.Requeue(key, true, true, 0)
			out, _, err2 := s.Delete(key, admin)
			if out != store.CancelledQueued {
				return fmt.Errorf("outcome %d", out)
			}
			return errors.Join(err, err2)
		}},
	}
	for _, tt := range finals {
		for _, size := range []int{1, 1000} { // inside the row, and on overflow pages
			t.Run(fmt.Sprint(tt.name, " ", size), func(t *testing.T) {
				s, path := fresh(t)
				secrets := bytes.Repeat(canary, size)
				for n := range 3 { // the neighbours stay, with nothing to hide
					enqueue(t, s, fmt.Sprint("other", n))
				}
				must[store.Fetch](t)(s.Enqueue(store.Fetch{Key: "k", URL: "https://h/x", Secrets: secrets}, admin))
				for _, key := range []string{"other0", "other1", "other2", "k"} {
					claim(t, s, key)
				}
				for n := range 5 { // copies in the log
					ok(t, s.SaveCheckpoint("k", store.Checkpoint{Offset: int64(n), State: bytes.Repeat([]byte{byte(n)}, 100*n)}, 3, 9, nil))
					must[store.Fetch](t)(s.Fetch(t.Context(), "k"))
				}
				if f := must[store.Fetch](t)(s.Fetch(t.Context(), "k")); !bytes.Equal(f.Secrets, secrets) {
					t.Fatal("the secrets of a live fetch are not what was stored")
				}
				if len(holding(t, path, canary)) == 0 {
					t.Fatal("the canary was nowhere, this test would prove nothing")
				}
				ok(t, tt.end(s, "k"))
				f := must[store.Fetch](t)(s.Fetch(t.Context(), "k"))
				if !f.Status.Final() || f.Secrets != nil {
					t.Errorf("%s with %d bytes of secrets", f.Status, len(f.Secrets))
				}
				if names := holding(t, path, canary); names != nil {
					t.Errorf("the canary is still in %v", names)
				}
				ok(t, s.Close())
				if names := holding(t, path, canary); names != nil {
					t.Errorf("after Close the canary is in %v", names)
				}
			})
		}
	}
}

// A list of fetches with large certificates does not read them.
func TestListLeavesOutWhatIsLarge(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	ca := strings.Repeat("x", 64<<10)
	const rows = 2 * store.Page
	exec(t, s.Writer(), seed, rows, "queued", nil, "x")
	exec(t, s.Writer(), "UPDATE fetches SET tls_ca = ?, secrets = ?, cp_state = ?", ca, []byte(ca), []byte(ca))
	var longest, count int
	look := func(f store.Fetch) error {
		count++
		longest = max(longest, len(f.TLSCA), len(f.Secrets), len(f.Checkpoint.State))
		return nil
	}
	ok(t, s.Fetches(t.Context(), look))
	ok(t, s.Unfinished(t.Context(), look))
	if longest > 0 || count != 2*rows {
		t.Errorf("%d rows, with up to %d bytes that no list needs", count, longest)
	}
}

func TestListWhileRowsGo(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	const rows, far = 10_000, 2 * store.Page
	exec(t, s.Writer(), seed, rows, "queued", nil, "x")
	gone := map[int64]bool{} // deleted before they could be seen
	deleted := map[int64]bool{}
	drop := func(seq int64) {
		if seq < 1 || seq > rows || deleted[seq] {
			return
		}
		deleted[seq] = true
		exec(t, s.Writer(), "DELETE FROM fetches WHERE seq = ?", seq)
	}
	var seen []int64
	ok(t, s.Fetches(t.Context(), func(f store.Fetch) error {
		if n := s.Reader().Stats().InUse; n != 0 {
			return fmt.Errorf("a read is open while row %d is handed out", f.Seq)
		}
		seen = append(seen, f.Seq)
		if f.Seq%100 == 0 {
			drop(f.Seq - 1)
			drop(f.Seq)
			drop(f.Seq + 1) // may be in this page already
			if f.Seq+far <= rows {
				gone[f.Seq+far+3] = true
				drop(f.Seq + far + 3)
			}
		}
		return nil
	}))
	if !slices.IsSorted(seen) || len(slices.Compact(slices.Clone(seen))) != len(seen) {
		t.Error("not in order, or a row twice")
	}
	at := map[int64]bool{}
	for _, seq := range seen {
		at[seq] = true
		if gone[seq] {
			t.Errorf("row %d was gone two pages ahead, but is listed", seq)
		}
	}
	for seq := int64(1); seq <= rows; seq++ {
		if !at[seq] && !deleted[seq] {
			t.Errorf("row %d stayed, but is not listed", seq)
		}
	}
	if len(gone) < 50 {
		t.Errorf("only %d rows went away ahead", len(gone))
	}

	stop := errors.New("enough")
	count := 0
	err := s.Fetches(t.Context(), func(store.Fetch) error {
		if count++; count == store.Page+1 {
			return stop
		}
		return nil
	})
	if d := cmp.Diff([]any{true, store.Page + 1}, []any{errors.Is(err, stop), count}); d != "" {
		t.Error(d)
	}
}

// A key of the caller's own gives the first fetch again, for as long as its entry is there, and to that caller only.
func TestIdempotency(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	order := func(key, idem string, by store.Actor) (store.Fetch, error) {
		return s.Enqueue(store.Fetch{Key: key, URL: "https://h/" + key, Idempotency: idem, RequestHash: []byte(key)}, by)
	}
	bob := store.Actor{Name: "bob"}
	first := must[store.Fetch](t)(order("a", "once", admin))
	equal(t, "once", first.Idempotency)
	again, err := order("b", "once", admin)
	if !errors.Is(err, store.ErrExists) {
		t.Errorf("error %v", err)
	}
	equal(t, first, again)
	again, err = s.EnqueueFinished(store.Fetch{Key: "c", URL: "https://h/c", Idempotency: "once"}, 1, 9, admin)
	if !errors.Is(err, store.ErrExists) || again.Key != "a" {
		t.Errorf("error %v, %+v", err, again)
	}
	must[store.Fetch](t)(order("d", "once", bob))
	must[store.Fetch](t)(order("e", "", admin))
	must[store.Fetch](t)(order("f", "", admin))
	equal(t, 4, len(all(t, s)))
	for range 2 { // cancel, then prune
		_, _, err := s.Delete("a", admin)
		ok(t, err)
	}
	must[store.Fetch](t)(order("g", "once", admin))
}

func TestEnqueueFinished(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	f := must[store.Fetch](t)(s.EnqueueFinished(store.Fetch{Key: "k", URL: "https://h/x", SHA256: "ab", Secrets: []byte("sealed")}, 3, 9, admin))
	equal(t, store.Fetch{Seq: 1, Key: "k", Status: store.Finished, URL: "https://h/x", Mirrors: []string{}, SHA256: "ab", CreatedBy: "ann",
		CreatedAt: t0, StartTime: t0, EndTime: t0, BytesDownloaded: 9, BytesTotal: 9, SlotID: ptr(3), Deduplicated: true}, f)
	equal(t, []store.Fetch{f}, all(t, s))
	if _, found, err := s.Claim(); found || err != nil {
		t.Errorf("a worker gets it: %v", err)
	}
}
