package main_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

// ledger is what was promised, and asked for, when the disk had come to position.
type ledger struct {
	position int
	orders   map[string]accepted
	notes    map[string][]note
	asked    int
}

// TestPowerCut records what the agent has its ext4 write to the disk during one life, see script, and rebuilds what a
// power cut at random instants may leave: all that was flushed, and of the rest all, nothing, some of it in any order, or
// sectors of it. The kernel mounts each such disk, the agent starts on it, and what was promised by then has to hold.
// SLOTFETCH_STATES is the number of cuts.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	states, seed := setting(t, "SLOTFETCH_STATES", 12), setting(t, "SLOTFETCH_SEED", uint64(time.Now().UnixNano()))
	l := newPointLab(t, seed)
	x := l.x
	base := ext4With(t, l.pristine, blockMegabytes)
	var ledgers []ledger
	end := 0 // before the unmount, which writes ext4's superblock: if that is torn, nothing can be mounted
	log, _, _ := l.record(t, slices.Clone(base), 0, func(r *recorder) {
		x.c.before = func() { ledgers = append(ledgers, x.ledger(r.position())) }
		defer func() { x.c.before = nil }()
		x.a.start(t)
		if !x.script(l) {
			t.Fatalf("the agent died:\n%s", x.a.log)
		}
		x.a.stop(t, syscall.SIGTERM)
		end = r.position()
	}).all()
	log = log[:end]
	flushes := 0
	for _, e := range log {
		if e.data == nil {
			flushes++
		}
	}
	t.Logf("SLOTFETCH_SEED=%d: %d writes and %d flushes", seed, len(log)-flushes, flushes)
	if flushes < 10 {
		t.Fatal("the flushes do not come through")
	}
	first := ledgers[0].position
	rng := rand.New(rand.NewPCG(seed, 5))
	for n := range states {
		cut := first + rng.IntN(len(log)-first)
		disk, how := crash(rng, base, log[:cut])
		t.Run(fmt.Sprintf("%d/%s", cut, how), func(t *testing.T) {
			i, _ := slices.BinarySearchFunc(ledgers, cut+1, func(l ledger, at int) int { return l.position - at })
			l.boot(t, disk, ledgers[i-1], n%8 == 0)
		})
	}
	t.Logf("RAN %d cuts of a life of %d writes and %d flushes", states, len(log)-flushes, flushes)
}

// blockMegabytes is the size of the recorded disk: small, because each state is a copy of it.
const blockMegabytes = 40

// TestDyingDisk lets every write fail from a random one on, in the middle of a life. What was answered before must hold
// after a repair, as at boot; until then the agent answers, and stops when it is told to. SLOTFETCH_STATES is how many disks die, divided by 8.
func TestDyingDisk(t *testing.T) {
	t.Parallel()
	disks, seed := max(1, setting(t, "SLOTFETCH_STATES", 12)/8), setting(t, "SLOTFETCH_SEED", uint64(time.Now().UnixNano()))
	l := newPointLab(t, seed)
	rng := rand.New(rand.NewPCG(seed, 6))
	for range disks {
		limit := 20 + rng.IntN(100)
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			x := l.begin(t) // which may log in again
			r := l.record(t, ext4With(t, l.pristine, blockMegabytes), limit, func(*recorder) {
				x.fault, x.dead = true, true
				if x.a.launch(t) && x.script(l) {
					_ = x.a.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
				}
				fetchtest.Await(t, "the agent's end", x.a.done)
			})
			x.dead = false
			_, image, writes := r.all()
			t.Logf("SLOTFETCH_SEED=%d: %d writes asked for, %d done", seed, writes, min(writes, limit))
			l.boot(t, image, x.ledger(0), true)
		})
	}
	t.Logf("RAN %d disks", disks)
}

// record runs life with the agent's state on a recorded disk.
func (l *pointLab) record(t *testing.T, image []byte, limit int, life func(r *recorder)) *recorder {
	t.Helper()
	x := l.begin(t)
	defer x.a.kill()
	check(t, os.RemoveAll(x.a.state))
	check(t, os.Mkdir(x.a.state, 0o700))
	r := newRecorder(t, image, limit)
	unmount := mountImage(t, r.file, x.a.state)
	life(r)
	x.a.kill()
	unmount()
	return r
}

// boot starts the agent on a disk and looks whether it keeps what was promised; with settle, also whether it goes on.
func (l *pointLab) boot(t *testing.T, disk []byte, promised ledger, settle bool) {
	file := filepath.Join(memory(t), "disk")
	check(t, os.WriteFile(file, disk, 0o600))
	l.x.boot(t, file, promised, settle)
}

// boot is that for a disk in a file of its own.
func (x *torture) boot(t *testing.T, file string, promised ledger, settle bool) {
	x.t, x.orders, x.notes, x.asked, x.a.log = t, map[string]*accepted{}, maps.Clone(promised.notes), promised.asked, &journal{}
	for key, o := range promised.orders {
		x.orders[key] = &o
	}
	defer func() {
		if t.Failed() {
			t.Logf("the agent's log:\n%s", x.a.log)
		}
	}()
	if out, err := exec.Command("e2fsck", "-p", file).CombinedOutput(); err != nil { // as at boot; it replays the journal
		t.Logf("e2fsck: %v %s", err, out) // 1: it has repaired something; the mount below tells about the rest
	}
	unmount := mountImage(t, file, x.a.state)
	defer unmount()
	x.examine("cut")
	open := x.closeGate()
	defer x.a.kill()
	x.a.start(t)
	defer func(before *client) { x.c = before }(x.c)
	x.c = x.a.loginAdmin(t) // the recorded session may be too old, and the new one is on this disk only
	x.verify()
	x.verifyFiles()
	open()
	if settle {
		x.settle()
		x.verifyFiles()
	}
}

// memory is a directory for a short while, in memory where there is one.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "slotfetchd")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (x *torture) ledger(position int) ledger {
	x.mu.Lock()
	defer x.mu.Unlock()
	l := ledger{position: position, orders: map[string]accepted{}, notes: maps.Clone(x.notes), asked: x.asked}
	for key, o := range x.orders {
		l.orders[key] = *o
	}
	return l
}

// crash is the disk after a power cut: base with log, of which everything before the last flush is there, and of what
// came after as much as how says.
func crash(rng *rand.Rand, base []byte, log []diskEvent) (disk []byte, how string) {
	disk = slices.Clone(base)
	durable := 0
	for i, e := range log {
		if e.data == nil {
			durable = i
		}
	}
	for _, e := range log[:durable] {
		copy(disk[e.at:], e.data)
	}
	pending := slices.Clone(log[durable:])
	how = []string{"all", "nothing", "some", "some", "torn"}[rng.IntN(5)]
	share := map[string]float64{"all": 1, "some": rng.Float64(), "torn": rng.Float64()}[how]
	if how != "all" {
		rng.Shuffle(len(pending), func(i, j int) { pending[i], pending[j] = pending[j], pending[i] })
	}
	for _, e := range pending {
		if rng.Float64() >= share {
			continue
		}
		for s := 0; s < len(e.data); s += 512 {
			if how != "torn" || rng.IntN(2) == 0 {
				copy(disk[e.at+int64(s):], e.data[s:min(s+512, len(e.data))])
			}
		}
	}
	return disk, how
}
