package main

import (
	"bufio"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"slotfetch/fetch/fetchtest"
)

// TestAgent runs the scripts in testdata/agent: the real slotfetch, as it is shipped, against the real slotfetchd
// under the race detector. Each script has an agent of its own, with two slots and the user admin, and a server
// of images:
//
//	$BOX, $SOCKET        the agent by HTTPS and by its unix socket
//	$CONFIG, $STATE, $FINGERPRINT, $ADMIN
//	                     its configuration and state directory, its certificate, the file with the first password
//	$SOURCE/a.iso, /b.iso    two images of which SHA256SUMS, there and here, and $DIGEST know the first
//	$SOURCE/private.iso  the image of a.iso, for ann with the password secret
//	$SECURE/a.iso        the same by HTTPS, signed by ca.pem
//	$SOURCE/announced.iso    the image of a.iso; the server announces its digest
//	$SOURCE/slow.iso     the image of a.iso; after its first half nothing more comes until the script says release
//	$PLAIN, $OTHER       a server of plain HTTP, and one of HTTPS that is no box
//
// The commands beyond those of testscript:
//
//	agent start|stop|kill|recert    kill is SIGKILL; recert gives it another certificate without a restart
//	exits CODE program args...      runs it in the foreground
//	bg NAME program args...         runs it in the background; its output goes to NAME.out and NAME.err
//	end NAME CODE [SIGNAL]          sends the signal and waits for it
//	until REGEXP program args...    runs it until its stdout matches
//	capture VAR program args...     puts its stdout into a variable
//	release                         lets slow.iso come whole
//	boot N                          makes the machine believe that it was booted anew, into slot N
//	root                            does what the agent has asked the root side for; a reboot is only told
//	damage N                        changes a byte of the image in slot N
func TestAgent(t *testing.T) {
	bin := buildPrograms(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/agent",
		RequireExplicitExec: true,
		Setup:               func(e *testscript.Env) error { return setupScene(e, bin) },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"agent":   onScene((*scene).agent),
			"exits":   onScene((*scene).exits),
			"bg":      onScene((*scene).bg),
			"end":     onScene((*scene).end),
			"until":   onScene((*scene).until),
			"capture": onScene((*scene).capture),
			"release": onScene((*scene).release),
			"boot":    onScene((*scene).boot),
			"root":    onScene((*scene).root),
			"damage":  onScene((*scene).damage),
		},
	})
}

// buildPrograms gives the directory with both programs.
func buildPrograms(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	for _, b := range []struct{ cgo, name string }{{"1", "slotfetchd"}, {"0", "slotfetch"}} {
		args := []string{"build", "-o", filepath.Join(bin, b.name)}
		if b.cgo == "1" {
			args = append(args, "-race")
		}
		cmd := exec.Command("go", append(args, "../"+b.name)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+b.cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("cannot build %s: %v\n%s", b.name, err, out)
		}
	}
	return bin
}

// scene is what a script plays on.
type scene struct {
	t      testing.TB
	bin    string
	dir    string // the agent's
	box    string
	open   func() // lets slow.iso come
	daemon *process
	shows  chan string // the fingerprints that the agent says it shows; closed when it is gone
	others map[string]*process
	boots  int
}

// process is a program in the background.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it is gone
}

type sceneKey struct{}

func setupScene(e *testscript.Env, bin string) error {
	t := e.T().(testing.TB)
	dir, err := os.MkdirTemp("", "sf") // short, for the socket
	if err != nil {
		return err
	}
	s := &scene{t: t, bin: bin, dir: dir, box: freeAddress(t), others: map[string]*process{}}
	e.Values[sceneKey{}] = s
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Cleanup(s.close)
	err = os.WriteFile(filepath.Join(dir, "agent.toml"), fmt.Appendf(nil, `state_dir = %q
[api]
listen = %q
[local]
socket = %q
[slots]
count = 2
[fetch]
retry_initial = "10ms"
retry_max = "100ms"
[egress]
allow = ["127.0.0.0/8"]
[activate]
hooks = %q
state_dir = %q
boot_id_file = %q
cmdline_file = %q
`, filepath.Join(dir, "state"), s.box, filepath.Join(dir, "s"), filepath.Join(dir, "hooks"), filepath.Join(dir, "hookstate"),
		filepath.Join(dir, "boot_id"), filepath.Join(dir, "cmdline")), 0o600)
	if err != nil {
		return err
	}
	if err := s.hooks(); err != nil {
		return err
	}

	img := fetchtest.NewImage(1, 300_000)
	source := fetchtest.NewHTTP(t, nil)
	whole := fetchtest.Whole(img)
	whole.Ends = true
	source.Handle("/a.iso", whole.Serve)
	announced := whole
	announced.Header = []string{"X-Checksum-Sha256: " + img.SHA256()}
	source.Handle("/announced.iso", announced.Serve)
	source.Handle("/b.iso", fetchtest.Whole(fetchtest.NewImage(2, 200_000)).Serve)
	source.Handle("/private.iso", fetchtest.Protected("ann", "secret", fetchtest.Whole(img).Serve))
	ca := fetchtest.NewCA()
	secure := fetchtest.NewHTTP(t, ca.TLS(fetchtest.Good))
	secure.Handle("/a.iso", whole.Serve)
	gate := make(chan struct{})
	s.open = sync.OnceFunc(func() { close(gate) })
	source.Handle("/slow.iso", func(x *fetchtest.Exchange) {
		go func() {
			select {
			case <-gate:
				x.Release()
			case <-x.Closed:
			}
		}()
		f := fetchtest.Whole(img)
		f.Fault, f.After = fetchtest.Stall, img.Size()/2
		f.Serve(x)
	})
	sums := fmt.Sprintf("%064d  other.iso\n%s  a.iso\n%[2]s *slow.iso\n", 1, img.SHA256())
	source.Handle("/SHA256SUMS", func(x *fetchtest.Exchange) {
		x.Printf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(sums), sums)
	})
	err = errors.Join(os.WriteFile(filepath.Join(e.WorkDir, "SHA256SUMS"), []byte(sums), 0o600),
		os.WriteFile(filepath.Join(e.WorkDir, "ca.pem"), ca.PEM, 0o600))
	if err != nil {
		return err
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	other := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(other.Close)

	for name, value := range map[string]string{
		"PATH": bin + string(os.PathListSeparator) + e.Getenv("PATH"), "HOME": e.WorkDir, "TZ": "UTC",
		"GORACE": "atexit_sleep_ms=10", // the race detector's second at each exit adds up
		"CONFIG": filepath.Join(dir, "agent.toml"), "STATE": filepath.Join(dir, "state"), "ADMIN": filepath.Join(dir, "state", "initial-admin-password"),
		"BOX": s.box, "SOCKET": "unix://" + filepath.Join(dir, "s"), "SOCKET_PATH": filepath.Join(dir, "s"),
		"SOURCE": source.URL, "SECURE": secure.URL, "DIGEST": img.SHA256(),
		"PLAIN": plain.Listener.Addr().String(), "OTHER": other.Listener.Addr().String(),
		"JAR": filepath.Join(e.WorkDir, ".local/state/slotfetch/cookies", strings.Replace(s.box, ":", "_", 1)+".txt"),
	} {
		e.Setenv(name, value)
	}
	e.Setenv("FINGERPRINT", s.start())
	return nil
}

// freeAddress is a port of a loopback address that nobody else uses, so that it is still free after a restart.
func freeAddress(t testing.TB) string {
	t.Helper()
	host := fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
	l, err := net.Listen("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// onScene makes a command of testscript; none of ours has a negation.
func onScene(f func(*scene, *testscript.TestScript, []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg {
			ts.Fatalf("this command has no !")
		}
		f(ts.Value(sceneKey{}).(*scene), ts, args)
	}
}

// showsCertificate is a line of the agent's log: it is ready, or it has loaded another certificate.
var showsCertificate = regexp.MustCompile(`msg=(?:"agent ready"|reloaded) .*certificate=(\S+)`)

// start starts the agent, waits until it is ready and gives its fingerprint.
func (s *scene) start() string {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(s.bin, "slotfetchd"), "--config", filepath.Join(s.dir, "agent.toml"), "serve")
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=10")
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.daemon = &process{cmd: cmd, done: make(chan struct{})}
	s.shows = make(chan string, 8)
	go func(shows chan<- string, done chan<- struct{}) {
		var log strings.Builder
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			log.WriteString(lines.Text() + "\n")
			if m := showsCertificate.FindStringSubmatch(lines.Text()); m != nil {
				shows <- m[1]
			}
		}
		_ = cmd.Wait() // stop looks at ProcessState
		if strings.Contains(log.String(), "DATA RACE") || strings.Contains(log.String(), "panic") {
			s.t.Errorf("the agent's log:\n%s", log.String())
		} else if s.t.Failed() {
			s.t.Logf("the agent's log:\n%s", log.String())
		}
		close(shows)
		close(done)
	}(s.shows, s.daemon.done)
	fingerprint := fetchtest.Await(s.t, "the agent to be ready", s.shows)
	if fingerprint == "" {
		s.t.Fatal("the agent did not start")
	}
	return fingerprint
}

// stop ends the agent.
func (s *scene) stop(sig syscall.Signal) {
	s.t.Helper()
	_ = s.daemon.cmd.Process.Signal(sig) // it may be gone
	fetchtest.Await(s.t, "the agent to stop", s.daemon.done)
	if code := s.daemon.cmd.ProcessState.ExitCode(); sig == syscall.SIGTERM && code != 0 {
		s.t.Errorf("the agent ended with code %d", code)
	}
}

func (s *scene) close() {
	for _, p := range s.others {
		_ = p.cmd.Process.Kill() // it may be gone
		<-p.done
	}
	if s.daemon == nil {
		return
	}
	select {
	case <-s.daemon.done:
	default:
		s.stop(syscall.SIGTERM)
	}
}

func (s *scene) agent(ts *testscript.TestScript, args []string) {
	switch strings.Join(args, " ") {
	case "start":
		s.start()
	case "stop":
		s.stop(syscall.SIGTERM)
	case "kill":
		s.stop(syscall.SIGKILL)
	case "recert":
		s.recert(ts)
	default:
		ts.Fatalf("usage: agent start|stop|kill|recert")
	}
}

// recert gives the agent another certificate and waits until it shows it.
func (s *scene) recert(ts *testscript.TestScript) {
	both, err := os.ReadFile(fetchtest.NewCA().WriteFile(s.t, fetchtest.SelfSigned))
	ts.Check(err)
	key, rest := pem.Decode(both)
	for name, data := range map[string][]byte{"tls.key": pem.EncodeToMemory(key), "tls.crt": rest} {
		ts.Check(os.WriteFile(filepath.Join(s.dir, "state", "tls", name), data, 0o600))
	}
	ts.Check(s.daemon.cmd.Process.Signal(syscall.SIGHUP))
	ts.Setenv("FINGERPRINT", fetchtest.Await(s.t, "the new certificate", s.shows))
}

func (s *scene) exits(ts *testscript.TestScript, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits CODE program args...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// command is a program with the environment of the script.
func (s *scene) command(ts *testscript.TestScript, args []string) *exec.Cmd {
	name := args[0]
	if name == "slotfetch" {
		name = filepath.Join(s.bin, name)
	}
	cmd := exec.Command(name, args[1:]...)
	cmd.Dir = ts.Getenv("WORK")
	for _, name := range []string{"PATH", "HOME", "TZ", "SLOTFETCH_BOX", "SLOTFETCH_SESSION"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	return cmd
}

func (s *scene) bg(ts *testscript.TestScript, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: bg NAME program args...")
	}
	cmd := s.command(ts, args[1:])
	out, err := os.Create(ts.MkAbs(args[0] + ".out"))
	ts.Check(err)
	defer out.Close()
	stderr, err := os.Create(ts.MkAbs(args[0] + ".err"))
	ts.Check(err)
	defer stderr.Close()
	cmd.Stdout, cmd.Stderr = out, stderr
	ts.Check(cmd.Start())
	p := &process{cmd: cmd, done: make(chan struct{})}
	s.others[args[0]] = p
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // end looks at ProcessState
	}()
}

func (s *scene) end(ts *testscript.TestScript, args []string) {
	if len(args) < 2 || len(args) > 3 || s.others[args[0]] == nil {
		ts.Fatalf("usage: end NAME CODE [INT|TERM]")
	}
	p := s.others[args[0]]
	if len(args) == 3 {
		ts.Check(p.cmd.Process.Signal(map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM}[args[2]]))
	}
	fetchtest.Await(s.t, args[0]+" to end", p.done)
	ts.Logf("[%s]\n%s%s", args[0], ts.ReadFile(args[0]+".out"), ts.ReadFile(args[0]+".err"))
	if code := p.cmd.ProcessState.ExitCode(); strconv.Itoa(code) != args[1] {
		ts.Fatalf("%s: exit code %d, want %s", args[0], code, args[1])
	}
}

func (s *scene) until(ts *testscript.TestScript, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: until REGEXP program args...")
	}
	want := regexp.MustCompile(args[0])
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(10 * time.Millisecond) {
		out, err := s.command(ts, args[1:]).Output()
		if err == nil && want.Match(out) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("waited %s in vain for %q: %v\n%s", fetchtest.Patience, want, err, out)
		}
	}
}

func (s *scene) capture(ts *testscript.TestScript, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: capture VAR program args...")
	}
	ts.Check(ts.Exec(args[1], args[2:]...))
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

func (s *scene) release(*testscript.TestScript, []string) { s.open() }

// hooks makes a boot loader of which nobody is afraid.
func (s *scene) hooks() error {
	dir := filepath.Join(s.dir, "hooks")
	err := os.Mkdir(dir, 0o755)
	for _, name := range []string{"activate", "confirm", "rollback"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\nexit 0\n"), 0o755))
	}
	told := filepath.Join(s.dir, "rebooted")
	return errors.Join(err, os.WriteFile(filepath.Join(dir, "reboot"), []byte("#!/bin/sh\ntouch '"+told+"'\n"), 0o755))
}

func (s *scene) boot(ts *testscript.TestScript, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: boot N")
	}
	s.boots++
	ts.Check(os.WriteFile(filepath.Join(s.dir, "boot_id"), fmt.Appendf(nil, "boot-%d\n", s.boots), 0o600))
	ts.Check(os.WriteFile(filepath.Join(s.dir, "cmdline"), []byte("quiet slotfetch.slot="+args[0]+"\n"), 0o600))
}

func (s *scene) root(ts *testscript.TestScript, _ []string) {
	request := filepath.Join(s.dir, "state", "activate", "request.json")
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(request); err == nil {
			break
		}
		if time.Now().After(end) {
			ts.Fatalf("the agent asks for nothing")
		}
	}
	ts.Check(ts.Exec(filepath.Join(s.bin, "slotfetchd"), "--config", filepath.Join(s.dir, "agent.toml"), "activate"))
	if told := filepath.Join(s.dir, "rebooted"); os.Remove(told) == nil {
		fmt.Fprintln(ts.Stdout(), "rebooted")
	}
}

func (s *scene) damage(ts *testscript.TestScript, args []string) {
	name := filepath.Join(s.dir, "state", "slots", args[0], "image")
	ts.Check(os.Chmod(name, 0o640))
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	ts.Check(err)
	_, err = f.WriteAt([]byte("damage"), 1000)
	ts.Check(errors.Join(err, f.Sync(), f.Close()))
}
