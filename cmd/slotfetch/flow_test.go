package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slotfetch/api"
)

func TestLogin(t *testing.T) {
	home(t)
	b := newFakeBox(t)
	t.Setenv("SLOTFETCH_BOX", b.address())
	pin := "--pin=" + b.fingerprint()
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(testPassword+"\nsecond line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	invoke(t, "", "login", pin, "--password-file", file).want(t, exitUsage, "no user")
	invoke(t, "", "login", pin, "--user", "a:b", "--password-file", file).want(t, exitUsage)
	invoke(t, "", "login", pin, "--user", testUser).want(t, exitUsage, "no password")
	invoke(t, "\n", "login", pin, "--user", testUser).want(t, exitUsage, "empty")
	invoke(t, "wrong\n", "login", pin, "--user", testUser).want(t, exitAuth, "Unable to authenticate", "20 failures")
	invoke(t, "", "ls").want(t, exitAuth, "Log in with: slotfetch login -H "+b.address())
	r := invoke(t, "", "login", pin, "--user", testUser, "--password-file", file, "-v", "-o", "json").want(t, exitOK)
	for _, want := range []string{`"user": "admin"`, `"expires": "`} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("stdout lacks %s:\n%s", want, r.stdout)
		}
	}
	if strings.Contains(r.stdout+r.stderr, testToken) || strings.Contains(r.stdout+r.stderr, testPassword) {
		t.Error("-v shows a secret")
	}
	if r := invoke(t, "", "whoami").want(t, exitOK); r.stdout != "admin, role operator, on "+b.address()+"\n" {
		t.Errorf("whoami: %q", r.stdout)
	}
	if r := invoke(t, "", "whoami", "-o", "id").want(t, exitOK); r.stdout != "admin\n" {
		t.Errorf("whoami: %q", r.stdout)
	}
}

func TestSessionFromEnvironment(t *testing.T) {
	b := withLogin(t)
	t.Setenv("SLOTFETCH_SESSION", "stale")
	invoke(t, "", "ls").want(t, exitAuth, "$SLOTFETCH_SESSION")
	t.Setenv("SLOTFETCH_SESSION", "a b")
	invoke(t, "", "ls").want(t, exitUsage)
	t.Setenv("SLOTFETCH_SESSION", testToken)
	if err := testJar(t, b.address()).remove(); err != nil {
		t.Fatal(err)
	}
	invoke(t, "", "ls").want(t, exitOK)
}

func TestLogout(t *testing.T) {
	b := withLogin(t)
	j := testJar(t, b.address())
	b.server.Config.SetKeepAlivesEnabled(false)
	invoke(t, "", "logout").want(t, exitOK, "Logged out")
	if _, err := os.Stat(j.path); err == nil {
		t.Error("the jar is still there")
	}
	if got := b.seen(); got[len(got)-1] != "DELETE "+pathLogin {
		t.Errorf("last request %s", got[len(got)-1])
	}
	invoke(t, "", "logout").want(t, exitOK, "Not logged in")

	invoke(t, testPassword, "login", "--user", testUser).want(t, exitOK)
	b.server.Close()
	invoke(t, "", "logout").want(t, exitNetwork, "cannot reach")
	if _, err := os.Stat(j.path); err != nil {
		t.Error("the login went although the box was not told")
	}
	invoke(t, "", "logout", "--local").want(t, exitOK)
	if _, err := os.Stat(j.path); err == nil {
		t.Error("the jar is still there")
	}
}

func TestUnixSocket(t *testing.T) {
	home(t)
	b := newFakeBox(t)
	b.add(testKey, finished())
	address := b.serveSocket()
	if r := invoke(t, "", "ls", "-o", "id", "-H", address).want(t, exitOK); r.stdout != testKey+"\n" {
		t.Errorf("ls: %q", r.stdout)
	}
	invoke(t, "", "login", "-H", address).want(t, exitOK, "No login is needed")
	invoke(t, "", "ls", "-H", "unix:///nowhere/api.sock").want(t, exitNetwork, "cannot reach the box at /nowhere/api.sock")
}

func TestNotABox(t *testing.T) {
	b := withLogin(t)
	for _, tt := range []struct {
		name   string
		answer func(http.ResponseWriter)
		code   int
		word   string
	}{
		{"HTML", func(w http.ResponseWriter) { _, _ = w.Write([]byte("<html>")) }, exitNetwork, "does not answer like a box"},
		{"redirect", func(w http.ResponseWriter) {
			w.Header().Set("Location", "https://example.com/")
			w.WriteHeader(302)
		}, exitNetwork, "302 Found"},
		{"500 from elsewhere", func(w http.ResponseWriter) { w.WriteHeader(500) }, exitFailed, "500 Internal Server Error"},
		{"500", func(w http.ResponseWriter) { refuse(w, 500, "InternalError", "Something broke.", nil) }, exitFailed, "under request req-1"},
		{"503", func(w http.ResponseWriter) { refuse(w, 503, "ServiceUnavailable", "Starting.", nil) }, exitNetwork, "Starting."},
		{"403", func(w http.ResponseWriter) {
			refuse(w, 403, "Unauthorized", "Your role is too low.", map[string]any{"required_role": "operator"})
		}, exitAuth, "role operator"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.mu.Lock()
			b.intercept = func(w http.ResponseWriter, _ *http.Request) bool { tt.answer(w); return true }
			b.mu.Unlock()
			invoke(t, "", "ls").want(t, tt.code, tt.word)
		})
	}
}

func TestPlainHTTPPort(t *testing.T) {
	home(t)
	plain := http.Server{Handler: http.NotFoundHandler()}
	l := listen(t)
	go func() { _ = plain.Serve(l) }()
	t.Cleanup(func() { _ = plain.Close() })
	invoke(t, "", "ls", "-H", l.Addr().String()).want(t, exitNetwork, "plain http")
	closed := listen(t)
	_ = closed.Close()
	invoke(t, "", "ls", "-H", closed.Addr().String()).want(t, exitNetwork, "connection refused")
}

// TestFetchUnsure: without an answer the fetch may have been started, but not without a connection.
func TestFetchUnsure(t *testing.T) {
	home(t)
	const perhaps = "may have been started all the same"
	args := func(l net.Listener) []string {
		return []string{"fetch", "-H", l.Addr().String(), testURL, "--sha256", testDigest}
	}
	silent := listen(t)
	t.Cleanup(func() { silent.Close() })
	go func() {
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	invoke(t, "", args(silent)...).want(t, exitNetwork, perhaps)
	_ = silent.Close()
	if r := invoke(t, "", args(silent)...).want(t, exitNetwork, "connection refused"); strings.Contains(r.stderr, perhaps) {
		t.Error(r.stderr)
	}
}

// TestFetchRepeated: a request whose answer got lost is repeated under its key, so that one fetch is started.
func TestFetchRepeated(t *testing.T) {
	b := withLogin(t)
	var keys []string
	b.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		if len(keys) == 1 {
			panic(http.ErrAbortHandler) // accepted, perhaps, and the answer is lost
		}
		return false
	}
	r := invoke(t, "", "fetch", testURL, "--sha256", testDigest, "--detach").want(t, exitOK, "asking again")
	if r.stdout != testKey+"\n" || len(keys) != 2 || keys[0] != keys[1] || len(keys[0]) < 20 {
		t.Errorf("stdout %q, keys %q", r.stdout, keys)
	}
	keys = nil
	invoke(t, "", "fetch", testURL, "--sha256", testDigest, "--detach", "--idempotency-key", "mine").want(t, exitOK)
	if len(keys) != 2 || keys[0] != "mine" || keys[1] != "mine" {
		t.Errorf("keys %q", keys)
	}
	// What is refused is refused.
	keys = []string{""}
	b.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		keys = append(keys, "")
		refuse(w, 409, "Conflict", "The Idempotency-Key was used for another request. Use a new one for each fetch.", nil)
		return true
	}
	invoke(t, "", "fetch", testURL, "--sha256", testDigest, "--detach").want(t, exitConflict, "another request")
	if len(keys) != 2 {
		t.Errorf("it was asked for %d times", len(keys)-1)
	}
}

func TestKeyPrefix(t *testing.T) {
	b := withLogin(t)
	b.add(testKey, finished())
	b.add(otherKey, downloading(1, 2))
	for _, tt := range []struct {
		key  string
		code int
		word string
	}{
		{testKey, exitOK, ""},
		{strings.ToUpper(testKey[:5]), exitOK, ""},
		{"3b0a", exitUsage, otherKey},
		{"3b0", exitUsage, "at least 4"},
		{"ffff", exitNotFound, "no fetch"},
		{"zzzz", exitUsage, "not a key"},
		{strings.Replace(testKey, "3b0a", "ffff", 1), exitNotFound, "there is no fetch"},
	} {
		r := invoke(t, "", "show", tt.key, "-o", "id").want(t, tt.code, tt.word)
		if tt.code == exitOK && r.stdout != testKey+"\n" {
			t.Errorf("%s: %q", tt.key, r.stdout)
		}
	}
}

func TestCancel(t *testing.T) {
	b := withLogin(t)
	b.add(testKey, downloading(1, 2))
	if r := invoke(t, "", "cancel", testKey).want(t, exitOK); r.stdout != "Fetch "+testKey+" is cancelled.\n" {
		t.Errorf("stdout %q", r.stdout)
	}
	before := len(b.seen())
	invoke(t, "", "cancel", testKey).want(t, exitConflict, "cancelled already", "slotfetch prune "+testKey)
	for _, request := range b.seen()[before:] {
		if strings.HasPrefix(request, "DELETE") {
			t.Error("a fetch that had ended was pruned by cancel")
		}
	}
	b.add(otherKey, api.FetchBody{Status: "in-progress", Phase: ptr("installing")})
	invoke(t, "", "cancel", otherKey).want(t, exitConflict, "being installed")

	// Several: one has ended, one is live.
	b.mu.Lock()
	b.scripts[otherKey] = []api.FetchBody{downloading(1, 2)}
	b.mu.Unlock()
	if r := invoke(t, "", "cancel", testKey, otherKey, "-o", "id").want(t, exitConflict); r.stdout != otherKey+"\n" {
		t.Errorf("stdout %q", r.stdout)
	}
}

func TestCancelThatCameTooLate(t *testing.T) {
	b := withLogin(t)
	b.add(testKey, downloading(1, 2), finished())
	invoke(t, "", "cancel", testKey).want(t, exitConflict, "ended just before")
}

func TestCancelThatTakesLong(t *testing.T) {
	b := withLogin(t)
	b.add(testKey, downloading(1, 2), downloading(1, 2), downloading(1, 2), downloading(1, 2), api.FetchBody{Status: "cancelled"})
	b.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodDelete {
			return false
		}
		reply(w, 202, b.next(testKey))
		return true
	}
	invoke(t, "", "cancel", testKey).want(t, exitOK, "goes on by itself")
	if r := invoke(t, "", "cancel", testKey, "--timeout", "20s").want(t, exitOK); !strings.Contains(r.stdout, "is cancelled") {
		t.Errorf("stdout %q", r.stdout)
	}
}

func TestPrune(t *testing.T) {
	b := withLogin(t)
	b.add(testKey, downloading(1, 2))
	b.add(otherKey, finished())
	invoke(t, "", "prune", testKey).want(t, exitConflict, "slotfetch cancel "+testKey)
	invoke(t, "", "prune").want(t, exitUsage, "--all-final")
	invoke(t, "", "prune", testKey, "--all-final").want(t, exitUsage)
	invoke(t, "", "prune", testKey, "--older-than", "1h").want(t, exitUsage)
	if r := invoke(t, "", "prune", "--all-final", "--older-than", "999999h", "-o", "id").want(t, exitOK); r.stdout != "" {
		t.Errorf("too young: %q", r.stdout)
	}
	if r := invoke(t, "", "prune", "--all-final", "-o", "id").want(t, exitOK); r.stdout != otherKey+"\n" {
		t.Errorf("stdout %q", r.stdout)
	}
	if r := invoke(t, "", "ls", "-o", "id").want(t, exitOK); r.stdout != testKey+"\n" {
		t.Errorf("left: %q", r.stdout)
	}
	if r := invoke(t, "", "prune", "--all-final", "-o", "json").want(t, exitOK); r.stdout != "{\n  \"items\": []\n}\n" {
		t.Errorf("nothing to prune: %q", r.stdout)
	}
}

func TestSlots(t *testing.T) {
	b := withLogin(t)
	b.slots = []api.Slot{
		{Key: "1", Body: api.SlotBody{Version: "7.0.5", Current: true, AfterReboot: true, Size: 1 << 30, State: "ok"}},
		{Key: "2", Body: api.SlotBody{Version: "7.4.0", Size: 1 << 20, State: "not-iso", Source: testURL}},
		{Key: "3"},
	}
	want := "SLOT  VERSION  USE           SIZE     FETCHED  SOURCE\n" +
		"1     7.0.5    current,next  1.0 GiB  -        -\n" +
		"2     7.4.0    not-iso       1.0 MiB  -        " + testURL + "\n" +
		"3     (empty)\n"
	for _, args := range [][]string{{"slots"}, {"slots", "ls"}, {"slots", "list"}} {
		if r := invoke(t, "", args...).want(t, exitOK); r.stdout != want {
			t.Errorf("%v:\n%s", args, r.stdout)
		}
	}
	if r := invoke(t, "", "slots", "show", "3", "-o", "ndjson").want(t, exitOK); r.stdout != `{"key":"3","body":{},"meta":{"href":""}}`+"\n" {
		t.Errorf("show: %s", r.stdout)
	}
	invoke(t, "", "slots", "show", "x").want(t, exitUsage)
	invoke(t, "", "slots", "foo").want(t, exitUsage, "unknown command")
	invoke(t, "", "slots", "show", "9").want(t, exitNotFound)
	invoke(t, "", "slots", "rm", "2").want(t, exitUsage, "--yes")
	invoke(t, "", "slots", "rm", "2", "--no-input").want(t, exitUsage, "--yes")
	invoke(t, "", "slots", "rm", "1", "--yes").want(t, exitConflict)
	invoke(t, "", "slots", "rm", "2", "--yes").want(t, exitOK)
	invoke(t, "", "slots", "rm", "2", "--yes").want(t, exitNotFound)
}

func TestCompletion(t *testing.T) {
	b := withLogin(t)
	b.add(testKey, finished())
	b.add(otherKey, downloading(1, 2))
	b.slots = []api.Slot{{Key: "1", Body: api.SlotBody{Version: "7.0.5", Current: true}}, {Key: "2", Body: api.SlotBody{Version: "7.4.0"}}}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"show", ""}, testKey + "\tfinished sps.iso\n" + otherKey + "\tin-progress sps.iso\n:4\n"},
		{[]string{"cancel", ""}, otherKey + "\tin-progress sps.iso\n:4\n"},
		{[]string{"prune", ""}, testKey + "\tfinished sps.iso\n:4\n"},
		{[]string{"slots", "rm", ""}, "2\t7.4.0\n:4\n"},
		{[]string{"ls", "--output", ""}, "table\njson\nndjson\nyaml\nid\n:4\n"},
	} {
		r := invoke(t, "", append([]string{"__complete"}, tt.args...)...).want(t, exitOK)
		if r.stdout != tt.want {
			t.Errorf("%v:\n%s\nwant:\n%s", tt.args, r.stdout, tt.want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if r := invoke(t, "", "completion", shell).want(t, exitOK); !strings.Contains(r.stdout, "slotfetch") {
			t.Errorf("%s: %q", shell, r.stdout)
		}
	}
	// A box that cannot be reached must not disturb the shell.
	r := invoke(t, "", "__complete", "-H", "unix:///nowhere", "show", "").want(t, exitOK)
	if r.stdout != ":4\n" {
		t.Errorf("unreachable: %q", r.stdout)
	}
}

func TestWatch(t *testing.T) {
	b := withLogin(t)
	b.add(testKey, downloading(1<<20, 3<<20), downloading(1<<20, 3<<20), finished())
	want := testKey + " downloading, 33% of 3.0 MiB, 1.0 MiB/s, ETA 1m5s\n" + testKey + " finished, 100% of 3.0 MiB\n"
	if r := invoke(t, "", "watch", testKey).want(t, exitOK); r.stdout != want {
		t.Errorf("watch:\n%s", r.stdout)
	}
	invoke(t, "", "watch", "-o", "json").want(t, exitUsage, "ndjson")

	// All of them, until somebody prunes the fetch and Ctrl-C ends it.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	calls := 0
	b.intercept = func(_ http.ResponseWriter, r *http.Request) bool {
		switch calls++; calls {
		case 2:
			delete(b.scripts, testKey)
			b.order = nil
		case 3:
			cancel()
		}
		return false
	}
	r := invokeContext(t, ctx, "", "watch", "-o", "ndjson").want(t, exitInterrupted)
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], `{"key":"`+testKey) || lines[1] != `{"key":"`+testKey+`","pruned":true}` {
		t.Errorf("watch:\n%s", r.stdout)
	}
	if r.stderr != "" {
		t.Errorf("stderr: %s", r.stderr)
	}
}
