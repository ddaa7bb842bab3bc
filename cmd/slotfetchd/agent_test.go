package main_test

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

// program is the real slotfetchd, built once.
var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "slotfetchd")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "slotfetchd")
		if err := os.Chmod(dir, 0o755); err != nil { // some tests run it as another user
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		build := []string{"build", "-race", "-o", program, "."}
		if os.Getenv("SLOTFETCH_PLAIN") != "" { // it is quicker, where thousands are started
			build = slices.Delete(build, 1, 2)
		}
		if out, err := exec.Command("go", build...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "cannot build slotfetchd: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// agent is a slotfetchd process with a state directory of its own, which outlives the process.
type agent struct {
	config, state, socket string
	program               string        // empty: the one of all tests
	env                   []string      // of the process, in addition
	files                 []*os.File    // its descriptors from 3 on
	activate              bool          // tell it that these are its sockets
	under                 []string      // a program, and its arguments, that runs the agent; it has to keep the process's number
	patience              time.Duration // with its start; 0: fetchtest.Patience

	cmd   *exec.Cmd
	log   *journal
	done  chan struct{} // closed when the process is gone
	base  string        // https://host:port
	admin string        // the first password
}

// journal collects standard error over all lives of an agent.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.text.WriteString(line + "\n")
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// newAgent makes configuration and directories; extra is a drop-in.
func newAgent(t *testing.T, extra string) *agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "sf") // short, for the socket
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := &agent{config: filepath.Join(dir, "c.toml"), state: filepath.Join(dir, "state"), socket: filepath.Join(dir, "s"), log: &journal{}}
	check(t, os.WriteFile(a.config, fmt.Appendf(nil, `state_dir = %q
[api]
listen = "127.0.0.1:0"
[local]
socket = %q
[fetch]
retry_initial = "10ms"
[egress]
allow = ["127.0.0.0/8"]
`, a.state, a.socket), 0o600))
	check(t, os.Mkdir(filepath.Join(dir, "conf.d"), 0o700))
	check(t, os.WriteFile(filepath.Join(dir, "conf.d", "extra.toml"), []byte(extra), 0o600))
	return a
}

// startAgent starts an agent and waits until it is ready.
func startAgent(t *testing.T, extra string) *agent {
	t.Helper()
	a := newAgent(t, extra)
	a.first(t)
	return a
}

// first starts an agent for the first time and stops it when the test ends.
func (a *agent) first(t *testing.T) {
	t.Helper()
	a.start(t)
	password, err := os.ReadFile(filepath.Join(a.state, "initial-admin-password"))
	check(t, err)
	a.admin = strings.TrimSpace(string(password))
	t.Cleanup(func() {
		a.stop(t, syscall.SIGTERM)
		if log := a.log.String(); strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic") {
			t.Errorf("the agent's log:\n%s", log)
		} else if t.Failed() {
			t.Logf("the agent's log:\n%s", log)
		}
	})
}

var readyLine = regexp.MustCompile(`agent ready"? listen=(\S+)`)

func (a *agent) start(t *testing.T) {
	t.Helper()
	if !a.launch(t) {
		t.Fatalf("the agent did not start:\n%s", a.log)
	}
}

// launch starts the process and waits until it is ready, or gone.
func (a *agent) launch(t *testing.T) (ready bool) {
	t.Helper()
	cmd := a.command("serve")
	stderr, err := cmd.StderrPipe()
	check(t, err)
	check(t, cmd.Start())
	addresses, done := make(chan string, 1), make(chan struct{})
	a.cmd, a.done = cmd, done
	go func() {
		defer close(done)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			a.log.add(lines.Text())
			if m := readyLine.FindStringSubmatch(lines.Text()); m != nil {
				addresses <- m[1]
			}
		}
		_ = cmd.Wait() // stop looks at ProcessState
		close(addresses)
	}()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for end := time.After(cmp.Or(a.patience, fetchtest.Patience)); ; {
		select {
		case address := <-addresses:
			a.base = "https://" + address
			return address != ""
		case <-look.C:
			if a.under == nil || a.under[0] != "strace" {
				continue
			}
			// The call that fails may be the one that would tell.
			if address := listens(cmd.Process.Pid); address != "" {
				a.base = "https://" + address
				return true
			}
		case <-end:
			t.Fatalf("waited in vain for the agent to be ready:\n%s", a.log)
		}
	}
}

// listens is the address of 127.0.0.1 on which a process listens, or empty.
func listens(pid int) string {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return ""
	}
	sockets, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)) // the pattern is a good one
	for i, name := range sockets {
		sockets[i], _ = os.Readlink(name) // it may be gone
	}
	for line := range strings.Lines(string(table)) { // sl local remote state queues timers retransmits uid timeout inode
		f := strings.Fields(line)
		const listening = "0A"
		if port, local := strings.CutPrefix(f[1], "0100007F:"); local && f[3] == listening && slices.Contains(sockets, "socket:["+f[9]+"]") {
			n, err := strconv.ParseUint(port, 16, 16)
			if err == nil {
				return fmt.Sprint("127.0.0.1:", n)
			}
		}
	}
	return ""
}

// command is slotfetchd with the agent's configuration and environment.
func (a *agent) command(args ...string) *exec.Cmd {
	args = append([]string{"--config", a.config}, args...)
	cmd := exec.Command(cmp.Or(a.program, program), args...)
	if a.under != nil {
		cmd = exec.Command(a.under[0], append(append(slices.Clone(a.under[1:]), program), args...)...)
	}
	if a.activate {
		// Only the process itself knows its number, which must be right.
		cmd = exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, program}, args...)...)
		cmd.Env = append(cmd.Env, fmt.Sprint("LISTEN_FDS=", len(a.files)))
	}
	cmd.Env = append(append(append(cmd.Env, os.Environ()...), "GORACE=atexit_sleep_ms=10"), a.env...) // the race detector's second at each exit adds up
	cmd.ExtraFiles = a.files
	return cmd
}

// stop ends the process; an orderly end has to be a good one.
func (a *agent) stop(t *testing.T, sig syscall.Signal) {
	t.Helper()
	select {
	case <-a.done: // already gone
		return
	default:
	}
	check(t, a.cmd.Process.Signal(sig))
	select {
	case <-a.done:
	case <-time.After(fetchtest.Patience):
		_ = a.cmd.Process.Kill() // so that it does not outlive the test, which fails anyway
		t.Fatal("the agent does not stop")
	}
	if code := a.cmd.ProcessState.ExitCode(); sig == syscall.SIGTERM && code != 0 {
		t.Errorf("the agent ended with code %d", code)
	}
}

func (a *agent) restart(t *testing.T, sig syscall.Signal) {
	t.Helper()
	a.stop(t, sig)
	a.start(t)
}

// run runs another command of slotfetchd beside the agent.
func (a *agent) run(t *testing.T, stdin string, args ...string) {
	t.Helper()
	cmd := a.command(args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("slotfetchd %v: %v\n%s", args, err, out)
	}
}

// user adds a user with a role and logs in.
func (a *agent) user(t *testing.T, role string) *client {
	t.Helper()
	a.run(t, "a password of "+role+"\n", "user", "add", "--role", role, role+"1")
	return a.login(t, role+"1", "a password of "+role)
}

// partials are the names of files with unverified bytes.
func (a *agent) partials(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(a.state, "slots", ".part"))
	check(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// client is a caller, with a session if cookie is not empty.
type client struct {
	a      *agent
	cookie string
	http   *http.Client
	before func() // each try; may be nil
}

func (a *agent) stranger(t *testing.T) *client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // the certificate is self-made
	t.Cleanup(transport.CloseIdleConnections)
	return &client{a: a, http: &http.Client{Transport: transport, Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

func (a *agent) login(t *testing.T, name, password string) *client {
	t.Helper()
	c := a.stranger(t)
	r := c.do(t, "GET", "/api/authentication", "", "Authorization", basic(name, password)).want(t, 200)
	c.cookie, _, _ = strings.Cut(r.header.Values("Set-Cookie")[0], ";")
	return c
}

// loginAdmin is the first user; admin may do all that an operator may.
func (a *agent) loginAdmin(t *testing.T) *client {
	t.Helper()
	return a.login(t, "admin", a.admin)
}

func basic(name, password string) string {
	r := http.Request{Header: http.Header{}}
	r.SetBasicAuth(name, password)
	return r.Header.Get("Authorization")
}

// reply is an answer and its JSON.
type reply struct {
	what   string
	code   int
	header http.Header
	raw    string
	json   any
}

// do makes one request; header is names and values by turns. The answer has to be as the description of the API says.
func (c *client) do(t *testing.T, method, path, body string, header ...string) reply {
	t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	r, err := http.NewRequest(method, c.a.base+path, in)
	check(t, err)
	if c.cookie != "" {
		r.Header.Set("Cookie", c.cookie)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := c.http.Do(r)
	check(t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	check(t, err)
	a := reply{what: method + " " + path, code: resp.StatusCode, header: resp.Header, raw: string(raw)}
	if err := conforms(r, body, a.code, a.header, a.raw); err != nil {
		t.Errorf("%s: not as described: %v: %d %s", a.what, err, a.code, a.raw)
	}
	if kind := a.header.Get("Content-Type"); len(raw) > 0 && (kind == "application/json" || kind == "application/hal+json") {
		if err := json.Unmarshal(raw, &a.json); err != nil {
			t.Fatalf("%s: %v in %q", a.what, err, raw)
		}
	}
	return a
}

// get is the value at a path such as "body.status" or "items.0.key"; nil if there is none.
func (r reply) get(path string) any {
	v := r.json
	for _, name := range strings.Split(path, ".") {
		switch w := v.(type) {
		case map[string]any:
			v = w[name]
		case []any:
			var i int
			if _, err := fmt.Sscan(name, &i); err != nil || i >= len(w) {
				return nil
			}
			v = w[i]
		default:
			return nil
		}
	}
	return v
}

func (r reply) str(path string) string {
	s, _ := r.get(path).(string)
	return s
}

// keys are those of the object at path.
func (r reply) keys(path string) map[string]any {
	m, _ := r.get(path).(map[string]any)
	return m
}

func (r reply) want(t *testing.T, code int) reply {
	t.Helper()
	if r.code != code {
		t.Fatalf("%s: got %d, want %d: %s", r.what, r.code, code, r.raw)
	}
	return r
}

// is compares values by path: is(t, "body.status", "queued", "body.error", nil).
func (r reply) is(t *testing.T, pairs ...any) reply {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		path, want := pairs[i].(string), pairs[i+1]
		switch n := want.(type) {
		case int:
			want = float64(n)
		case int64:
			want = float64(n)
		}
		if got := r.get(path); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %s is %#v, want %#v in %s", r.what, path, got, want, r.raw)
		}
	}
	return r
}

// fails wants an error of a kind about a field; an empty field is not looked at.
func (r reply) fails(t *testing.T, code int, kind, field string) reply {
	t.Helper()
	r.want(t, code).is(t, "error.type", kind)
	if field != "" {
		r.is(t, "error.details.field", field)
	}
	if r.str("error.message") == "" {
		t.Errorf("%s: no message in %s", r.what, r.raw)
	}
	return r
}

const fetches, slotsPath = "/api/firmware/fetch", "/api/firmware/slots"

// order is the body of a POST; more is names and values by turns.
func order(url, sha256 string, more ...any) string {
	m := map[string]any{"url": url, "checksum": map[string]any{"sha256": sha256}}
	for i := 0; i < len(more); i += 2 {
		m[more[i].(string)] = more[i+1]
	}
	text, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// fetch starts a job and gives its path. It is forced: few tests mean an image that a slot has already.
func (c *client) fetch(t *testing.T, url, sha256 string, more ...any) string {
	t.Helper()
	return c.do(t, "POST", fetches, order(url, sha256, append([]any{"force", true}, more...)...)).want(t, 202).str("meta.href")
}

// await asks for a job until it is as wanted.
func (c *client) await(t *testing.T, job, what string, ok func(reply) bool) reply {
	t.Helper()
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(5 * time.Millisecond) {
		r := c.do(t, "GET", job, "").want(t, 200)
		if ok(r) {
			return r
		}
		if over := r.get("body.end_time") != nil; over || time.Now().After(end) {
			t.Fatalf("job did not get %s: %s", what, r.raw)
		}
	}
}

func (c *client) awaitStatus(t *testing.T, job, status string) reply {
	t.Helper()
	return c.await(t, job, status, func(r reply) bool { return r.str("body.status") == status })
}

func (c *client) awaitPhase(t *testing.T, job, phase string) reply {
	t.Helper()
	return c.await(t, job, phase, func(r reply) bool { return r.str("body.phase") == phase })
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
