package main_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
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
	cutPower(t, ext4, setting(t, "SLOTFETCH_STATES", 12))
}

// TestPowerCutBtrfs is TestPowerCut on a btrfs, with a tenth of the cuts.
func TestPowerCutBtrfs(t *testing.T) {
	t.Parallel()
	cutPower(t, btrfs, max(2, setting(t, "SLOTFETCH_STATES", 12)/10))
}

// TestPowerCutXFS is TestPowerCut on an XFS, with a tenth of the cuts.
func TestPowerCutXFS(t *testing.T) {
	t.Parallel()
	cutPower(t, xfs, max(2, setting(t, "SLOTFETCH_STATES", 12)/10))
}

func cutPower(t *testing.T, fs fileSystem, states int) {
	seed := setting(t, "SLOTFETCH_SEED", uint64(time.Now().UnixNano()))
	l := newPointLab(t, seed)
	x := l.x
	base := fs.with(t, l.pristine)
	var ledgers []ledger
	end := 0 // before the unmount, which writes ext4's superblock: if that is torn, nothing can be mounted
	log, _, _ := l.record(t, fs, slices.Clone(base), 0, func(r *recorder) {
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
	flushes := flushesIn(log)
	t.Logf("SLOTFETCH_SEED=%d: %d writes and %d flushes", seed, len(log)-flushes, flushes)
	if flushes < 10 {
		t.Fatal("the flushes do not come through")
	}
	first := ledgers[0].position
	rng := rand.New(rand.NewPCG(seed, 5))
	lost := 0
	for n := range states {
		cut := first + rng.IntN(len(log)-first)
		survived, how := crash(rng, log[:cut])
		t.Run(fmt.Sprintf("%d/%s", cut, how), func(t *testing.T) {
			i, _ := slices.BinarySearchFunc(ledgers, cut+1, func(l ledger, at int) int { return l.position - at })
			if err := l.x.boot(t, fs, diskAfter(t, base, survived), ledgers[i-1], n%8 == 0); err != nil {
				t.Log(err)
				lost++
			}
		})
	}
	t.Logf("RAN %d cuts of a life of %d writes and %d flushes%s", states, len(log)-flushes, flushes, lostDisks(t, lost, states))
}

// lostDisks tells of disks that the kernel does not mount after a cut, which is a matter of the file system, as long as they
// are few.
func lostDisks(t *testing.T, lost, states int) string {
	t.Helper()
	if lost == 0 {
		return ""
	}
	few := states / 50
	if states >= 10 {
		few++
	}
	if lost > few {
		t.Errorf("%d of %d disks cannot be mounted", lost, states)
	}
	return fmt.Sprintf(", %d of which left a disk that the kernel does not mount", lost)
}

func flushesIn(log []diskEvent) (n int) {
	for _, e := range log {
		if e.data == nil {
			n++
		}
	}
	return n
}

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
			r := l.record(t, ext4, ext4.with(t, l.pristine), limit, func(*recorder) {
				x.fault, x.dead = true, true
				if x.a.launch(t) && x.script(l) {
					_ = x.a.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
				}
				fetchtest.Await(t, "the agent's end", x.a.done)
			})
			x.dead = false
			_, image, writes := r.all()
			t.Logf("SLOTFETCH_SEED=%d: %d writes asked for, %d done", seed, writes, min(writes, limit))
			check(t, x.boot(t, ext4, diskAfter(t, image, nil), x.ledger(0), true))
		})
	}
	t.Logf("RAN %d disks", disks)
}

// record runs life with the agent's state on a recorded disk.
func (l *pointLab) record(t *testing.T, fs fileSystem, image []byte, limit int, life func(r *recorder)) *recorder {
	t.Helper()
	x := l.begin(t)
	defer x.a.kill()
	check(t, os.RemoveAll(x.a.state))
	check(t, os.Mkdir(x.a.state, 0o700))
	r := newRecorder(t, image, limit)
	unmount := fs.mounted(t, r.file, x.a.state)
	life(r)
	x.a.kill()
	unmount()
	return r
}

// boot starts the agent on the disk in a file and looks whether it keeps what was promised; with settle, also whether it goes
// on. An error means that the kernel cannot mount it.
func (x *torture) boot(t *testing.T, fs fileSystem, file string, promised ledger, settle bool) error {
	x.t, x.orders, x.notes, x.asked, x.a.log = t, map[string]*accepted{}, maps.Clone(promised.notes), promised.asked, &journal{}
	for key, o := range promised.orders {
		x.orders[key] = &o
	}
	defer func() {
		if t.Failed() {
			t.Logf("the agent's log:\n%s", x.a.log)
		}
	}()
	unmount, err := fs.recover(t, file, x.a.state)
	if err != nil {
		return err
	}
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
	return nil
}

// diskAfter is a new file with base and the writes to it.
func diskAfter(t *testing.T, base []byte, writes []diskEvent) (file string) {
	t.Helper()
	f, err := os.Create(filepath.Join(memory(t), "disk"))
	check(t, err)
	defer f.Close()
	check(t, f.Truncate(int64(len(base))))
	const chunk = 64 << 10
	nothing := make([]byte, chunk)
	for at := 0; at < len(base); at += chunk {
		if data := base[at:min(at+chunk, len(base))]; !bytes.Equal(data, nothing[:len(data)]) {
			_, err := f.WriteAt(data, int64(at))
			check(t, err)
		}
	}
	for _, e := range writes {
		_, err := f.WriteAt(e.data, e.at)
		check(t, err)
	}
	return f.Name()
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

// crash is what a power cut leaves of the writes in log: everything before the last flush, and of what came after as much as
// how says.
func crash(rng *rand.Rand, log []diskEvent) (survived []diskEvent, how string) {
	durable := 0
	for i, e := range log {
		if e.data == nil {
			durable = i
		}
	}
	survived, pending := slices.Clone(log[:durable]), slices.Clone(log[durable:])
	how = []string{"all", "nothing", "some", "some", "torn"}[rng.IntN(5)]
	share := map[string]float64{"all": 1, "some": rng.Float64(), "torn": rng.Float64()}[how]
	if how != "all" {
		rng.Shuffle(len(pending), func(i, j int) { pending[i], pending[j] = pending[j], pending[i] })
	}
	for _, e := range pending {
		if rng.Float64() >= share {
			continue
		}
		if how != "torn" {
			survived = append(survived, e)
			continue
		}
		for s := 0; s < len(e.data); s += 512 {
			if rng.IntN(2) == 0 {
				survived = append(survived, diskEvent{e.at + int64(s), e.data[s:min(s+512, len(e.data))]})
			}
		}
	}
	return survived, how
}
