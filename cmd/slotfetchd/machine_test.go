package main_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

// TestMachinePowerCut cuts the power of a whole machine at random instants: QEMU with a kernel of its own, an ext4 and
// the real agent, which loses all that only its memory had. Callers and origin are out here, and so is what they know
// of. After each cut a copy of the disk is looked at, as in TestPowerCut; the machine then starts on the disk itself.
// SLOTFETCH_CUTS is the number of cuts. scripts/powercut provides the kernel.
func TestMachinePowerCut(t *testing.T) {
	t.Parallel()
	cuts, seed := setting(t, "SLOTFETCH_CUTS", 5), setting(t, "SLOTFETCH_SEED", uint64(time.Now().UnixNano()))
	x := newTorture(t, seed)
	x.a = newAgent(t, "[slots]\ncount = 8\nreserve = 0\n[fetch]\nworkers = 2\nretry_initial = \"60ms\"\n")
	m := newMachine(t, x)
	x.remote, x.a.patience = true, 2*time.Minute // it may have to be emulated
	t.Cleanup(x.a.kill)
	var ready, resumed []time.Duration
	interrupted := 0
	for n := range cuts {
		open := x.closeGate()
		asks := x.asks.Load()
		ready = append(ready, m.start(t, x))
		rows := x.verifyRows()
		if live := going(rows); live > 0 {
			began := time.Now()
			interrupted += live
			goesOn := func() bool { // it asks the origin, or finds that there is no slot for it
				r, err := x.c.try("GET", fetches, "")
				return x.asks.Load() > asks || err == nil && r.code == 200 && going(rowsOf(r)) < live
			}
			for end := began.Add(fetchtest.Patience); !goesOn(); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("none of %d interrupted fetches goes on:\n%s", live, x.a.log)
				}
			}
			resumed = append(resumed, time.Since(began))
		}
		open()
		trigger := &trigger{seen: make(chan struct{}), most: 2 * maxLife}
		if trigger.delay = time.Duration(x.rng.Int64N(int64(3 * time.Second))); x.rng.IntN(2) == 0 {
			trigger.phase = []string{"waiting", "verifying", "installing"}[x.rng.IntN(3)]
			trigger.delay /= 100
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		actor, busy := rand.New(rand.NewPCG(x.rng.Uint64(), 1)), x.rng.IntN(3) > 0
		wg.Go(func() { x.act(actor, busy, stop) })
		wg.Go(func() { x.watch(trigger, stop) })
		trigger.wait(stop)
		x.a.stop(t, syscall.SIGKILL)
		close(stop)
		wg.Wait()
		m.examine(t, x, n == cuts-1 || n%10 == 9)
		if t.Failed() {
			t.Fatalf("SLOTFETCH_SEED=%d, after cut %d", seed, n+1)
		}
	}
	slices.Sort(ready)
	t.Logf("RAN %d cuts (%s), %d fetches accepted, %d interrupted; an answer %s after power-on, %s at most, the first interrupted fetch %s later at most",
		cuts, m.acceleration, x.count, interrupted, ready[len(ready)/2].Round(time.Millisecond), ready[len(ready)-1].Round(time.Millisecond),
		slices.Max(append(resumed, 0)).Round(time.Millisecond))
	t.Logf("SLOTFETCH_SEED=%d", seed)
	x.logHits(t)
	if cuts >= 20 && interrupted < cuts/10 {
		t.Error("too few fetches were interrupted")
	}
}

// going counts the fetches that have not ended, and may.
func going(rows map[string]reply) (n int) {
	for _, row := range rows {
		if row.get("body.end_time") == nil && row.get("body.paused") != true {
			n++
		}
	}
	return n
}

// rowsOf are the fetches of a list, by key.
func rowsOf(list reply) map[string]reply {
	rows := map[string]reply{}
	for _, item := range list.get("items").([]any) {
		rows[reply{json: item}.str("key")] = reply{json: item}
	}
	return rows
}

func unfinished(rows map[string]reply) (n int) {
	for _, row := range rows {
		if row.get("body.end_time") == nil {
			n++
		}
	}
	return n
}

// machine is a virtual one that runs an agent as its only service.
type machine struct {
	disk         string // an ext4
	command      string // for sh
	base         string // where its API is seen from here
	acceleration string // kvm or tcg
}

// newMachine makes the machine, which runs x's agent in place of this one, or skips the test.
func newMachine(t *testing.T, x *torture) *machine {
	t.Helper()
	cache := os.Getenv("SLOTFETCH_GUEST")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Skipf("SKIPPED %s: %v", t.Name(), err)
		}
		cache = filepath.Join(dir, "slotfetch", "guest")
	}
	kernel := filepath.Join(cache, "vmlinuz")
	if _, err := os.Stat(kernel); err != nil {
		t.Skipf("SKIPPED %s: scripts/powercut has not prepared a kernel: %v", t.Name(), err)
	}
	for _, name := range []string{"qemu-system-x86_64", "busybox"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED %s: %v", t.Name(), err)
		}
	}
	dir := t.TempDir()
	m := &machine{disk: filepath.Join(dir, "disk"), acceleration: "tcg"}
	for _, args := range [][]string{{"truncate", "-s", "160M", m.disk}, {"mkfs.ext4", "-q", "-m", "0", m.disk}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("SKIPPED %s: %v: %v %s", t.Name(), args, err, out)
		}
	}
	check(t, os.MkdirAll(x.a.state, 0o700))
	unmount := ext4.mounted(t, m.disk, x.a.state) // or it cannot be looked at
	unmount()
	// The origin is a proxy, because from the machine it is seen at another address than from here.
	_, port, err := net.SplitHostPort(strings.TrimPrefix(x.url, "http://"))
	check(t, err)
	x.url = "http://origin.test"
	x.a.env = []string{"SLOTFETCH_PROXY__HTTP=http://127.0.0.1:" + port}
	initrd := filepath.Join(dir, "initrd")
	check(t, os.WriteFile(initrd, m.initrd(t, cache, x.a, port), 0o600))
	api := freePort(t)
	m.base = "https://" + api
	cpu := "max"
	if m.kvm() {
		m.acceleration, cpu = "kvm", "max,-arch-capabilities" // which some hosts that are machines themselves refuse
	}
	// Where the emulator itself is short of time, the kernel finds that its timer does not work.
	m.command = fmt.Sprintf(`exec qemu-system-x86_64 -accel %s -cpu %s -m 512 -smp 1 -nodefaults -no-user-config -no-reboot -display none \
		-kernel '%s' -initrd '%s' -append 'console=ttyS0 quiet panic=-1 no_timer_check mitigations=off rdinit=/init' -serial stdio \
		-drive 'file=%s,if=virtio,format=raw,cache=writeback' \
		-netdev user,id=n,hostfwd=tcp:%s-10.0.2.15:8443 -device virtio-net-pci,netdev=n,romfile= </dev/null 1>&2`,
		m.acceleration, cpu, kernel, initrd, m.disk, api)
	m.first(t, x)
	return m
}

// kvm tells whether the processor can run it. Some machines have a /dev/kvm on which no ordinary kernel comes up; their
// processors do not claim to be able to.
func (m *machine) kvm() bool {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !regexp.MustCompile(`(?m)^flags.* (vmx|svm)\b`).Match(text) {
		return false
	}
	cmd := exec.Command("qemu-system-x86_64", "-accel", "kvm", "-cpu", "max,-arch-capabilities", "-m", "16", "-nodefaults", "-no-user-config",
		"-display", "none", "-S", "-monitor", "stdio")
	cmd.Stdin = strings.NewReader("quit\n")
	return cmd.Run() == nil
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().String()
}

// first is the first start, out here, where its password can be read.
func (m *machine) first(t *testing.T, x *torture) {
	t.Helper()
	unmount := ext4.mounted(t, m.disk, x.a.state)
	defer unmount()
	x.a.start(t)
	x.a.newPassword(t)
	x.c = x.a.loginAdmin(t)
	x.a.stop(t, syscall.SIGTERM)
}

// start is power-on. It gives the time until the agent answered.
func (m *machine) start(t *testing.T, x *torture) time.Duration {
	t.Helper()
	began := time.Now()
	x.a.under = []string{"sh", "-c", m.command} // the agent's own command line is in there
	x.a.start(t)
	x.a.under, x.a.base = nil, m.base
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(10 * time.Millisecond) { // QEMU's network may not be as far
		r, err := x.c.try("GET", fetches, "")
		if err == nil && r.code == 200 {
			return time.Since(began)
		}
		if time.Now().After(end) {
			t.Fatalf("the agent does not answer: %v %s\n%s", err, r.raw, x.a.log)
		}
	}
}

// examine looks at copies of the disk, so that a recovery out here is no help in there.
func (m *machine) examine(t *testing.T, x *torture, settle bool) {
	t.Helper()
	orders, asked, session, log, promised := x.orders, x.asked, x.c, x.a.log, x.ledger(0)
	x.remote = false
	look := func(name string, settle bool) {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(memory(t), "disk")
			if out, err := exec.Command("cp", "--sparse=always", m.disk, file).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v %s", err, out)
			}
			check(t, x.boot(t, ext4, file, promised, settle))
		})
	}
	look("look", false)
	for key, o := range x.orders {
		if orders[key] != nil && !o.emptied {
			orders[key].emptied = false // nor will it be in there
		}
	}
	if settle {
		look("go on", true)
	}
	x.t, x.orders, x.asked, x.c, x.a.log, x.remote = t, orders, asked, session, log, true
}

// initrd is what the machine has in memory: busybox, the kernel's modules, and an agent with its configuration.
func (m *machine) initrd(t *testing.T, cache string, a *agent, port string) []byte {
	t.Helper()
	init := fmt.Sprintf(`#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in /modules/*; do insmod $module; done
mount -t ext4 -o noatime /dev/vda %[1]s || poweroff -f
ifconfig lo up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0
export SLOTFETCH_PROXY__HTTP=http://10.0.2.2:%[2]s SLOTFETCH_API__LISTEN=0.0.0.0:8443
%[3]s --config %[4]s serve
echo "the agent ended with $?"
poweroff -f
`, a.state, port, program, a.config)
	files := map[string]string{} // where from, by where to
	for name, path := range map[string]string{"busybox": "/bin/busybox", program: program} {
		from, err := exec.LookPath(name)
		check(t, err)
		files[path] = from
	}
	libraries, err := exec.Command("ldd", program).Output()
	check(t, err)
	for _, path := range regexp.MustCompile(`(?m)(/\S+) \(0x`).FindAllStringSubmatch(string(libraries), -1) {
		files[path[1]] = path[1]
	}
	modules, err := filepath.Glob(filepath.Join(cache, "modules", "*"))
	check(t, err)
	for _, module := range modules {
		files["/modules/"+filepath.Base(module)] = module
	}
	for _, pattern := range []string{a.config, filepath.Join(filepath.Dir(a.config), "conf.d", "*")} {
		found, err := filepath.Glob(pattern)
		check(t, err)
		for _, name := range found {
			files[name] = name
		}
	}
	var c cpio
	for _, dir := range []string{"/dev", "/proc", "/sys", "/tmp", a.state} {
		c.dir(dir)
	}
	c.file("/init", []byte(init))
	for to, from := range files {
		text, err := os.ReadFile(from)
		check(t, err)
		c.file(to, text)
	}
	return c.end()
}

// cpio is an archive as the kernel wants it (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	out  bytes.Buffer
	seen []string
}

func (c *cpio) entry(name string, mode int, data []byte) {
	fmt.Fprintf(&c.out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		len(c.seen)+1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	c.pad()
	c.out.Write(data)
	c.pad()
	c.seen = append(c.seen, name)
}

func (c *cpio) pad() { c.out.Write(make([]byte, -c.out.Len()&3)) }

// dir adds a directory and those above it.
func (c *cpio) dir(path string) {
	name := strings.TrimPrefix(path, "/")
	if name == "" || slices.Contains(c.seen, name) {
		return
	}
	c.dir(filepath.Dir(path))
	c.entry(name, syscall.S_IFDIR|0o755, nil)
}

// file adds a program, or what may as well be one.
func (c *cpio) file(path string, data []byte) {
	c.dir(filepath.Dir(path))
	c.entry(strings.TrimPrefix(path, "/"), syscall.S_IFREG|0o755, data)
}

func (c *cpio) end() []byte {
	c.entry("TRAILER!!!", 0, nil)
	return c.out.Bytes()
}
