package main_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

// TestMultiBox runs scripts/multi-box against five agents. The last one has a single slot.
func TestMultiBox(t *testing.T) {
	t.Parallel()
	m := newMulti(t)
	for i := range 5 {
		slots := 64
		if i == 4 {
			slots = 1
		}
		m.agents = append(m.agents, startAgent(t, fmt.Sprintf("[slots]\ncount = %d\n", slots)))
	}
	for _, item := range []struct {
		name string
		run  func(*testing.T, *multi)
	}{
		{"all good", multiGood},
		{"full slots and a wrong password", multiSome},
		{"all fail alike", multiAlike},
		{"max failures", multiMaxFailures},
		{"parallel", multiParallel},
		{"timeout", multiTimeout},
		{"Ctrl-C", multiInterrupt},
		{"session ended", multiSession},
		{"answer to POST lost", multiLost},
		{"trust", multiTrust},
		{"usage", multiUsage},
		{"dry run", multiDryRun},
	} {
		t.Run(item.name, func(t *testing.T) { item.run(t, m) })
	}
}

// multi is the surroundings of the script: a curl that writes its arguments down before it becomes the real one, and
// a directory for temporary files, which has to be empty after each run.
type multi struct {
	agents         []*agent
	dir, log, temp string
}

func newMulti(t *testing.T) *multi {
	t.Helper()
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip(err)
	}
	if _, err := exec.LookPath("jq"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	m := &multi{dir: dir, log: filepath.Join(dir, "calls"), temp: filepath.Join(dir, "tmp")}
	check(t, os.Mkdir(filepath.Join(dir, "bin"), 0o700))
	check(t, os.Mkdir(m.temp, 0o700))
	text := fmt.Sprintf("#!/bin/sh\necho \"$*\" >>'%s'\nexec '%s' \"$@\"\n", m.log, curl)
	check(t, os.WriteFile(filepath.Join(dir, "bin", "curl"), []byte(text), 0o700))
	return m
}

// write makes a file that only we may read.
func (m *multi) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(m.dir, name)
	check(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// line is the inventory's line for a box, with files named relative to the inventory.
func (m *multi) line(t *testing.T, a *agent) string {
	t.Helper()
	name := "password-" + strings.TrimPrefix(a.base, "https://127.0.0.1:")
	m.write(t, name, a.admin+"\n")
	return fmt.Sprintf("%s user=admin password-file=%s cacert=%s\n", a.base, name, filepath.Join(a.state, "tls", "tls.crt"))
}

func (m *multi) inventory(t *testing.T, agents ...*agent) string {
	t.Helper()
	text := "# our boxes\n\n"
	for _, a := range agents {
		text += m.line(t, a)
	}
	return m.write(t, "inventory", text)
}

// calls are the command lines of curl in this run; those that hold part.
func (m *multi) calls(t *testing.T, part string) (lines []string) {
	t.Helper()
	text, err := os.ReadFile(m.log)
	if !os.IsNotExist(err) {
		check(t, err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, part) {
			lines = append(lines, line)
		}
	}
	return lines
}

// script is one run of multi-box.
type script struct {
	m              *multi
	cmd            *exec.Cmd
	stdout, stderr journalWriter
	done           chan struct{}
}

// journalWriter is a journal that a process writes to.
type journalWriter struct{ journal }

func (w *journalWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(p)
}

// start runs the script in a session of its own, which has no terminal. The environment is ours and env.
func (m *multi) start(t *testing.T, env []string, args ...string) *script {
	t.Helper()
	_ = os.Remove(m.log)
	s := &script{m: m, cmd: exec.Command("../../scripts/multi-box", append([]string{"--force"}, args...)...), done: make(chan struct{})}
	s.cmd.Env = append(append(os.Environ(), "PATH="+filepath.Join(m.dir, "bin")+":"+os.Getenv("PATH"), "TMPDIR="+m.temp), env...)
	s.cmd.Stdout, s.cmd.Stderr = &s.stdout, &s.stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// Whoever starts tests in the background of a script has them ignore SIGINT, and so their children.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	check(t, s.cmd.Start())
	signal.Stop(interrupts)
	go func() {
		defer close(s.done)
		_ = s.cmd.Wait() // end looks at ProcessState
	}()
	t.Cleanup(func() {
		select {
		case <-s.done:
		default:
			_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
			<-s.done
		}
	})
	return s
}

// end waits for the end and wants an exit code.
func (s *script) end(t *testing.T, code int) *script {
	t.Helper()
	select {
	case <-s.done:
	case <-time.After(3 * fetchtest.Patience):
		t.Fatalf("the script does not end:\n%s", &s.stderr)
	}
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("exit code %d, want %d\n%s\n%s", got, code, &s.stdout, &s.stderr)
	}
	left, err := os.ReadDir(s.m.temp)
	check(t, err)
	if len(left) != 0 {
		t.Errorf("temporary files are left: %v", left)
	}
	for _, a := range s.m.agents {
		if strings.Contains(s.stdout.String()+s.stderr.String()+strings.Join(s.m.calls(t, ""), ""), a.admin) {
			t.Errorf("a password is in the output or in an argument of curl:\n%s\n%s\n%s", &s.stdout, &s.stderr, s.m.calls(t, ""))
		}
	}
	return s
}

func (m *multi) run(t *testing.T, code int, args ...string) *script {
	t.Helper()
	return m.start(t, nil, args...).end(t, code)
}

// until waits until ok, which looks at what the script does.
func (s *script) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(fetchtest.Patience); !ok(); time.Sleep(5 * time.Millisecond) {
		select {
		case <-s.done:
			t.Fatalf("the script ended before %s:\n%s\n%s", what, &s.stdout, &s.stderr)
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s:\n%s", what, &s.stderr)
		}
	}
}

func (s *script) untilSaid(t *testing.T, text string) {
	t.Helper()
	s.until(t, text, func() bool { return strings.Contains(s.stderr.String(), text) })
}

// document is what -o json prints.
type document struct {
	Code   int
	SHA256 string
	URL    string
	Counts map[string]int
	Boxes  []struct {
		Box, Status, Key, Error string
		Code, Slot_ID           *int
		Bytes, Seconds          *int64
	}
}

func (s *script) document(t *testing.T) document {
	t.Helper()
	var d document
	if err := json.Unmarshal([]byte(s.stdout.String()), &d); err != nil {
		t.Fatalf("%v in %q", err, &s.stdout)
	}
	if d.Code != s.cmd.ProcessState.ExitCode() {
		t.Errorf("code %d in JSON, exit code %d", d.Code, s.cmd.ProcessState.ExitCode())
	}
	return d
}

// is wants a status and a code of a box, and error to hold a text. Code -1 is null.
func (d document) is(t *testing.T, i int, status string, code int, text string) {
	t.Helper()
	got := -1
	if d.Boxes[i].Code != nil {
		got = *d.Boxes[i].Code
	}
	if b := d.Boxes[i]; b.Status != status || got != code || !strings.Contains(b.Error, text) {
		t.Errorf("box %d: %q, %d, %q; want %q, %d, %q", i, b.Status, got, b.Error, status, code, text)
	}
}

// list is the number of fetches on a box, live ones and all.
func (m *multi) list(t *testing.T, a *agent) (live, all int) {
	t.Helper()
	items := a.loginAdmin(t).do(t, "GET", fetches, "").want(t, 200).get("items").([]any)
	for _, item := range items {
		if item.(map[string]any)["body"].(map[string]any)["end_time"] == nil {
			live++
		}
	}
	return live, len(items)
}

// cancelAll ends what the script left to go on.
func (m *multi) cancelAll(t *testing.T, a *agent) {
	t.Helper()
	c := a.loginAdmin(t)
	for _, item := range c.do(t, "GET", fetches, "").want(t, 200).get("items").([]any) {
		if entry := item.(map[string]any); entry["body"].(map[string]any)["end_time"] == nil {
			c.do(t, "DELETE", fetches+"/"+entry["key"].(string), "").want(t, 200).is(t, "body.status", "cancelled")
		}
	}
}

// emptySlot makes room on the box with the single slot.
func (m *multi) emptySlot(t *testing.T, a *agent) {
	t.Helper()
	a.loginAdmin(t).do(t, "DELETE", slotsPath+"/1", "").want(t, 200)
}

// commandLines looks again and again for texts in the command lines of all processes, until stop is called, which
// says how often each was seen.
func commandLines(texts ...string) (stop func() []int) {
	quit, result := make(chan struct{}), make(chan []int)
	go func() {
		seen := make([]int, len(texts))
		for {
			files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, f := range files {
				line, _ := os.ReadFile(f) // the process may be gone
				for i, text := range texts {
					if bytes.Contains(line, []byte(text)) {
						seen[i]++
					}
				}
			}
			select {
			case <-quit:
				result <- seen
				return
			default:
			}
		}
	}()
	return func() []int { close(quit); return <-result }
}

func multiGood(t *testing.T, m *multi) {
	url, texts := serveSmall(t), []string{small.SHA256()}
	for _, a := range m.agents {
		texts = append(texts, a.admin)
	}
	dead := fetchtest.NewHTTP(t, nil).URL + "/none.iso" // 404
	inventory := m.inventory(t, m.agents...)
	stop := commandLines(texts...)
	s := m.run(t, 0, "--sha256", strings.ToUpper(small.SHA256()), "--mirror="+url, inventory, dead+"?"+small.SHA256())
	if seen := stop(); seen[0] == 0 || !reflect.DeepEqual(seen[1:], make([]int, 5)) {
		t.Errorf("seen in command lines: %v; want the digest, and no password", seen)
	}
	lines := strings.Split(strings.TrimSpace(s.stdout.String()), "\n")
	if got := strings.Fields(lines[0]); !reflect.DeepEqual(got, []string{"BOX", "STATUS", "SLOT", "BYTES", "SECONDS", "ERROR"}) || len(lines) != 6 {
		t.Fatalf("the table:\n%s", &s.stdout)
	}
	for i, a := range m.agents {
		if got := strings.Fields(lines[i+1]); len(got) != 6 || got[0] != a.base || got[1] != "finished" || got[2] != "1" || got[3] != "300000" || got[5] != "-" {
			t.Errorf("row %q", lines[i+1])
		}
		if got := occupied(t, a.loginAdmin(t)); got != "1" {
			t.Errorf("box %d has slots %q", i, got)
		}
	}
	if got := len(m.calls(t, "-X DELETE -K - https")); got != 5 {
		t.Errorf("%d logouts, want 5", got)
	}
	for _, line := range m.calls(t, "") {
		if strings.Contains(line, "insecure") || strings.Contains(line, " -k") {
			t.Errorf("certificates are not checked: %s", line)
		}
	}
	m.emptySlot(t, m.agents[4])
}

func multiSome(t *testing.T, m *multi) {
	url := serveSmall(t)
	full := m.agents[4].loginAdmin(t)
	full.awaitStatus(t, full.fetch(t, url, small.SHA256()), "finished")
	defer m.emptySlot(t, m.agents[4])
	lines := m.line(t, m.agents[4]) + m.line(t, m.agents[0])
	wrong := m.write(t, "wrong", "not the password\n")
	lines += fmt.Sprintf("%s password-file=%s cacert=%s/tls/tls.crt # an absolute path\n", m.agents[1].base, wrong, m.agents[1].state)
	inventory := m.write(t, "inventory", lines)
	s := m.run(t, 11, "-o", "json", "--sha256", small.SHA256(), inventory, url)
	d := s.document(t)
	d.is(t, 0, "failed", 9, "No empty firmware slot")
	d.is(t, 1, "finished", 0, "")
	d.is(t, 2, "refused", 4, "Unable to authenticate")
	if want := map[string]int{"finished": 1, "failed": 2, "pending": 0, "not_started": 0}; !reflect.DeepEqual(d.Counts, want) {
		t.Errorf("counts %v, want %v", d.Counts, want)
	}
	if d.Boxes[0].Box != m.agents[4].base || d.SHA256 != small.SHA256() || d.URL != url || d.Boxes[1].Bytes == nil || *d.Boxes[1].Bytes != 300_000 {
		t.Errorf("the document: %s", &s.stdout)
	}
	s = m.run(t, 11, "--sha256", small.SHA256(), inventory, url)
	for _, line := range strings.Split(s.stdout.String(), "\n") {
		switch {
		case strings.HasPrefix(line, m.agents[4].base+" ") && !strings.Contains(line, "No empty firmware slot: all 1 are occupied."),
			strings.HasPrefix(line, m.agents[1].base+" ") && !strings.Contains(line, "Unable to authenticate."):
			t.Errorf("the row has no reason: %s", line)
		}
	}
}

func multiAlike(t *testing.T, m *multi) {
	url := serveSmall(t)
	d := m.run(t, 7, "-o", "json", "--sha256", strings.Repeat("0", 64), m.inventory(t, m.agents[:2]...), url).document(t)
	d.is(t, 0, "failed", 7, "SHA-256 mismatch")
	d.is(t, 1, "failed", 7, "SHA-256 mismatch")
	// Slot 1000 is of no box.
	d = m.run(t, 2, "-o", "json", "--slot=1000", "--sha256", small.SHA256(), m.inventory(t, m.agents[:2]...), url).document(t)
	d.is(t, 1, "refused", 2, "slot_id")
	// The password from the environment is wrong, and not handed on to curl.
	one := m.write(t, "inventory", fmt.Sprintf("%s cacert=%s/tls/tls.crt\n", m.agents[0].base, m.agents[0].state))
	m.start(t, []string{"SLOTFETCH_PASSWORD=wrong"}, "--sha256", small.SHA256(), one, url).end(t, 4)
	m.start(t, []string{"SLOTFETCH_PASSWORD=" + m.agents[0].admin}, "--sha256", small.SHA256(), one, url).end(t, 0)
}

func multiMaxFailures(t *testing.T, m *multi) {
	url := serveSmall(t)
	text := fmt.Sprintf("%s password-file=%s cacert=%s/tls/tls.crt\n", m.agents[0].base, m.write(t, "wrong", "wrong"), m.agents[0].state)
	for _, a := range m.agents[1:] {
		text += m.line(t, a)
	}
	_, before := m.list(t, m.agents[1])
	s := m.run(t, 10, "-o", "json", "--parallel", "1", "--max-failures", "1", "--sha256", small.SHA256(), m.write(t, "inventory", text), url)
	d := s.document(t)
	d.is(t, 0, "refused", 4, "")
	for i := 1; i < 5; i++ {
		d.is(t, i, "not started", -1, "")
		if calls := m.calls(t, m.agents[i].base); len(calls) != 0 {
			t.Errorf("box %d was called: %v", i, calls)
		}
	}
	if _, after := m.list(t, m.agents[1]); after != before || d.Counts["not_started"] != 4 {
		t.Errorf("%d fetches, %d before; %v", after, before, d.Counts)
	}
	// Two may fail: the others are started.
	m.run(t, 11, "--parallel", "1", "--max-failures", "2", "--sha256", small.SHA256(), m.write(t, "inventory", text), url)
	m.emptySlot(t, m.agents[4])
}

// multiParallel holds two downloads up and sees that the script polls their boxes, and leaves the others alone.
func multiParallel(t *testing.T, m *multi) {
	f := fetchtest.Whole(small)
	f.Fault, f.After = fetchtest.Stall, small.Size()/2
	var now, most atomic.Int64
	server := fetchtest.NewHTTP(t, nil)
	url := server.Handle("/slow.iso", func(x *fetchtest.Exchange) {
		n := now.Add(1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		f.Serve(x)
		now.Add(-1)
	})
	s := m.start(t, nil, "--parallel=2", "--sha256", small.SHA256(), m.inventory(t, m.agents...), url)
	first, second := server.Next(t), server.Next(t)
	for _, a := range m.agents[:2] {
		s.until(t, "three polls", func() bool { return len(m.calls(t, a.base+fetches+"/")) >= 3 })
	}
	for i, a := range m.agents[2:] {
		if calls := m.calls(t, a.base); len(calls) != 0 {
			t.Errorf("box %d is third at least, and was called: %v", i+2, calls)
		}
	}
	first.Release()
	third := server.Next(t)
	second.Release()
	fourth := server.Next(t)
	third.Release()
	fifth := server.Next(t)
	fourth.Release()
	fifth.Release()
	s.end(t, 0)
	if got := most.Load(); got != 2 {
		t.Errorf("%d connections at a time, want 2", got)
	}
	m.emptySlot(t, m.agents[4])
}

func multiTimeout(t *testing.T, m *multi) {
	_, url := serveStalling(t, small)
	s := m.run(t, 8, "-o", "json", "--timeout", "2", "--sha256", small.SHA256(), m.inventory(t, m.agents[0]), url)
	d := s.document(t)
	d.is(t, 0, "pending", 8, "after 2 s; the fetch goes on")
	if live, _ := m.list(t, m.agents[0]); live != 1 {
		t.Errorf("%d fetches go on, want 1", live)
	}
	if want := "-X DELETE " + m.agents[0].base + fetches + "/" + d.Boxes[0].Key; !strings.Contains(s.stderr.String(), want) {
		t.Errorf("stderr does not say %q: %s", want, &s.stderr)
	}
	m.cancelAll(t, m.agents[0])
}

func multiInterrupt(t *testing.T, m *multi) {
	server, url := serveStalling(t, small)
	s := m.start(t, nil, "-o", "json", "--parallel", "2", "--sha256", small.SHA256(), m.inventory(t, m.agents[:3]...), url)
	server.Next(t)
	server.Next(t)
	for _, a := range m.agents[:2] {
		s.untilSaid(t, a.base+": started")
	}
	check(t, syscall.Kill(-s.cmd.Process.Pid, syscall.SIGINT)) // as a terminal does
	d := s.end(t, 130).document(t)
	d.is(t, 2, "not started", -1, "")
	for i, a := range m.agents[:2] {
		d.is(t, i, "pending", 8, "interrupted; the fetch goes on")
		if live, _ := m.list(t, a); live != 1 {
			t.Errorf("%d fetches go on on box %d, want 1", live, i)
		}
		if want := "-X DELETE " + a.base + fetches + "/" + d.Boxes[i].Key; !strings.Contains(s.stderr.String(), want) {
			t.Errorf("stderr does not say %q: %s", want, &s.stderr)
		}
		m.cancelAll(t, a)
	}
}

// multiSession ends the script's session by its own cookie, once and twice.
func multiSession(t *testing.T, m *multi) {
	for _, twice := range []bool{false, true} {
		a := m.agents[0]
		server, url := serveStalling(t, small)
		s := m.start(t, nil, "-o", "json", "--sha256", small.SHA256(), m.inventory(t, a), url)
		x := server.Next(t)
		s.untilSaid(t, "started")
		endSession(t, m, a)
		s.untilSaid(t, "the session has ended: logging in again")
		if twice {
			s.until(t, "a poll of the new session", func() bool {
				calls := m.calls(t, "")
				return strings.Contains(calls[len(calls)-1], fetches+"/") && len(m.calls(t, "GET -K - "+a.base+"/api/authentication")) == 2
			})
			endSession(t, m, a)
			s.end(t, 4).document(t).is(t, 0, "refused", 4, "the fetch goes on")
			m.cancelAll(t, a)
			continue
		}
		x.Release()
		s.end(t, 0).document(t).is(t, 0, "finished", 0, "")
		if got := strings.Count(s.stderr.String(), "logging in again"); got != 1 {
			t.Errorf("%d new logins, want 1:\n%s", got, &s.stderr)
		}
	}
}

// endSession logs the script out.
func endSession(t *testing.T, m *multi, a *agent) {
	t.Helper()
	jars, err := filepath.Glob(filepath.Join(m.temp, "*", "1", "jar"))
	check(t, err)
	text, err := os.ReadFile(jars[0])
	check(t, err)
	if info, err := os.Stat(jars[0]); err != nil || info.Mode() != 0o600 {
		t.Errorf("the cookie jar has mode %v, %v", info.Mode(), err)
	}
	fields := strings.Fields(string(text))
	c := a.stranger(t)
	c.cookie = "session_id=" + fields[len(fields)-1]
	c.do(t, "DELETE", "/api/authentication", "").want(t, 200)
}

// gateway is a TLS server of its own before an agent; before may answer or end a request itself.
func gateway(t *testing.T, a *agent, ca *fetchtest.CA, before func(http.ResponseWriter, *http.Request) bool) *httptest.Server {
	t.Helper()
	to, err := url.Parse(a.base)
	check(t, err)
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	proxy := &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !before(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	s.TLS = ca.TLS(fetchtest.Good)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // it is cut, and refused, on purpose
	s.StartTLS()
	t.Cleanup(func() { s.Close(); transport.CloseIdleConnections() })
	return s
}

// multiLost loses the answer to the first POST, after the box has accepted it or before: the second starts no second fetch.
func multiLost(t *testing.T, m *multi) {
	ca, image := fetchtest.NewCA(), serveSmall(t)
	caFile := m.write(t, "ca.pem", string(ca.PEM))
	a := m.agents[0]
	for _, test := range []struct {
		name          string
		accepted, cut bool
	}{
		{"accepted, then cut", true, true},
		{"cut before", false, true},
		{"accepted, then 502", true, false},
		{"502 before", false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var posts atomic.Int64
			g := gateway(t, a, ca, func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != "POST" || posts.Add(1) > 1 {
					return false
				}
				if test.accepted {
					c := a.stranger(t)
					c.cookie = r.Header.Get("Cookie")
					var body bytes.Buffer
					_, _ = body.ReadFrom(r.Body)
					c.do(t, "POST", fetches, body.String(), "Idempotency-Key", r.Header.Get("Idempotency-Key")).want(t, 202)
				}
				if test.cut {
					panic(http.ErrAbortHandler)
				}
				w.WriteHeader(http.StatusBadGateway)
				return true
			})
			_, before := m.list(t, a)
			inventory := m.write(t, "inventory", fmt.Sprintf("%s password-file=%s cacert=%s", g.URL, m.write(t, "password", a.admin), caFile))
			s := m.run(t, 0, "-o", "json", "--sha256", small.SHA256(), inventory, image)
			s.document(t).is(t, 0, "finished", 0, "")
			_, after := m.list(t, a)
			if got := int(posts.Load()); got != 2 || after-before != 1 {
				t.Errorf("%d POSTs and %d more fetches, want 2 and 1:\n%s", got, after-before, &s.stderr)
			}
		})
	}
}

func multiTrust(t *testing.T, m *multi) {
	ca, image := fetchtest.NewCA(), serveSmall(t)
	a := m.agents[0]
	var requests atomic.Int64
	g := gateway(t, a, ca, func(http.ResponseWriter, *http.Request) bool { requests.Add(1); return false })
	password := m.write(t, "password", a.admin)
	pin := func(cert *x509.Certificate) string {
		sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
		return "sha256//" + base64.StdEncoding.EncodeToString(sum[:])
	}
	other := httptest.NewTLSServer(http.NotFoundHandler())
	defer other.Close()
	good := pin(g.Certificate())
	for _, test := range []struct {
		name, access string
		args         []string
		code         int
		said         string
	}{
		{"unknown CA", "", nil, 3, "name its CA with cacert=, or its key with pin="},
		{"another CA", "cacert=" + filepath.Join(a.state, "tls", "tls.crt"), nil, 3, "certificate"},
		{"another key", "pin=" + pin(other.Certificate()), nil, 3, "another public key"},
		{"another key, --insecure", "pin=" + pin(other.Certificate()), []string{"--insecure"}, 3, "another public key"},
		{"the CA", "", []string{"--cacert", m.write(t, "ca.pem", string(ca.PEM))}, 0, ""},
		{"the key", "pin=" + pin(other.Certificate()) + ";" + good, nil, 0, ""},
		{"--insecure", "", []string{"--insecure"}, 0, "WARNING: certificates are NOT checked"},
	} {
		t.Run(test.name, func(t *testing.T) {
			requests.Store(0)
			inventory := m.write(t, "inventory", g.URL+" "+test.access+"\n")
			s := m.run(t, test.code, append(test.args, "--password-file", password, "--sha256", small.SHA256(), inventory, image)...)
			if !strings.Contains(s.stdout.String()+s.stderr.String(), test.said) {
				t.Errorf("nothing says %q:\n%s\n%s", test.said, &s.stdout, &s.stderr)
			}
			if warned := strings.Contains(s.stderr.String(), "WARNING"); warned != (test.name == "--insecure") {
				t.Errorf("warned: %v", warned)
			}
			if got := requests.Load(); (got == 0) != (test.code == 3) {
				t.Errorf("%d requests", got)
			}
		})
	}
	g.Close()
	inventory := m.write(t, "inventory", g.URL)
	m.run(t, 3, "--password-file", password, "--sha256", small.SHA256(), inventory, image)
}

func multiUsage(t *testing.T, m *multi) {
	digest, image := small.SHA256(), "https://example.com/a.iso"
	inventory := m.inventory(t, m.agents[0])
	with := func(name, text string) []string {
		return []string{"--sha256", digest, m.write(t, name, text), image}
	}
	for name, args := range map[string][]string{
		"nothing":           {},
		"no URL":            {"--sha256", digest, inventory},
		"no digest":         {inventory, image},
		"short digest":      {"--sha256", digest[1:], inventory, image},
		"bad digest":        {"--sha256", "g" + digest[1:], inventory, image},
		"gopher":            {"--sha256", digest, inventory, "gopher://example.com/a"},
		"a blank":           {"--sha256", digest, inventory, "https://example.com/a b"},
		"unknown option":    {"--frob", "--sha256", digest, inventory, image},
		"option at the end": {inventory, image, "--sha256"},
		"three arguments":   {"--sha256", digest, inventory, image, image},
		"parallel 0":        {"--parallel", "0", "--sha256", digest, inventory, image},
		"parallel 65":       {"--parallel=65", "--sha256", digest, inventory, image},
		"max failures":      {"--max-failures", "-1", "--sha256", digest, inventory, image},
		"timeout":           {"--timeout", "10s", "--sha256", digest, inventory, image},
		"output":            {"-o", "xml", "--sha256", digest, inventory, image},
		"no inventory":      {"--sha256", digest, filepath.Join(m.dir, "none"), image},
		"no CA":             {"--cacert", filepath.Join(m.dir, "none"), "--sha256", digest, inventory, image},
		"empty inventory":   with("empty", "# nothing\n"),
		"twice":             with("twice", "box1\nhttps://BOX1\n"),
		"http":              with("http", "http://box1\n"),
		"userinfo":          with("userinfo", "https://u:p@box1\n"),
		"path":              with("path", "https://box1/api\n"),
		"bare IPv6":         with("ipv6", "fd00::5\n"),
		"port":              with("port", "box1:https\n"),
		"unknown word":      with("word", "box1 passwd=x\n"),
		"no password file":  with("nofile", "box1 password-file=none\n"),
		"empty password":    with("nopw", "box1 password-file="+m.write(t, "blank", "\n")+"\n"),
		"user with a colon": with("user", "box1 user=a:b\n"),
		"fingerprint":       with("pin", "box1 pin=SHA256:AA\n"),
		"no password":       with("prompt", "box1\n"), // and no terminal for the prompt
	} {
		t.Run(name, func(t *testing.T) {
			s := m.run(t, 2, args...)
			if s.stdout.String() != "" || !strings.HasPrefix(s.stderr.String(), "multi-box: ") {
				t.Errorf("stdout %q, stderr %q", &s.stdout, &s.stderr)
			}
			if calls := m.calls(t, ""); len(calls) != 0 {
				t.Errorf("curl ran: %v", calls)
			}
		})
	}
	for _, part := range []string{"SLOTFETCH_PASSWORD", "pin=", "130", "--max-failures"} {
		if s := m.run(t, 0, "--help"); !strings.Contains(s.stdout.String(), part) {
			t.Errorf("--help does not mention %s", part)
		}
	}
}

func multiDryRun(t *testing.T, m *multi) {
	text := m.line(t, m.agents[0]) + "box2:8443 user=ann\n"
	args := []string{"--dry-run", "--slot", "2", "--sha256", small.SHA256(), m.write(t, "inventory", text), "https://u:secret@example.com/a.iso"}
	s := m.run(t, 0, args...)
	if out := s.stdout.String(); strings.Contains(out, "secret") || !strings.Contains(out, "box2:8443 as ann") || !strings.Contains(out, `"slot_id":2`) {
		t.Errorf("stdout %q", out)
	}
	s = m.run(t, 0, append([]string{"-o", "json"}, args...)...)
	var plan struct {
		Dry_Run bool
		Boxes   []struct{ Box, User, Trust string }
		Request map[string]any
	}
	check(t, json.Unmarshal([]byte(s.stdout.String()), &plan))
	if !plan.Dry_Run || len(plan.Boxes) != 2 || plan.Request["url"] != "https://example.com/a.iso" {
		t.Errorf("stdout %q", &s.stdout)
	}
	if calls := m.calls(t, ""); len(calls) != 0 {
		t.Errorf("curl ran: %v", calls)
	}
}
