package main_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

// agentUser is who runs the agent in tests that need another user than root.
const agentUser = 65534

// checked is an agent that runs as another user, with an image in slot 1 and a directory of test hooks that belongs to root.
type checked struct {
	*agent
	hooks string
	c     *client
}

func newChecked(t *testing.T, extra string) *checked {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: test hooks, for only root can make files that the agent cannot")
	}
	dir, err := os.MkdirTemp("", "hooks")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	check(t, os.Chmod(dir, 0o755))
	x := &checked{hooks: filepath.Join(dir, "test.d")}
	check(t, os.Mkdir(x.hooks, 0o755))
	b, config := newBoots(t, nil)
	check(t, os.Chmod(b.dir, 0o755))
	x.agent = newAgent(t, config+extra+fmt.Sprintf("[upgrade]\ntest_hooks = %q\ntest_hook_timeout = \"2s\"\n", x.hooks))
	check(t, filepath.WalkDir(filepath.Dir(x.state), func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, agentUser, agentUser)
		}
		return err
	}))
	x.under = []string{"setpriv", "--reuid", fmt.Sprint(agentUser), "--regid", fmt.Sprint(agentUser), "--clear-groups"}
	x.first(t)
	x.c = x.loginAdmin(t)
	url := fetchtest.NewHTTP(t, nil).Handle("/fw-7.4.0.iso", fetchtest.Whole(small).Serve)
	x.c.awaitStatus(t, x.c.fetch(t, url, small.SHA256()), "finished")
	return x
}

// add writes a hook.
func (x *checked) add(t *testing.T, name, script string, perm os.FileMode) {
	t.Helper()
	file := filepath.Join(x.hooks, name)
	check(t, os.WriteFile(file, []byte("#!/bin/sh\n"+script+"\n"), 0o600))
	check(t, os.Chmod(file, perm))
}

// lines are those of the summary that speak of hooks.
func (x *checked) lines(t *testing.T, ok bool) []string {
	t.Helper()
	r, at := x.c.do(t, "POST", testPath, `{"slot_id":1}`), "body.test_summary"
	if !ok {
		r.fails(t, 400, "FirmwareTestFailed", "")
		at = "error.details.test_summary"
	} else {
		r.want(t, 200)
	}
	var found []string
	for line := range strings.Lines(r.str(at)) {
		if strings.HasPrefix(line, "Hook") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// The vendor's checks run by name, as the agent's user, know of the image what they are told, and each has its line.
func TestTestHooks(t *testing.T) {
	t.Parallel()
	x := newChecked(t, "")
	if got := x.lines(t, true); got != nil {
		t.Errorf("an empty directory has %q", got)
	}
	image := filepath.Join(x.state, "slots", "1", "image")
	x.add(t, "50-told", `sha256sum <$SLOTFETCH_IMAGE; read line || echo no input; [ "$(cut -d ' ' -f 5 /proc/$$/stat)" = $$ ] && echo a group of its own`, 0o755)
	x.add(t, "10-first", "exit 0", 0o555)
	for _, name := range []string{"10-first.bak", ".hidden", "60-old.dpkg-dist", "70-tilde~", "README"} {
		x.add(t, name, "exit 1", 0o644)
		if name != "README" {
			check(t, os.Chmod(filepath.Join(x.hooks, name), 0o755))
		}
	}
	check(t, os.Mkdir(filepath.Join(x.hooks, "directory"), 0o755))
	log := filepath.Join(filepath.Dir(x.hooks), "told")
	check(t, os.WriteFile(log, nil, 0o666))
	check(t, os.Chmod(log, 0o666))
	x.add(t, "90-log", "env | grep SLOTFETCH_ | sort >"+log+"; id -u >>"+log+"; pwd >>"+log, 0o755)
	if got := x.lines(t, true); len(got) != 3 || got[0] != "Hook 10-first: ok" || got[1] != "Hook 50-told: ok (a group of its own)" || got[2] != "Hook 90-log: ok" {
		t.Errorf("got %q", got)
	}
	told, err := os.ReadFile(log)
	check(t, err)
	if want := fmt.Sprintf("SLOTFETCH_CURRENT_VERSION=\nSLOTFETCH_IMAGE=%s\nSLOTFETCH_PRODUCT=\nSLOTFETCH_SHA256=%s\nSLOTFETCH_SLOT=1\nSLOTFETCH_VERSION=fw-7.4.0\n%d\n/\n",
		image, small.SHA256(), agentUser); string(told) != want {
		t.Errorf("it was told %q, want %q", told, want)
	}
	out := filepath.Join(filepath.Dir(x.hooks), "all")
	check(t, os.WriteFile(out, nil, 0o666))
	check(t, os.Chmod(out, 0o666))
	x.add(t, "90-log", "env >"+out, 0o755)
	x.lines(t, true)
	all, err := os.ReadFile(out)
	check(t, err)
	for line := range strings.Lines(string(all)) {
		switch name, _, _ := strings.Cut(line, "="); {
		case strings.HasPrefix(name, "SLOTFETCH_"), name == "PATH", name == "LANG", name == "PWD", name == "_", name == "SHLVL", name == "OLDPWD": // the rest is the shell's
		default:
			t.Errorf("it was told %q", line)
		}
	}

	// What the current version is, it is told too; and an upgrade asks them as a test does.
	check(t, os.WriteFile(filepath.Join(x.state, "slots", "boot.json"), []byte(`{"current":1}`), 0o644))
	url := fetchtest.NewHTTP(t, nil).Handle("/fw-8.0.0.iso", fetchtest.Whole(small).Serve)
	x.c.awaitStatus(t, x.c.fetch(t, url, small.SHA256()), "finished")
	x.add(t, "90-log", `echo "from $SLOTFETCH_CURRENT_VERSION" >&2; exit 3`, 0o755)
	r := x.c.do(t, "POST", upgradePath, `{"slot_id":2}`).fails(t, 400, "FirmwareTestFailed", "")
	if !strings.Contains(r.str("error.message"), "Hook 90-log: FAILED (from fw-7.4.0)") {
		t.Error(r.raw)
	}
	x.c.do(t, "GET", upgradesPath, "").want(t, 200).is(t, "items", []any{})
	x.rot(t, 1)
	if got := x.lines(t, false); got != nil { // nothing is let near an image that is not what was fetched
		t.Errorf("got %q", got)
	}
}

// What a hook can do wrong, and what is wrong with one that is not run at all.
func TestTestHooksFail(t *testing.T) {
	t.Parallel()
	x := newChecked(t, "")
	touched := filepath.Join(filepath.Dir(x.hooks), "touched")
	check(t, os.Mkdir(touched, 0o777))
	check(t, os.Chmod(touched, 0o777))
	x.add(t, "10-says", `printf 'first\nno \033[31mroom\007 \303 left\n\n' >&2; exit 1`, 0o755)
	x.add(t, "20-silent", "exit 7", 0o755)
	x.add(t, "30-long", `head -c 100000 /dev/zero | tr '\0' x >&2; exit 1`, 0o755)
	x.add(t, "40-killed", "kill -9 $$", 0o755)
	x.add(t, "50-group", "touch "+touched+"/g; exit 0", 0o775)
	x.add(t, "51-others", "touch "+touched+"/o; exit 0", 0o757)
	x.add(t, "52-owner", "touch "+touched+"/w; exit 0", 0o755)
	check(t, os.Chown(filepath.Join(x.hooks, "52-owner"), agentUser, agentUser))
	x.add(t, "53-setuid", "touch "+touched+"/s; exit 0", 0o755)
	check(t, os.Chmod(filepath.Join(x.hooks, "53-setuid"), 0o755|os.ModeSetuid))
	check(t, os.Symlink("/bin/true", filepath.Join(x.hooks, "54-link")))
	x.add(t, "55-none", "", 0o755)
	check(t, os.WriteFile(filepath.Join(x.hooks, "55-none"), []byte("#!/no/such/shell\n"), 0o755))
	x.add(t, "99-good", "true", 0o755)
	got := x.lines(t, false)
	want := []string{"Hook 10-says: FAILED (no [31mroom  left)", "Hook 20-silent: FAILED (exit status 7)", "Hook 30-long: FAILED (" + strings.Repeat("x", 300) + "…)",
		"Hook 40-killed: FAILED (signal: killed)", "Hook 50-group: FAILED (it may be written by others than root)", "Hook 51-others: FAILED (it may be written by others than root)",
		"Hook 52-owner: FAILED (it does not belong to root)", "Hook 53-setuid: FAILED (it would run as another user)", "Hook 54-link: FAILED (it is a link; put the program itself there)",
		"Hook 55-none: FAILED (it cannot be started: no such file or directory)", "Hook 99-good: ok"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if names, err := os.ReadDir(touched); err != nil || len(names) > 0 {
		t.Errorf("%v of those ran that must not: %v", names, err)
	}

	check(t, os.Chmod(x.hooks, 0o775))
	if got := x.lines(t, false); len(got) != 1 || got[0] != "Hooks: FAILED (the directory upgrade.test_hooks may be written by others than root)" {
		t.Errorf("got %q", got)
	}
	check(t, os.Chmod(x.hooks, 0o755))
	check(t, os.Chown(x.hooks, agentUser, 0))
	if got := x.lines(t, false); len(got) != 1 || got[0] != "Hooks: FAILED (the directory upgrade.test_hooks does not belong to root)" {
		t.Errorf("got %q", got)
	}
	check(t, os.Chown(x.hooks, 0, 0))
	for _, perm := range []os.FileMode{0o777, 0o775} {
		check(t, os.Chmod(filepath.Dir(x.hooks), perm))
		if got := x.lines(t, false); len(got) != 1 || got[0] != "Hooks: FAILED (others than root may put another directory in the place of upgrade.test_hooks)" {
			t.Errorf("below %o got %q", perm, got)
		}
	}
	check(t, os.Chmod(filepath.Dir(x.hooks), 0o777|os.ModeSticky))
	check(t, os.Chmod(x.hooks, 0o711))
	if got := x.lines(t, false); len(got) != 1 || got[0] != "Hooks: FAILED (the directory upgrade.test_hooks cannot be read)" {
		t.Errorf("got %q", got)
	}
	check(t, os.RemoveAll(x.hooks))
	if got := x.lines(t, true); got != nil {
		t.Errorf("got %q", got)
	}
	check(t, os.WriteFile(x.hooks, nil, 0o644))
	if got := x.lines(t, false); len(got) != 1 || got[0] != "Hooks: FAILED (upgrade.test_hooks is no directory)" {
		t.Errorf("got %q", got)
	}
}

// A hook that hangs is killed with all that it has started: at its limit, when its caller hangs up, and when the agent
// stops. What a hook leaves behind goes too.
func TestTestHooksHang(t *testing.T) {
	t.Parallel()
	x := newChecked(t, "")
	pids := filepath.Join(filepath.Dir(x.hooks), "pids")
	// Both shells write their numbers, and then wait for what never comes.
	hang := fmt.Sprintf("(echo $(exec sh -c 'echo $PPID') >>%[1]s; sleep 1000) & echo $$ >>%[1]s; wait", pids)
	fresh := func() {
		check(t, os.WriteFile(pids, nil, 0o666))
		check(t, os.Chmod(pids, 0o666))
	}
	both := func() (numbers []int) {
		t.Helper()
		for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(5 * time.Millisecond) {
			text, err := os.ReadFile(pids)
			check(t, err)
			if f := strings.Fields(string(text)); len(f) == 2 {
				for _, word := range f {
					var n int
					_, err := fmt.Sscan(word, &n)
					check(t, err)
					numbers = append(numbers, n)
				}
				return numbers
			}
			if time.Now().After(end) {
				t.Fatalf("the hook did not start: %q", text)
			}
		}
	}
	gone := func(numbers []int) {
		t.Helper()
		for _, n := range numbers {
			for end := time.Now().Add(fetchtest.Patience); syscall.Kill(n, 0) == nil; time.Sleep(5 * time.Millisecond) {
				if stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n)); strings.Contains(string(stat), ") Z ") {
					break // killed; that nobody waits for it is the machine's affair
				}
				if time.Now().After(end) {
					t.Fatalf("process %d is left", n)
				}
			}
		}
	}
	x.add(t, "10-hangs", hang, 0o755)
	fresh()
	if got := x.lines(t, false); len(got) != 1 || got[0] != "Hook 10-hangs: FAILED (it took longer than 2s)" {
		t.Errorf("got %q", got)
	}
	gone(both())

	x.add(t, "10-hangs", "exec >/dev/null 2>&1; "+strings.TrimSuffix(hang, "wait")+"until [ $(wc -l <"+pids+") = 2 ]; do :; done", 0o755)
	fresh()
	if got := x.lines(t, true); len(got) != 1 || got[0] != "Hook 10-hangs: ok" {
		t.Errorf("got %q", got)
	}
	gone(both())

	x.stop(t, syscall.SIGTERM)
	file := filepath.Join(filepath.Dir(x.config), "conf.d", "zz.toml")
	check(t, os.WriteFile(file, []byte("[upgrade]\ntest_hook_timeout = \"10m\"\n"), 0o644))
	x.start(t)
	x.add(t, "10-hangs", hang, 0o755)
	fresh()
	curl := exec.CommandContext(t.Context(), "curl", "-sk", "-H", "Cookie: "+x.c.cookie, "-d", `{"slot_id":1}`, x.base+testPath)
	check(t, curl.Start())
	numbers := both()
	check(t, curl.Process.Kill())
	_ = curl.Wait() // it was killed
	gone(numbers)

	fresh()
	curl = exec.CommandContext(t.Context(), "curl", "-sk", "-H", "Cookie: "+x.c.cookie, "-d", `{"slot_id":1}`, x.base+testPath)
	check(t, curl.Start())
	numbers = both()
	x.stop(t, syscall.SIGTERM)
	_ = curl.Wait() // whatever it was told
	gone(numbers)
}

// An agent that is root runs none.
func TestTestHooksAsRoot(t *testing.T) {
	t.Parallel()
	x := newChecked(t, "")
	x.add(t, "10-any", "exit 0", 0o755)
	x.stop(t, syscall.SIGTERM)
	x.under = nil
	x.start(t)
	if got := x.lines(t, false); len(got) != 1 || got[0] != "Hooks: FAILED (the agent runs as root, which these programs must not)" {
		t.Errorf("got %q", got)
	}
}
