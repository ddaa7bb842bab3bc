package main_test

import (
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

// TestUpgradePoints kills agent and root side at the nth call of each kind by which they change the disk, in all the four
// processes that an upgrade takes, or has that call fail; then the power of the box is cut. Its boot loader boots a slot
// once, and then the default again. At every moment boot.json names a slot with an image that runs, and one that boots next;
// at the end it, the history and the boot loader agree about the slot that runs, whichever that is.
//
// SLOTFETCH_POINTS is how many points each process takes at random, or "all"; SLOTFETCH_SEED repeats the choice.
func TestUpgradePoints(t *testing.T) {
	t.Parallel()
	needStrace(t)
	seed := setting(t, "SLOTFETCH_SEED", uint64(time.Now().UnixNano()))
	t.Logf("SLOTFETCH_SEED=%d", seed)
	l := newUpgradeLab(t)
	hit, ran := 0, 0
	for i, phase := range []string{"agent before", "root before", "agent after", "root after"} {
		t.Run(phase, func(t *testing.T) {
			if l.live(t, phase, countCalls(l.trace)) {
				t.Fatal("it died without harm")
			}
			l.settle(t)
			if l.slot != 2 {
				t.Fatalf("without harm slot %d runs", l.slot)
			}
			trace, err := os.ReadFile(l.trace)
			check(t, err)
			var all []point
			for call, n := range callsOf(string(trace)) {
				if call == "openat" || call == "close" {
					continue // they change nothing
				}
				harms := append([]string{"signal=KILL"}, failures()...)
				if call == "write" && strings.HasPrefix(phase, "agent") {
					harms = harms[:1] // the line that says where the agent listens is written too, and without it there is no test
				}
				for _, harm := range harms {
					for i := range n {
						all = append(all, point{call, harm, i + 1})
					}
				}
			}
			slices.SortFunc(all, compare)
			if os.Getenv("SLOTFETCH_POINTS") != "all" {
				all = pick(rand.New(rand.NewPCG(seed, uint64(20+i))), all, setting(t, "SLOTFETCH_POINTS", 4))
			}
			for _, p := range all {
				t.Run(p.String(), func(t *testing.T) {
					ran++
					died := l.live(t, phase, p.strace(l.trace))
					if died {
						hit++
					}
					l.settle(t)
				})
			}
		})
	}
	t.Logf("RAN %d points, %d deaths", ran, hit)
}

// upgradeLab is a box whose state can be put back to before the upgrade, and its boot loader.
type upgradeLab struct {
	*box
	pristine, trace string
	slot            int  // that runs
	accepted        bool // the caller was told that the upgrade goes on
}

func newUpgradeLab(t *testing.T) *upgradeLab {
	t.Helper()
	const file = `"$(dirname "$0")/../`
	x := newBox(t, "", map[string]string{
		"activate": `echo "$SLOTFETCH_SLOT" >` + file + `once.new" && mv ` + file + `once.new" ` + file + `once"`,
		"confirm":  `echo "$SLOTFETCH_SLOT" >` + file + `default.new" && mv ` + file + `default.new" ` + file + `default" && rm -f ` + file + `once"`,
		"rollback": `echo "$SLOTFETCH_PREVIOUS" >` + file + `default.new" && mv ` + file + `default.new" ` + file + `default" && rm -f ` + file + `once"`,
	})
	l := &upgradeLab{box: x, pristine: filepath.Join(t.TempDir(), "state"), trace: filepath.Join(t.TempDir(), "trace")}
	x.stop(t, syscall.SIGTERM)
	copyTree(t, x.state, l.pristine)
	return l
}

// powerOn boots what the boot loader has, and starts the agent under a program, or under none.
func (l *upgradeLab) powerOn(t *testing.T, under []string) (ready bool) {
	t.Helper()
	number := func(name string) int {
		text, err := os.ReadFile(filepath.Join(l.dir, name))
		if err != nil {
			return 0
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		check(t, err)
		return n
	}
	l.slot = number("once")
	check(t, os.RemoveAll(filepath.Join(l.dir, "once")))
	if l.slot == 0 {
		l.slot = number("default")
	}
	l.boots.reboot(t, l.slot)
	l.under = under
	defer func() { l.under = nil }()
	return l.launch(t)
}

// powerOff kills what runs, and looks at what is left.
func (l *upgradeLab) powerOff(t *testing.T) {
	t.Helper()
	l.kill()
	current, next := l.bootFile(t)
	for _, id := range []int{current, next} {
		if id != 1 && id != 2 {
			t.Fatalf("boot.json says %d, then %d", current, next)
		}
	}
	for _, slot := range []string{"1", "2"} {
		for _, name := range []string{"image", "manifest.json"} {
			if _, err := os.Stat(filepath.Join(l.state, "slots", slot, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// live is an upgrade from slot 1 to slot 2 with one process under a program. It tells whether that died.
func (l *upgradeLab) live(t *testing.T, phase string, under []string) (died bool) {
	t.Helper()
	l.kill()
	l.log, l.accepted = &journal{}, false
	copyTree(t, l.pristine, l.state)
	check(t, os.RemoveAll(filepath.Join(l.dir, "once")))
	check(t, os.WriteFile(filepath.Join(l.dir, "default"), []byte("1\n"), 0o600))
	of := func(name string) []string {
		if name == phase {
			return under
		}
		return nil
	}
	if !l.powerOn(t, of("agent before")) {
		return true
	}
	r, err := http.NewRequest("POST", l.base+upgradePath, strings.NewReader(`{"slot_id":2}`))
	check(t, err)
	r.Header.Set("Cookie", l.c.cookie)
	if resp, err := l.c.http.Do(r); err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		l.accepted = resp.StatusCode == http.StatusOK
	}
	if died := l.work(t, of("root before")); died {
		return true
	}
	l.powerOff(t)
	return !l.powerOn(t, of("agent after")) || l.work(t, of("root after"))
}

// work is what systemd does, until there is nothing to do but to reboot. It tells whether somebody died.
func (l *upgradeLab) work(t *testing.T, under []string) (died bool) {
	t.Helper()
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(5 * time.Millisecond) {
		select {
		case <-l.done:
			return true
		default:
		}
		if l.handover(t, "request.json") != nil {
			l.under = under
			err := l.command("activate").Run()
			l.under, under = nil, nil
			if e, ok := errors.AsType[*exec.ExitError](err); ok && e.Sys().(syscall.WaitStatus).Signaled() {
				return true
			}
		}
		r, err := http.NewRequest("GET", l.base+upgradesPath, nil)
		check(t, err)
		r.Header.Set("Cookie", l.c.cookie)
		resp, err := l.c.http.Do(r)
		if err != nil {
			continue
		}
		raw, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil && resp.StatusCode == 200 && !slices.ContainsFunc([]string{"requested", "booted", "reverting"}, func(s string) bool {
			return strings.Contains(string(raw), `"status":"`+s+`"`)
		}) {
			return false
		}
		if time.Now().After(end) {
			t.Fatalf("there is no end: %d %s\n%s", resp.StatusCode, raw, l.log)
		}
	}
}

// settle cuts the power and lets the box come to rest; then everybody agrees.
func (l *upgradeLab) settle(t *testing.T) {
	t.Helper()
	for range 4 {
		l.powerOff(t)
		if !l.powerOn(t, nil) || l.work(t, nil) {
			t.Fatalf("the agent died without harm:\n%s", l.log)
		}
		list := l.c.do(t, "GET", upgradesPath, "").want(t, 200)
		if list.get("items.0") != nil && list.get("items.0.body.end_time") == nil {
			continue // it waits for a reboot
		}
		if l.accepted && list.get("items.0") == nil {
			t.Error("the upgrade was accepted and is not in the history")
		}
		l.boot(t, l.slot, l.slot)
		if status := list.str("items.0.body.status"); (status == "confirmed") != (l.slot == 2) {
			t.Errorf("slot %d runs, but the upgrade is %q: %s", l.slot, status, list.raw)
		}
		if _, err := os.Stat(filepath.Join(l.dir, "once")); err == nil {
			t.Error("another slot boots next")
		}
		text, err := os.ReadFile(filepath.Join(l.dir, "default"))
		if err != nil || strings.TrimSpace(string(text)) != strconv.Itoa(l.slot) {
			t.Errorf("slot %d runs, the default is %s (%v)", l.slot, text, err)
		}
		if t.Failed() {
			t.Logf("the agent's log:\n%s", l.log)
		}
		return
	}
	t.Errorf("it does not come to rest:\n%s", l.log)
}
