package main_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"slotfetch/slots"
)

// boots is what an agent on a box with a boot loader has beside it: hooks that only take notes, and a box that can be
// made to believe that it was restarted.
type boots struct {
	dir string
	n   int // boots so far
}

// newBoots gives the configuration of an agent with the hooks in the map, by name; a script that is not there succeeds
// and notes its name and slot.
func newBoots(t *testing.T, scripts map[string]string) (*boots, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "boots")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &boots{dir: dir}
	hooks := filepath.Join(dir, "hooks")
	check(t, os.Mkdir(hooks, 0o755))
	for _, name := range []string{"activate", "confirm", "rollback", "health", "reboot"} {
		b.hook(t, name, scripts[name])
	}
	b.reboot(t, 0)
	return b, fmt.Sprintf("[activate]\nhooks = %q\nstate_dir = %q\nboot_id_file = %q\ncmdline_file = %q\nhealth_timeout = \"1s\"\n",
		hooks, filepath.Join(dir, "state"), filepath.Join(dir, "boot_id"), filepath.Join(dir, "cmdline"))
}

// hook writes one of them; it notes first that it ran.
func (b *boots) hook(t *testing.T, name, script string) {
	t.Helper()
	text := fmt.Sprintf("#!/bin/sh\necho \"%s ${SLOTFETCH_SLOT} from ${SLOTFETCH_PREVIOUS}\" >>%q\n%s\n", name, filepath.Join(b.dir, "ran"), script)
	file := filepath.Join(b.dir, "hooks", name)
	check(t, os.WriteFile(file+".new", []byte(text), 0o755))
	check(t, os.Rename(file+".new", file)) // one that runs cannot be written
}

// ran are the hooks that ran since the last call, one a line.
func (b *boots) ran(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, "ran"))
	if os.IsNotExist(err) {
		return ""
	}
	check(t, err)
	check(t, os.Remove(filepath.Join(b.dir, "ran")))
	return strings.TrimSpace(string(text))
}

// reboot is another boot, of a slot; 0: the command line does not say which.
func (b *boots) reboot(t *testing.T, slot int) {
	t.Helper()
	b.n++
	line := "root=/dev/sda1 ro quiet"
	if slot > 0 {
		line += fmt.Sprintf(" slotfetch.slot=%d", slot)
	}
	check(t, os.WriteFile(filepath.Join(b.dir, "boot_id"), fmt.Appendf(nil, "00000000-0000-4000-8000-%012d\n", b.n), 0o644))
	check(t, os.WriteFile(filepath.Join(b.dir, "cmdline"), []byte(line+"\n"), 0o644))
}

// root is the root side, in place of systemd. It gives its output, and whether the request was done.
func (a *agent) root(t *testing.T) (string, bool) {
	t.Helper()
	out, err := a.command("activate").CombinedOutput()
	if _, failed := err.(*exec.ExitError); err != nil && !failed {
		t.Fatal(err)
	}
	return string(out), err == nil
}

// handover reads request.json or result.json; nil if there is none.
func (a *agent) handover(t *testing.T, name string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(a.state, "activate", name))
	if os.IsNotExist(err) {
		return nil
	}
	check(t, err)
	var m map[string]any
	check(t, json.Unmarshal(text, &m))
	return m
}

// TestRootSide is slotfetchd activate alone: what it makes of good and of bad requests.
func TestRootSide(t *testing.T) {
	t.Parallel()
	b, extra := newBoots(t, nil)
	a := startAgent(t, extra)
	c := a.loginAdmin(t)
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished")
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished")
	if out, ok := a.root(t); !ok || b.ran(t) != "" {
		t.Errorf("without a request: %s", out)
	}
	request := func(pairs ...any) string {
		m := map[string]any{"id": uuid.NewString(), "action": "activate", "slot_id": 2, "sha256": small.SHA256(), "previous": 1, "reboot": "none"}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i].(string)] = pairs[i+1]
		}
		text, err := json.Marshal(m)
		check(t, err)
		return string(text)
	}
	file := filepath.Join(a.state, "activate", "request.json")
	check(t, os.MkdirAll(filepath.Dir(file), 0o750))
	for _, step := range []struct {
		name, text string
		ran        string // by name, slot and previous slot
		ok         bool
		says       string // in the result
	}{
		{"activate", request(), "activate 2 from 1", true, ""},
		{"activate and reboot", request("reboot", "now", "previous", nil), "activate 2 from\nreboot 2 from", true, ""},
		{"next", request("reboot", "next"), "activate 2 from 1", true, ""},
		{"roll back", request("action", "rollback"), "rollback 2 from 1", true, ""},
		{"another digest", request("sha256", strings.Repeat("ab", 32)), "", false, "another image"},
		{"empty slot", request("slot_id", 3), "", false, "slot is empty"},
		{"no such slot", request("slot_id", 9), "", false, "no slot 9"},
		{"no such previous slot", request("previous", 0), "", false, "no slot 0"},
		{"unknown action", request("action", "format"), "", false, "action is none of"},
		{"unknown reboot", request("reboot", "soon"), "", false, "reboot is none of"},
		{"unknown field", request("command", "rm"), "", false, "unknown field"},
		{"two values", request() + "{}", "", false, ""},
		{"confirm what does not run", request("action", "confirm", "reboot", "now"), "rollback 2 from 1", false, "does not say which slot"},
	} {
		check(t, os.WriteFile(file, []byte(step.text), 0o640))
		out, ok := a.root(t)
		if ok != step.ok {
			t.Errorf("%s: done is %v: %s", step.name, ok, out)
		}
		if ran := strings.ReplaceAll(b.ran(t)+"\n", " \n", "\n"); strings.TrimSpace(ran) != step.ran {
			t.Errorf("%s: ran %q, want %q", step.name, ran, step.ran)
		}
		if a.handover(t, "request.json") != nil {
			t.Errorf("%s: the request is still there", step.name)
		}
		var want struct{ ID, Action string }
		check(t, json.Unmarshal([]byte(strings.TrimSuffix(step.text, "{}")), &want))
		if r := a.handover(t, "result.json"); step.name != "two values" && (r["id"] != want.ID || r["ok"] != step.ok || !strings.Contains(r["message"].(string), step.says) ||
			r["boot_id"] != "00000000-0000-4000-8000-000000000001") {
			t.Errorf("%s: result %v", step.name, r)
		}
	}

	// The agent is another user, and the unit has a strict umask.
	a.under = []string{"sh", "-c", `umask 077 && exec "$0" "$@"`}
	check(t, os.WriteFile(file, []byte(request()), 0o640))
	a.root(t)
	a.under = nil
	if info, err := os.Stat(filepath.Join(a.state, "activate", "result.json")); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the agent cannot read the result: %v %v", info.Mode(), err)
	}
	b.ran(t)

	// The same request once more, after a power cut between result and removal, is not done twice.
	again := request("reboot", "now")
	check(t, os.WriteFile(file, []byte(again), 0o640))
	a.root(t)
	b.ran(t)
	check(t, os.WriteFile(file, []byte(again), 0o640))
	if out, ok := a.root(t); !ok || b.ran(t) != "" || a.handover(t, "request.json") != nil {
		t.Errorf("the same request: %s", out)
	}

	// A link is not followed, whatever it points to; a large file is not read.
	for name, make := range map[string]func() error{
		"link": func() error {
			if err := os.WriteFile(filepath.Join(b.dir, "elsewhere"), []byte(request()), 0o640); err != nil {
				return err
			}
			return os.Symlink(filepath.Join(b.dir, "elsewhere"), file)
		},
		"large": func() error { return os.WriteFile(file, []byte(request()+strings.Repeat(" ", 5000)), 0o640) },
		"empty": func() error { return os.WriteFile(file, nil, 0o640) },
	} {
		check(t, make())
		if out, ok := a.root(t); ok || b.ran(t) != "" || a.handover(t, "request.json") != nil {
			t.Errorf("%s: %s", name, out)
		}
	}
	target := filepath.Join(b.dir, "target")
	check(t, os.WriteFile(target, []byte("mine"), 0o600))
	check(t, os.Remove(filepath.Join(a.state, "activate", "result.json")))
	for _, name := range []string{"result.json", "result.json.tmp"} {
		check(t, os.Symlink(target, filepath.Join(a.state, "activate", name)))
	}
	check(t, os.WriteFile(file, []byte(request()), 0o640))
	a.root(t)
	if text, err := os.ReadFile(target); err != nil || string(text) != "mine" {
		t.Errorf("root wrote through a link: %q %v", text, err)
	}
	b.ran(t)

	// Words that would become lines of a boot loader's entry. The agent shows the slot all the same.
	manifest := filepath.Join(a.state, "slots", "2", "manifest.json")
	good, err := os.ReadFile(manifest)
	check(t, err)
	for _, field := range []string{"version", "product", "min_version", "upgrade_from", "signed_by"} {
		for name, word := range map[string]string{"lines": "1\noptions init=/bin/sh", "long": strings.Repeat("1", 65), "escape": "\x1b[2J"} {
			var m map[string]any
			check(t, json.Unmarshal(good, &m))
			m[field] = word
			text, err := json.Marshal(m)
			check(t, err)
			check(t, os.Chmod(manifest, 0o640))
			check(t, os.WriteFile(manifest, text, 0o640))
			check(t, os.WriteFile(file, []byte(request()), 0o640))
			if out, ok := a.root(t); ok || b.ran(t) != "" || !strings.Contains(out, "cannot use slot 2: "+field+" in the manifest") {
				t.Errorf("%s in %s: %s", name, field, out)
			}
			if field == "version" && name == "lines" {
				c.do(t, "GET", slotsPath+"/2", "").want(t, 200).is(t, "body.version", word, "body.state", "not-iso")
			}
		}
	}
	b.hook(t, "rollback", `[ -z "$SLOTFETCH_VERSION" ]`)
	check(t, os.WriteFile(file, []byte(request("action", "rollback")), 0o640))
	if out, ok := a.root(t); !ok || b.ran(t) != "rollback 2 from 1" {
		t.Errorf("roll back from such a slot: %s", out)
	}
	check(t, os.WriteFile(manifest, good, 0o640))

	// Damage in the image itself.
	damage(t, a, 2)
	check(t, os.WriteFile(file, []byte(request()), 0o640))
	if out, ok := a.root(t); ok || b.ran(t) != "" || !strings.Contains(out, "is damaged") {
		t.Errorf("damaged: %s", out)
	}
	// Hooks that others may write.
	check(t, os.Chmod(filepath.Join(b.dir, "hooks", "activate"), 0o777))
	check(t, os.WriteFile(file, []byte(request("slot_id", 1)), 0o640))
	if out, ok := a.root(t); ok || strings.HasPrefix(b.ran(t), "activate") || !strings.Contains(out, "others may write it") || !pathless(a.handover(t, "result.json"), b.dir, "activate.hooks") {
		t.Errorf("writable hook: %s", out)
	}
	check(t, os.Chmod(filepath.Join(b.dir, "hooks", "activate"), 0o755))
	// A place where others may put other hooks: above them, or where a link on the way is.
	places := filepath.Join(b.dir, "places")
	check(t, os.MkdirAll(filepath.Join(places, "far"), 0o755))
	check(t, os.Rename(filepath.Join(b.dir, "hooks"), filepath.Join(places, "far", "hooks")))
	check(t, os.Symlink("../places/far", filepath.Join(places, "link")))
	check(t, os.Symlink(filepath.Join(places, "link", "hooks"), filepath.Join(b.dir, "hooks")))
	for _, step := range []struct {
		name string
		perm os.FileMode
		ok   bool
	}{{"places", 0o777, false}, {"places", 0o775, false}, {"places", 0o777 | os.ModeSticky, true}, {"places/far", 0o757, false}, {"", 0o777, false}, {"", 0o755, true}} {
		dir := filepath.Join(b.dir, step.name)
		check(t, os.Chmod(dir, step.perm))
		check(t, os.WriteFile(file, []byte(request("slot_id", 1)), 0o640))
		out, ok := a.root(t)
		if ran := b.ran(t); ok != step.ok || strings.HasPrefix(ran, "activate") != ok || strings.Contains(out, "others may write it: "+dir+"\"") == ok {
			t.Errorf("%s with %v: ran %q: %s", dir, step.perm, ran, out)
		}
		check(t, os.Chmod(dir, 0o755))
	}
}

// systemd starts the root side as soon as the request has its name, when the agent may still have the lock: it waits. While
// the request cannot be answered, systemd starts it again and again, and it sees to a pause.
func TestRootSideWaits(t *testing.T) {
	t.Parallel()
	b, extra := newBoots(t, nil)
	a := startAgent(t, extra)
	c := a.loginAdmin(t)
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished")
	write := func() {
		check(t, os.WriteFile(filepath.Join(a.state, "activate", "request.json"), fmt.Appendf(nil,
			`{"id":%q,"action":"activate","slot_id":1,"sha256":%q,"previous":null,"reboot":"next"}`, uuid.NewString(), small.SHA256()), 0o640))
	}
	write()
	h, err := slots.OpenHandover(a.state, "activate")
	check(t, err)
	unlock, err := h.Lock()
	check(t, err)
	cmd := a.command("activate")
	stderr, err := cmd.StderrPipe()
	check(t, err)
	check(t, cmd.Start())
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.Contains(lines.Text(), "waiting for the lock") {
	}
	unlock()
	check(t, h.Close())
	_, err = io.Copy(io.Discard, stderr)
	check(t, err)
	if err := cmd.Wait(); err != nil || b.ran(t) != "activate 1 from" || a.handover(t, "request.json") != nil {
		t.Errorf("it did not wait: %v", err)
	}

	write()
	check(t, os.Mkdir(filepath.Join(a.state, "activate", "result.json.tmp"), 0o700)) // in the way of the result
	check(t, os.WriteFile(filepath.Join(a.state, "activate", "result.json.tmp", "x"), nil, 0o600))
	began := time.Now()
	if out, ok := a.root(t); ok || a.handover(t, "request.json") == nil || time.Since(began) < 2*time.Second {
		t.Errorf("after %s: %v %s", time.Since(began), ok, out)
	}
	check(t, os.RemoveAll(filepath.Join(a.state, "activate", "result.json.tmp")))
	if out, ok := a.root(t); !ok || a.handover(t, "request.json") != nil {
		t.Errorf("without it: %s", out)
	}
}

// pathless tells whether a result names the key, and nothing that lies below dir.
func pathless(result map[string]any, dir, key string) bool {
	message, _ := result["message"].(string)
	return strings.Contains(message, key) && !strings.Contains(message, dir)
}

// damage changes one byte in the image of a slot.
func damage(t *testing.T, a *agent, slot int) {
	t.Helper()
	file := filepath.Join(a.state, "slots", fmt.Sprint(slot), "image")
	check(t, os.Chmod(file, 0o640))
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	check(t, err)
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], 100_000)
	check(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b[:], 100_000)
	check(t, err)
	check(t, f.Sync())
}

// What hooks do wrong: fail, hang, leave a process behind, and what people are told of it.
func TestHooks(t *testing.T) {
	t.Parallel()
	for _, h := range []struct {
		name, hook, script string
		action             string
		ran                string
		ok                 bool
		says               string
	}{
		{"fails", "activate", "echo one >&2; echo 'no space on /boot' >&2; exit 3", "activate", "activate 1 from 2\nrollback 1 from 2", false, "hook activate: no space on /boot"},
		{"fails silently", "activate", "exit 3", "activate", "activate 1 from 2\nrollback 1 from 2", false, "hook activate: exit status 3"},
		{"hangs", "activate", "sleep 600", "activate", "activate 1 from 2\nrollback 1 from 2", false, "hook activate: it took longer than 1s"},
		{"leaves a process", "rollback", "sleep 7 &", "rollback", "rollback 1 from 2", true, ""},
		{"roll back fails", "rollback", "echo bad >&2; false", "rollback", "rollback 1 from 2", false, "hook rollback: bad"},
		{"environment", "rollback", `[ "$(env | cut -d= -f1 | grep -v '^PWD$' | sort | tr '\n' ' ')" = "LANG PATH SLOTFETCH_IMAGE SLOTFETCH_PREVIOUS SLOTFETCH_SHA256 SLOTFETCH_SLOT SLOTFETCH_STATE SLOTFETCH_VERSION " ] &&
[ "$(sha256sum <"$SLOTFETCH_IMAGE")" = "$SLOTFETCH_SHA256  -" ] && [ -d "$SLOTFETCH_STATE" ] && [ "$PWD" = / ] && [ "$SLOTFETCH_VERSION" ]`, "rollback", "rollback 1 from 2", true, ""},
		{"healthy and confirmed", "health", "", "confirm", "health 1 from 2\nconfirm 1 from 2", true, ""},
		{"never healthy", "health", "echo 'no cluster' >&2; false", "confirm", "health 1 from 2\nrollback 1 from 2\nreboot 1 from 2", false, "not healthy within 1s: hook health: no cluster"},
		{"not confirmed", "confirm", "false", "confirm", "health 1 from 2\nconfirm 1 from 2\nrollback 1 from 2\nreboot 1 from 2", false, "hook confirm: exit status 1"},
	} {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			b, extra := newBoots(t, map[string]string{h.hook: h.script})
			b.reboot(t, 0)
			if h.action == "confirm" {
				b.reboot(t, 1)
			}
			a := startAgent(t, extra+"hook_timeout = \"1s\"\n")
			c := a.loginAdmin(t)
			c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished")
			check(t, os.MkdirAll(filepath.Join(a.state, "activate"), 0o750))
			check(t, os.WriteFile(filepath.Join(a.state, "activate", "request.json"), fmt.Appendf(nil,
				`{"id":%q,"action":%q,"slot_id":1,"sha256":%q,"previous":2,"reboot":"next"}`, uuid.NewString(), h.action, small.SHA256()), 0o640))
			out, ok := a.root(t)
			if ran := b.ran(t); ok != h.ok || ran != h.ran {
				t.Errorf("done %v, ran %q, want %q: %s", ok, ran, h.ran, out)
			}
			if r := a.handover(t, "result.json"); r["ok"] != h.ok || !strings.Contains(r["message"].(string), h.says) {
				t.Errorf("result %v", r)
			}
		})
	}
}

// The hooks that come with the package, for trials.
func TestNullHooks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	hook := func(name, previous string) string {
		t.Helper()
		cmd := exec.Command("../../systemd/hooks/null/" + name)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "SLOTFETCH_SLOT=2", "SLOTFETCH_PREVIOUS=" + previous, "SLOTFETCH_STATE=" + dir}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	for range 2 {
		hook("activate", "1")
		hook("activate", "1")
		if got := hook("current", "1"); got != "2" {
			t.Errorf("after activate: %q", got)
		}
		hook("rollback", "1")
		hook("rollback", "1")
		if got := hook("current", "1"); got != "1" {
			t.Errorf("after rollback: %q", got)
		}
		hook("activate", "1")
		hook("health", "1")
		hook("confirm", "1")
		hook("confirm", "1")
		if got := hook("current", "1"); got != "2" {
			t.Errorf("after confirm: %q", got)
		}
	}
}
