package main_test

import (
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

const (
	slowFlush = 500 * time.Millisecond
	// slowAnswer is what a GET may take meanwhile: it waits for no flush, the rest is for a busy machine.
	slowAnswer = time.Second
	// slowStop is what the end of the agent may take, and slowHand more of that for a fetch in hand: its bytes, three
	// records of two flushes each, and one that somebody else had begun.
	slowStop, slowHand = 5 * time.Second, 10 * slowFlush
	slowUsers          = 16 // sessions besides, the use of which is noted at the end
)

// TestSlowDisk has state and slots on a disk each flush of which takes half a second, and nothing else is done by it
// meanwhile: fetches finish, GETs are answered all the time, a cancel is one, and the agent stops when it is told to, in
// the middle of a fetch, which goes on after.
func TestSlowDisk(t *testing.T) {
	t.Parallel()
	a := newAgent(t, "[slots]\nreserve = 0\n[fetch]\nworkers = 2\n")
	r := newRecorder(t, ext4.with(t, t.TempDir()), 0)
	check(t, os.Mkdir(a.state, 0o700))
	ext4.mounted(t, r.file, a.state)
	if out, err := exec.Command("mount", "-o", "remount,commit=5", a.state).CombinedOutput(); err != nil { // as ext4 has it
		t.Fatalf("remount: %v %s", err, out)
	}
	a.first(t)
	c := a.loginAdmin(t)
	flushes := func() (n int) {
		log, _, _ := r.all()
		for _, e := range log {
			if e.data == nil {
				n++
			}
		}
		return n
	}
	var users []*client
	for range slowUsers {
		users = append(users, a.loginAdmin(t))
	}
	watcher := a.loginAdmin(t)
	before := flushes()
	r.slowDown(slowFlush)
	t.Cleanup(func() { r.slowDown(0) }) // for the unmount

	// One caller looks all the time.
	stop := make(chan struct{})
	var watch sync.WaitGroup
	var took []time.Duration
	watch.Go(func() {
		for {
			for _, path := range []string{fetches, slotsPath, "/api/firmware"} {
				select {
				case <-stop:
					return
				default:
				}
				began := time.Now()
				if r, err := watcher.try("GET", path, ""); err != nil || r.code != 200 {
					t.Errorf("GET %s: %v %d %s", path, err, r.code, r.raw)
					return
				}
				took = append(took, time.Since(began))
			}
			time.Sleep(10 * time.Millisecond) // leave the agent some of the processor
		}
	})
	img := fetchtest.NewImage(95, 2<<20)
	big := fetchtest.Whole(img)
	refused := 0
	// A POST waits its turn for a while, and says so when it has not come.
	fetch := func(url, sha256 string) string {
		t.Helper()
		for end := time.Now().Add(fetchtest.Patience); ; refused++ {
			r := c.do(t, "POST", fetches, order(url, sha256, "force", true), "Idempotency-Key", url)
			if r.code == 202 {
				return r.str("meta.href")
			}
			if r.fails(t, 503, "ServiceUnavailable", ""); time.Now().After(end) {
				t.Fatal("no POST is taken")
			}
		}
	}
	var jobs []string
	for range 2 {
		jobs = append(jobs, fetch(fetchtest.NewHTTP(t, nil).Handle("/x.iso", big.Serve), img.SHA256()))
	}
	finished := func(job string) reply { // which takes longer than anywhere else
		t.Helper()
		for end := time.Now().Add(3 * fetchtest.Patience); ; time.Sleep(20 * time.Millisecond) {
			if r := c.do(t, "GET", job, "").want(t, 200); r.get("body.end_time") != nil || time.Now().After(end) {
				return r.is(t, "body.status", "finished")
			}
		}
	}
	for _, job := range jobs {
		slot, _ := finished(job).get("body.slot_id").(float64)
		holdsIn(t, a.state+"/slots", int(slot), img)
	}
	server, slow := serveStalling(t, img)
	job := fetch(slow, img.SHA256())
	server.Next(t)
	c.awaitPhase(t, job, "downloading")
	began := time.Now()
	c.do(t, "DELETE", job, "").want(t, 200)
	cancel := time.Since(began)
	c.awaitStatus(t, job, "cancelled")
	if left := a.partials(t); left != nil {
		t.Errorf("left behind: %v", left)
	}
	close(stop)
	watch.Wait()
	if longest := slices.Max(took); longest > slowAnswer {
		t.Errorf("a GET took %s", longest)
	}
	if n := flushes() - before; n < 10 {
		t.Fatalf("the flushes do not come through: %d", n)
	}

	server, slow = serveStalling(t, img)
	job = fetch(slow, img.SHA256())
	server.Next(t)
	c.await(t, job, "half of it", func(r reply) bool { return r.get("body.bytes_downloaded") == float64(img.Size()/2) })
	for _, u := range users {
		u.do(t, "GET", job, "").want(t, 200)
	}
	began = time.Now()
	a.stop(t, syscall.SIGTERM)
	end := time.Since(began)
	if end > slowStop+slowHand {
		t.Errorf("the agent took %s to stop", end)
	}
	a.start(t)
	server.Next(t).Release()
	finished(job).is(t, "body.resumed_from", img.Size()/2)
	slices.Sort(took)
	t.Logf("RAN %d flushes of %s; of %d GETs half took %s, the longest %s; a cancel took %s, the stop %s", flushes()-before, slowFlush, len(took),
		took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond), cancel.Round(time.Millisecond), end.Round(time.Millisecond))
}
