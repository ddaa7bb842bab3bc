package main_test

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

const (
	soakLanes    = 4                     // downloads at a time, which are the agent's workers
	soakSize     = 3 << 20               // of an image
	soakMax      = soakSize + soakSize/2 // for which fetch.max_size stands; more than a worker's buffers have
	soakGrowth   = 2 << 20               // of the agent's memory from the warm-up to the end, in bytes
	soakThreads  = 4                     // more are no leak: Go never ends one
	soakQuiet    = 3 * time.Second       // without change, after which a reading counts
	soakPatience = 5 * time.Minute       // with memory: an idle Go program collects its garbage every other minute
	soakCancels  = 10                    // one download in so many is cancelled
)

// TestSoak has one agent live through many downloads, several at a time, each from a server of its own that misbehaves
// in a way of fetchtest's tables, or that stalls until the fetch is cancelled. Each comes to its end; none leaves a
// partial, descriptor or goroutine behind, and from a quarter of them on the agent's memory hardly grows. The agent is
// built without the race detector, whose memory does grow. SLOTFETCH_DOWNLOADS is their number.
func TestSoak(t *testing.T) {
	t.Parallel()
	downloads, seed := setting(t, "SLOTFETCH_DOWNLOADS", 60), setting(t, "SLOTFETCH_SEED", uint64(time.Now().UnixNano()))
	a := newAgent(t, fmt.Sprintf(`[slots]
count = %d
reserve = 0
[fetch]
workers = %d
idle_timeout = "2s"
retry_rounds = 2
retry_max = "50ms"
max_size = %d
`, 2*soakLanes, soakLanes, soakMax))
	a.env = []string{"MALLOC_ARENA_MAX=1"} // as it is, the C library, below SQLite, gives a thread more a heap of its own
	a.program = plainProgram(t)
	a.start(t)
	a.newPassword(t)
	t.Cleanup(func() {
		a.stop(t, syscall.SIGTERM)
		for line := range strings.Lines(a.log.String()) { // one of the FTP servers has a library panic, which is caught
			if strings.Contains(line, "panic") && !strings.Contains(line, `msg="panic in a source"`) {
				t.Errorf("the agent's log has %s", line)
			}
		}
		if t.Failed() {
			t.Logf("the agent's log:\n%s", a.log)
		}
	})
	s := &soak{a: a, c: a.loginAdmin(t), rng: rand.New(rand.NewPCG(seed, 7)), tls: fetchtest.NewCA().TLS(fetchtest.Good), came: map[string]int{}}
	s.fillWorkers(t)
	s.openReaders(t)
	s.run(t, downloads/4)
	before := s.settled(t, soakQuiet, func(usage) bool { return false })
	s.run(t, downloads-downloads/4)
	after := s.settled(t, soakPatience, func(u usage) bool { return u.within(before) })
	t.Logf("RAN %d downloads, %v; descriptors %d → %d, goroutines %d → %d, threads %d → %d, memory %d → %d KiB; SLOTFETCH_SEED=%d", downloads, s.came,
		len(before.files), len(after.files), before.goroutines, after.goroutines, before.threads, after.threads, before.memory>>10, after.memory>>10, seed)
	if !after.within(before) {
		_ = a.cmd.Process.Signal(syscall.SIGQUIT) // its log, which is shown now, tells what the goroutines do
		fetchtest.Await(t, "the agent's end", a.done)
		t.Errorf("the agent holds more than after the warm-up; its descriptors: before %v, now %v", before.files, after.files)
	}
	if left := a.partials(t); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

// plainProgram is slotfetchd without the race detector.
func plainProgram(t *testing.T) string {
	t.Helper()
	if os.Getenv("SLOTFETCH_PLAIN") != "" {
		return program
	}
	path := filepath.Join(t.TempDir(), "slotfetchd")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("cannot build slotfetchd: %v\n%s", err, out)
	}
	return path
}

// soak is an agent and what it has been through.
type soak struct {
	a   *agent
	c   *client
	rng *rand.Rand
	tls *tls.Config

	mu   sync.Mutex
	deck []int          // of cases that are still to come before any comes again
	next int            // download
	came map[string]int // how many ended so
}

// run runs n downloads.
func (s *soak) run(t *testing.T, n int) {
	t.Helper()
	var group sync.WaitGroup
	var begun atomic.Int64
	for range soakLanes {
		group.Go(func() {
			for begun.Add(1) <= int64(n) && !t.Failed() {
				s.download(t)
			}
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// soakCase is a server that misbehaves, by one of the two schemes of its table.
type soakCase struct {
	fetchtest.Misbehaviour
	scheme string
}

// soakCases are all that need no limit that the agent's configuration does not have.
func soakCases(img *fetchtest.Image) (all []soakCase) {
	for scheme, table := range map[string][]fetchtest.Misbehaviour{"http": fetchtest.HTTPMisbehaviour(img), "ftp": fetchtest.FTPMisbehaviour(img)} {
		for _, m := range table {
			if m.Need != fetchtest.NeedsLowSpeed {
				all = append(all, soakCase{m, scheme}, soakCase{m, scheme + "s"})
			}
		}
	}
	slices.SortFunc(all, func(a, b soakCase) int {
		return cmp.Or(cmp.Compare(a.scheme, b.scheme), cmp.Compare(a.Name, b.Name))
	})
	return all
}

// download is one of them, as a test of its own, so that its server is gone with it.
func (s *soak) download(t *testing.T) {
	s.mu.Lock()
	s.next++
	img := fetchtest.NewImage(uint64(2000+s.next), soakSize)
	all := soakCases(img)
	if len(s.deck) == 0 {
		s.deck = s.rng.Perm(len(all))
	}
	it, cancel := all[s.deck[0]], s.next%soakCancels == 0
	if !cancel {
		s.deck = s.deck[1:]
	}
	n := s.next
	s.mu.Unlock()
	conf := s.tls
	if !strings.HasSuffix(it.scheme, "s") {
		conf = nil
	}
	if cancel {
		t.Run(fmt.Sprintf("%d %s cancelled", n, it.scheme), func(t *testing.T) { s.cancelled(t, img, it.scheme, conf) })
		return
	}
	t.Run(fmt.Sprintf("%d %s %s", n, it.scheme, it.Name), func(t *testing.T) { s.suffer(t, img, it.Serve(t, conf), it.Want) })
}

// suffer waits for the end of a fetch from a server that misbehaves.
func (s *soak) suffer(t *testing.T, img *fetchtest.Image, raw string, want fetchtest.Ending) {
	r := s.end(t, s.c.fetch(t, raw, img.SHA256()))
	u, err := url.Parse(raw)
	check(t, err)
	finished, says := r.str("body.status") == "finished", strings.ReplaceAll(r.str("body.error"), (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String(), "URL")
	if finished != want.Finished || !strings.HasPrefix(says, want.Says) || want.Says == "" && says != "" {
		t.Errorf("got %s\nwant finished: %v, %q", r.raw, want.Finished, want.Says)
	}
	// On a busy machine there may be more, because time ran out.
	if n, ok := r.get("body.attempts").(float64); !ok || int(n) < want.Attempts {
		t.Errorf("%v attempts, want %d: %s", r.get("body.attempts"), want.Attempts, r.raw)
	}
	if slot, ok := r.get("body.slot_id").(float64); finished && ok {
		holdsIn(t, filepath.Join(s.a.state, "slots"), int(slot), img)
	}
	s.clear(t, r)
}

// cancelled cancels a fetch in the middle.
func (s *soak) cancelled(t *testing.T, img *fetchtest.Image, scheme string, conf *tls.Config) {
	var raw string
	if strings.HasPrefix(scheme, "ftp") {
		raw = fetchtest.NewFTP(t, fetchtest.Script{TLS: conf, Files: map[string]*fetchtest.Image{"x.iso": img}, Fault: fetchtest.Stall, After: img.Size() / 2}).URL + "/x.iso"
	} else {
		f := fetchtest.Whole(img)
		f.Fault, f.After = fetchtest.Stall, img.Size()/2
		raw = fetchtest.NewHTTP(t, conf).Handle("/x.iso", f.Serve)
	}
	job := s.c.fetch(t, raw, img.SHA256())
	s.c.await(t, job, "half of it", func(r reply) bool { n, _ := r.get("body.bytes_downloaded").(float64); return int64(n) >= img.Size()/2 })
	s.c.do(t, "DELETE", job, "").want(t, 200)
	r := s.end(t, job)
	if r.str("body.status") != "cancelled" {
		t.Errorf("got %s", r.raw)
	}
	s.clear(t, r)
}

// end waits for the end of a fetch, which leaves no partial.
func (s *soak) end(t *testing.T, job string) reply {
	t.Helper()
	r := s.c.await(t, job, "an end", func(r reply) bool { return r.get("body.end_time") != nil })
	if left := s.a.partials(t); slices.Contains(left, r.str("key")+".partial") {
		t.Errorf("left behind: %v", left)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.came[r.str("body.status")]++
	return r
}

// fillWorkers gives each worker an image at the same time, so that all have used all of their buffers.
func (s *soak) fillWorkers(t *testing.T) {
	t.Helper()
	img := fetchtest.NewImage(2000, soakMax)
	f := fetchtest.Whole(img)
	f.Fault, f.After = fetchtest.Stall, img.Size()-1
	server := fetchtest.NewHTTP(t, nil)
	raw := server.Handle("/x.iso", f.Serve)
	var jobs []string
	var stalled []*fetchtest.Exchange
	for range soakLanes {
		jobs = append(jobs, s.c.fetch(t, raw, img.SHA256()))
		stalled = append(stalled, server.Next(t))
	}
	for _, x := range stalled {
		x.Release()
	}
	for _, job := range jobs {
		s.clear(t, s.c.awaitStatus(t, job, "finished"))
	}
}

// clear removes what is in the list, and in the slot, of a fetch that ended.
func (s *soak) clear(t *testing.T, r reply) {
	t.Helper()
	if slot, ok := r.get("body.slot_id").(float64); ok && r.str("body.status") == "finished" {
		s.c.do(t, "DELETE", fmt.Sprint(slotsPath, "/", slot), "").want(t, 200)
	}
	s.c.do(t, "DELETE", fetches+"/"+r.str("key"), "").want(t, 200)
}

// openReaders makes the agent open all of its connections to the database, which it does only when they are in use at
// the same time. They stay.
func (s *soak) openReaders(t *testing.T) {
	t.Helper()
	const files = 2 * (1 + 4) // database and log of the writer and of package store's readers
	for end := time.Now().Add(fetchtest.Patience); ; {
		var group sync.WaitGroup
		for range 16 {
			group.Go(func() {
				if r, err := s.c.try("GET", fetches, ""); err != nil || r.code != 200 {
					t.Errorf("%v %d %s", err, r.code, r.raw)
				}
			})
		}
		group.Wait()
		n := 0
		for _, name := range s.usage(t).files {
			if name == s.a.database() || name == s.a.database()+"-wal" {
				n++
			}
		}
		if n == files {
			return
		}
		if n > files || time.Now().After(end) {
			t.Fatalf("the database is open %d times, not %d", n, files)
		}
	}
}

// usage is what the agent holds.
type usage struct {
	files               []string // its descriptors
	goroutines, threads int
	memory              int64 // resident, in bytes
}

// within tells whether u is no more than before.
func (u usage) within(before usage) bool {
	return len(u.files) <= len(before.files) && u.goroutines <= before.goroutines && u.threads <= before.threads+soakThreads && u.memory-before.memory < soakGrowth
}

// settled reads what the idle agent holds until it is enough, or nothing has become less for a while, which limit bounds.
func (s *soak) settled(t *testing.T, limit time.Duration, enough func(usage) bool) usage {
	t.Helper()
	least := s.usage(t)
	for since := time.Now(); !enough(least) && time.Since(since) < limit; time.Sleep(50 * time.Millisecond) {
		u := s.usage(t)
		if len(u.files) < len(least.files) || u.goroutines < least.goroutines || u.memory < least.memory {
			since = time.Now()
		}
		if len(u.files) <= len(least.files) {
			least.files = u.files
		}
		least.goroutines, least.threads, least.memory = min(least.goroutines, u.goroutines), min(least.threads, u.threads), min(least.memory, u.memory)
	}
	return least
}

var statusLine = regexp.MustCompile(`(?m)^(Threads|VmRSS):\s+(\d+)`)

// usage looks at the agent, over one connection of ours.
func (s *soak) usage(t *testing.T) (u usage) {
	t.Helper()
	s.c.http.CloseIdleConnections()
	u.goroutines = int(s.c.samples(t)["go_goroutines{}"])
	proc := fmt.Sprint("/proc/", s.a.cmd.Process.Pid)
	entries, err := os.ReadDir(proc + "/fd")
	check(t, err)
	for _, e := range entries {
		name, err := os.Readlink(filepath.Join(proc, "fd", e.Name()))
		if err == nil { // it may be gone
			u.files = append(u.files, name)
		}
	}
	text, err := os.ReadFile(proc + "/status")
	check(t, err)
	for _, m := range statusLine.FindAllStringSubmatch(string(text), -1) {
		n, err := strconv.ParseInt(m[2], 10, 64)
		check(t, err)
		if m[1] == "Threads" {
			u.threads = int(n)
		} else {
			u.memory = n << 10
		}
	}
	if u.goroutines == 0 || u.threads == 0 || u.memory == 0 {
		t.Fatalf("cannot see what the agent holds: %+v in %s", u, text)
	}
	return u
}
