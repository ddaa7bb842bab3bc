package main_test

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

// pointCalls are the calls by which the agent changes its state, or keeps others off it. A write may also be one to a
// socket, to a pipe or to the log.
var pointCalls = []string{"openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "unlink", "unlinkat",
	"mkdirat", "fallocate", "sync_file_range", "ftruncate", "fchmod", "fchmodat", "close", "flock"}

// pointErrors are the ways in which each of them may fail: also those that no system has for it, because others have them
// for one like it.
var pointErrors = []string{"EIO", "ENOSPC", "EDQUOT", "EROFS", "EMFILE", "EACCES", "ENOMEM"}

// TestKillPoints kills the agent at the nth call of each kind of its life, and TestErrorPoints has that call fail. Both
// then start it again without harm, and nothing may be lost, wrong, left over or hung. A life begins on a state with
// two slots, a finished fetch for each, an interrupted fetch and a queued one, and does the work of script.
//
// SLOTFETCH_POINTS is how many points each takes at random, or "all"; SLOTFETCH_SEED repeats the choice.
func TestKillPoints(t *testing.T) {
	t.Parallel()
	testPoints(t, 10, []string{"signal=KILL"})
}

func TestErrorPoints(t *testing.T) {
	t.Parallel()
	testPoints(t, 10, failures())
}

// failures are the ways in which strace can have a call fail.
func failures() (out []string) {
	for _, e := range pointErrors {
		out = append(out, "error="+e)
	}
	return out
}

// point is one place to do harm at. strace counts per thread: in another life the nth call may not come.
type point struct {
	call, harm string
	n          int
}

func (p point) String() string { return fmt.Sprintf("%s/%s/%d", p.call, p.harm, p.n) }

func compare(a, b point) int {
	return cmp.Or(cmp.Compare(a.call, b.call), cmp.Compare(a.harm, b.harm), cmp.Compare(a.n, b.n))
}

// strace does the harm. With -D it leaves the agent our child.
func (p point) strace(trace string) []string {
	return []string{"strace", "-D", "-f", "-q", "-o", trace, "-e", "trace=" + p.call, "-e", fmt.Sprintf("inject=%s:%s:when=%d", p.call, p.harm, p.n)}
}

// countCalls is an strace that only looks; callsOf takes from its trace how many calls of each kind the busiest thread made.
func countCalls(trace string) []string {
	return []string{"strace", "-D", "-f", "-q", "-o", trace, "-e", "trace=?" + strings.Join(pointCalls, ",?")} // not every machine has them all
}

func callsOf(trace string) map[string]int {
	perThread, out := map[string]int{}, map[string]int{}
	line := regexp.MustCompile(`^(\d+) +(\w+)\(`)
	for text := range strings.Lines(trace) {
		if m := line.FindStringSubmatch(text); m != nil {
			perThread[m[1]+m[2]]++
			out[m[2]] = max(out[m[2]], perThread[m[1]+m[2]])
		}
	}
	return out
}

func testPoints(t *testing.T, sample int, harms []string) {
	needStrace(t)
	seed := setting(t, "SLOTFETCH_SEED", uint64(time.Now().UnixNano()))
	first := newPointLab(t, seed)
	counts := first.count()
	all := choose(t, seed, counts, harms, sample)
	t.Logf("SLOTFETCH_SEED=%d; calls of a thread in a whole life: %v", seed, counts)
	var hits hits
	lanes := min(3, 1+len(all)/20) // so many lives go on at a time, where -parallel allows it
	t.Run("lane", func(t *testing.T) {
		for lane := range lanes {
			t.Run(fmt.Sprint(lane), func(t *testing.T) {
				t.Parallel()
				l := first
				if lane > 0 {
					l = newPointLab(t, seed)
				}
				for i := lane; i < len(all); i += lanes {
					t.Run(all[i].String(), func(t *testing.T) {
						hits.add(all[i], l.suffer(t, all[i]))
					})
				}
			})
		}
	})
	hits.report(t)
}

// hits counts points by their call, and those of them that were hit.
type hits struct {
	mu       sync.Mutex
	ran, hit map[string]int
}

func (h *hits) add(p point, hit bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ran == nil {
		h.ran, h.hit = map[string]int{}, map[string]int{}
	}
	h.ran[p.call]++
	h.ran["all"]++
	if hit {
		h.hit[p.call]++
		h.hit["all"]++
	}
}

func (h *hits) report(t *testing.T) {
	t.Helper()
	var calls []string
	for _, call := range pointCalls {
		if h.ran[call] > 0 {
			calls = append(calls, fmt.Sprintf("%s %d/%d", call, h.hit[call], h.ran[call]))
		}
	}
	t.Logf("RAN %d points, %d of them hit: %s", h.ran["all"], h.hit["all"], strings.Join(calls, ", "))
	if h.hit["all"] < h.ran["all"]/3 {
		t.Error("too few points were hit")
	}
}

// choose takes the points for a test: as many as SLOTFETCH_POINTS says, in an order that leaves a fair sample of each
// call when the test is ended early.
func choose(t *testing.T, seed uint64, counts map[string]int, harms []string, sample int) []point {
	t.Helper()
	var all []point
	for call, n := range counts {
		for _, harm := range harms {
			for i := range n {
				all = append(all, point{call, harm, i + 1})
			}
		}
	}
	slices.SortFunc(all, compare)
	rng := rand.New(rand.NewPCG(seed, 3))
	if os.Getenv("SLOTFETCH_POINTS") == "all" {
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		return all
	}
	return pick(rng, all, setting(t, "SLOTFETCH_POINTS", sample))
}

// TestFirstStartPoints does the same to the first start, which makes database, keys, certificate and user.
func TestFirstStartPoints(t *testing.T) {
	t.Parallel()
	needStrace(t)
	seed := setting(t, "SLOTFETCH_SEED", uint64(time.Now().UnixNano()))
	trace := filepath.Join(t.TempDir(), "trace")
	a := newAgent(t, "")
	t.Cleanup(a.kill)
	a.under = countCalls(trace)
	a.start(t)
	a.stop(t, syscall.SIGTERM)
	all := choose(t, seed, callsOf(a.traced(t, trace)), append(failures(), "signal=KILL"), 6)
	t.Logf("SLOTFETCH_SEED=%d", seed)
	for _, p := range all {
		t.Run(p.String(), func(t *testing.T) {
			a := newAgent(t, "")
			t.Cleanup(func() {
				a.kill()
				if t.Failed() {
					t.Logf("the agent's log:\n%s", a.log)
				}
			})
			a.under = p.strace(trace)
			if a.launch(t) {
				_ = a.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
			}
			fetchtest.Await(t, "the agent's end", a.done)
			a.under = nil
			a.firstStart(t)
		})
	}
	t.Logf("RAN %d points", len(all))
}

// pick takes n points so that each kind of call has its share, however rare it is.
func pick(rng *rand.Rand, all []point, n int) []point {
	kinds := map[string][]point{}
	for _, p := range all {
		kinds[p.call] = append(kinds[p.call], p)
	}
	calls := slices.Sorted(maps.Keys(kinds))
	rng.Shuffle(len(calls), func(i, j int) { calls[i], calls[j] = calls[j], calls[i] })
	var out []point
	for len(out) < n && len(calls) > 0 {
		call := calls[0]
		i := rng.IntN(len(kinds[call]))
		out = append(out, kinds[call][i])
		kinds[call] = slices.Delete(kinds[call], i, i+1)
		if calls = calls[1:]; len(kinds[call]) > 0 {
			calls = append(calls, call)
		}
	}
	return out
}

// needStrace skips the test, with the reason, where no process may be traced.
func needStrace(t *testing.T) {
	t.Helper()
	path, err := exec.LookPath("strace")
	if err == nil {
		var out []byte
		if out, err = exec.Command(path, "-D", "-f", "-qq", "-o", os.DevNull, "-e", "inject=fsync:error=EIO", "true").CombinedOutput(); err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
	}
	if err != nil {
		t.Skipf("SKIPPED %s: strace cannot trace here: %v", t.Name(), err)
	}
}

// pointLab has the state that every life begins on.
type pointLab struct {
	x        *torture
	pristine string
	orders   map[string]accepted // at the beginning of a life
	login    time.Time           // of the session in it, which does not live for ever
	trace    string              // what strace writes
	today    string              // where the session is renewed; empty: in pristine
	renewed  func(t *testing.T)  // makes pristine of today

	done, emptied, queued string // keys: finished, finished with a slot to be emptied, queued
}

func newPointLab(t *testing.T, seed uint64) *pointLab {
	t.Helper()
	x := newTorture(t, seed)
	second := make(chan struct{}, 1)
	var hold atomic.Bool
	hold.Store(true)
	x.moody = func(r *http.Request, image int) (busy, breaks bool) {
		again := r.Header.Get("Range") != ""
		if again && hold.Load() {
			second <- struct{}{}
			<-r.Context().Done()
		}
		return false, image == 4 && !again
	}
	l := &pointLab{x: x, pristine: filepath.Join(t.TempDir(), "state"), orders: map[string]accepted{}, trace: filepath.Join(t.TempDir(), "trace")}
	x.closeGate()()
	x.a = newAgent(t, "[slots]\ncount = 6\nreserve = 0\n[fetch]\nconnections = 1\nretry_rounds = 3\n")
	t.Cleanup(x.a.kill)
	x.a.start(t)
	x.a.newPassword(t)
	x.c = x.a.loginAdmin(t)
	l.done, l.emptied = x.order(2, false), x.order(1, false)
	x.until("two finished", func(rows map[string]reply) bool { return x.ended(rows, l.done, l.emptied) })
	x.order(4, false)
	l.queued = x.order(3, false)
	fetchtest.Await(t, "the second attempt, which has a checkpoint", second)
	x.a.stop(t, syscall.SIGKILL)
	hold.Store(false)
	l.login = time.Now()
	copyTree(t, x.a.state, l.pristine)
	for key, o := range x.orders {
		l.orders[key] = *o
	}
	return l
}

// kill ends the process if there is one.
func (a *agent) kill() {
	if a.cmd == nil {
		return
	}
	_ = a.cmd.Process.Kill() // it may be gone
	<-a.done
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	check(t, os.RemoveAll(to))
	if out, err := exec.Command("cp", "-a", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v %s", err, out)
	}
}

// begin puts everything as it is at the beginning of a life, for a test of its own.
func (l *pointLab) begin(t *testing.T) *torture {
	t.Helper()
	x := l.x
	if time.Since(l.login) > 10*time.Minute {
		l.renew(t, cmp.Or(l.today, l.pristine))
		if l.renewed != nil {
			l.renewed(t)
		}
	}
	copyTree(t, l.pristine, x.a.state)
	x.t, x.orders, x.notes, x.asked, x.fault, x.dead, x.a.log = t, map[string]*accepted{}, map[string][]note{}, 0, false, false, &journal{}
	for key, o := range l.orders {
		x.orders[key] = &o
	}
	return x
}

// renew logs in again, for sessions end, and has that in a tree.
func (l *pointLab) renew(t *testing.T, tree string) {
	t.Helper()
	x := l.x
	copyTree(t, tree, x.a.state)
	x.closeGate()
	x.a.start(t)
	x.c = x.a.loginAdmin(t)
	x.a.stop(t, syscall.SIGKILL) // what was interrupted is again
	l.login = time.Now()
	copyTree(t, x.a.state, tree)
}

// count runs a life without harm and counts the calls of the busiest thread.
func (l *pointLab) count() map[string]int {
	x := l.begin(l.x.t)
	x.a.under = countCalls(l.trace)
	x.a.start(x.t)
	if !x.script(l) {
		x.t.Fatalf("the agent died without harm:\n%s", x.a.log)
	}
	x.a.stop(x.t, syscall.SIGTERM)
	trace := x.a.traced(x.t, l.trace)
	x.a.under = nil
	x.verifyAfter()
	out := callsOf(trace)
	if out["fdatasync"] == 0 || out["renameat2"] == 0 || out["unlinkat"] == 0 {
		x.t.Fatalf("the trace lacks calls: %v", out)
	}
	return out
}

// traced is what strace wrote, once it is gone: it is nobody's child.
func (a *agent) traced(t *testing.T, name string) string {
	t.Helper()
	last := regexp.MustCompile(fmt.Sprintf(`(?m)^%d +\+\+\+ `, a.cmd.Process.Pid))
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(name)
		if err == nil && last.Match(text) {
			return string(text)
		}
		if time.Now().After(end) {
			t.Fatalf("strace does not end its trace: %v\n%s", err, text)
		}
	}
}

// suffer is one life with harm at p, and the next one without. It tells whether the point was hit.
func (l *pointLab) suffer(t *testing.T, p point) (hit bool) {
	x := l.begin(t)
	defer func() {
		x.a.kill()
		if log := x.a.log.String(); strings.Contains(log, "DATA RACE") || t.Failed() {
			t.Errorf("the agent's log:\n%s", log)
		}
	}()
	x.a.under = p.strace(l.trace)
	x.fault = strings.HasPrefix(p.harm, "error=")
	if x.a.launch(t) && x.script(l) {
		_ = x.a.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
	}
	fetchtest.Await(t, "the agent's end", x.a.done)
	x.a.under = nil
	hit = x.a.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	if x.fault {
		hit = strings.Contains(x.a.traced(t, l.trace), "(INJECTED)")
	}
	x.verifyAfter()
	return hit
}

// verifyAfter starts the agent again, looks, lets it do what is left, and looks again.
func (x *torture) verifyAfter() {
	open := x.closeGate()
	x.a.start(x.t)
	x.verify()
	x.verifyFiles()
	open()
	x.settle()
	x.verifyFiles()
	x.a.stop(x.t, syscall.SIGTERM)
}

// verifyFiles looks for files that nobody needs beside the slots.
func (x *torture) verifyFiles() {
	known := regexp.MustCompile(`^(agent\.lock|seal\.key|uuid|initial-admin-password|slotfetch\.db(-wal|-shm|\.schema[0-9]+)?|tls/tls\.(crt|key)|slots/(\.lock|\.part/[^/]+|[1-9]/(image|manifest\.json|care\.json)))$`)
	check(x.t, filepath.WalkDir(x.a.state, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the agent is at work
		}
		name, rerr := filepath.Rel(x.a.state, path)
		if err == nil && !e.IsDir() && !known.MatchString(name) {
			x.t.Errorf("stray file %s", name)
		}
		return errors.Join(err, rerr)
	}))
}

// script does one of everything, always in the same order: pins, unpins and labels, cancels what is queued, prunes, empties a
// slot, resumes a download, fetches, fails, and cancels what is running. It tells whether the agent survived.
func (x *torture) script(l *pointLab) bool {
	open := x.closeGate()
	x.annotate("1", l.done, note{true, "known good"})
	x.annotate("1", l.done, note{})
	x.annotate("2", l.emptied, note{Label: "old"})
	x.orders[l.queued].pruning = true
	x.remove(l.queued)
	x.orders[l.done].pruning = true
	x.remove(l.done)
	x.empty("2", l.emptied)
	fine, wrong := x.order(4, false), x.order(3, true) // the first breaks off once
	open()
	if !x.until("all ended", func(rows map[string]reply) bool { return x.ended(rows, slices.Collect(maps.Keys(rows))...) }) {
		return false
	}
	if !x.fault && (x.orders[fine].status != "finished" || x.orders[wrong].status != "failed") {
		x.t.Errorf("fetches are %q and %q, not finished and failed", x.orders[fine].status, x.orders[wrong].status)
	}
	running := x.order(5, false)
	if running == "" {
		return x.until("a reply", func(map[string]reply) bool { return true })
	}
	if !x.until("a download", func(rows map[string]reply) bool {
		n, _ := rows[running].get("body.bytes_downloaded").(float64)
		return n > 0 || x.ended(rows, running)
	}) {
		return false
	}
	x.orders[running].pruning = true
	x.remove(running)
	return x.until("the end of a cancel", func(rows map[string]reply) bool { return x.ended(rows, slices.Collect(maps.Keys(rows))...) })
}

// order orders an image and gives the key, or "" if it was not accepted.
func (x *torture) order(image int, wrong bool) string {
	sum := x.images[image].SHA256()
	if wrong {
		sum = strings.Repeat("0d", 32)
	}
	x.asked++
	r, err := x.c.try("POST", fetches, order(fmt.Sprintf("%s/%d", x.url, image), sum, "force", true))
	switch {
	case err != nil:
		return ""
	case r.code == 202:
		x.asked--
		x.orders[r.str("key")] = &accepted{image: x.images[image], wrong: wrong}
		return r.str("key")
	case !x.excused(r):
		x.t.Errorf("%s: %d %s", r.what, r.code, r.raw)
	}
	return ""
}

// excused tells whether a refusal comes of a call that failed, or of the agent's end.
func (x *torture) excused(r reply) bool {
	return r.code == 503 || x.fault && (r.code == 500 || r.code == 507)
}

// until asks for all fetches until they are as wanted. It tells whether the agent survived.
func (x *torture) until(what string, ok func(rows map[string]reply) bool) bool {
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(5 * time.Millisecond) {
		r, err := x.c.try("GET", fetches, "")
		if err == nil && r.code == 200 {
			x.note(r)
			rows := map[string]reply{}
			for _, item := range r.get("items").([]any) {
				rows[reply{json: item}.str("key")] = reply{json: item}
			}
			if ok(rows) {
				return true
			}
		}
		select {
		case <-x.a.done:
			return false
		default:
		}
		if x.dead && time.Now().After(end.Add(2*time.Second-fetchtest.Patience)) && err == nil && (r.code == 200 || r.code == 503) {
			return true // at least it answers
		}
		if time.Now().After(end) {
			x.t.Errorf("waited %s in vain for %s: %v %s", fetchtest.Patience, what, err, r.raw)
			return true
		}
	}
}

func (x *torture) ended(rows map[string]reply, keys ...string) bool {
	return !slices.ContainsFunc(keys, func(key string) bool {
		row, there := rows[key]
		return there && row.get("body.end_time") == nil
	})
}
