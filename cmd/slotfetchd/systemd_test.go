package main_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

// manager is the socket on which a service manager hears from the agent.
type manager struct {
	path     string
	messages chan string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{path: filepath.Join(t.TempDir(), "notify"), messages: make(chan string, 1000)}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	check(t, err)
	done := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			m.messages <- string(buf[:n])
		}
	}()
	return m
}

// await waits for a message that begins with prefix and gives those before it.
func (m *manager) await(t *testing.T, prefix string) (before []string) {
	t.Helper()
	limit := time.After(fetchtest.Patience)
	for {
		select {
		case text := <-m.messages:
			if strings.HasPrefix(text, prefix) {
				return before
			}
			before = append(before, text)
		case <-limit:
			t.Fatalf("no %s; before it: %q", prefix, before)
		}
	}
}

func TestNotify(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	a := newAgent(t, "")
	a.env = []string{"NOTIFY_SOCKET=" + m.path, "WATCHDOG_USEC=200000"}
	a.first(t)
	m.await(t, "READY=1")
	c := a.loginAdmin(t) // it is true
	m.await(t, "WATCHDOG=1")
	m.await(t, "WATCHDOG=1") // and again

	_, url := serveStalling(t, small)
	job := c.fetch(t, url, small.SHA256())
	m.await(t, "STATUS=1 fetch is running")
	c.do(t, "DELETE", job, "").want(t, 200)
	m.await(t, "STATUS=Idle")

	check(t, a.cmd.Process.Signal(syscall.SIGHUP))
	m.await(t, "RELOADING=1\nMONOTONIC_USEC=")
	m.await(t, "READY=1")
	a.stop(t, syscall.SIGTERM)
	m.await(t, "STOPPING=1")
}

// A certificate that was renewed is served after SIGHUP; a broken one is not.
func TestReload(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	a := newAgent(t, "")
	a.env = []string{"NOTIFY_SOCKET=" + m.path}
	a.first(t)
	m.await(t, "READY=1")
	other := startAgent(t, "")
	serial := func() string { return presented(t, a) }
	before := serial()
	replace := func(name string, text []byte) {
		file := filepath.Join(a.state, "tls", name)
		check(t, os.WriteFile(file+".new", text, 0o600))
		check(t, os.Rename(file+".new", file))
	}
	reload := func() {
		check(t, a.cmd.Process.Signal(syscall.SIGHUP))
		m.await(t, "RELOADING=1")
		m.await(t, "READY=1")
	}
	replace("tls.crt", []byte("no certificate"))
	reload()
	if got := serial(); got != before {
		t.Error("a broken certificate changed what is served")
	}
	for _, name := range []string{"tls.crt", "tls.key"} {
		text, err := os.ReadFile(filepath.Join(other.state, "tls", name))
		check(t, err)
		replace(name, text)
	}
	reload()
	if got, want := serial(), presented(t, other); got != want {
		t.Errorf("after the reload it is %s, want %s", got, want)
	}
}

// presented is the serial number of the certificate that the agent shows.
func presented(t *testing.T, a *agent) string {
	t.Helper()
	c := a.stranger(t)
	resp, err := c.http.Get(a.base + "/healthz")
	check(t, err)
	resp.Body.Close()
	return resp.TLS.PeerCertificates[0].SerialNumber.String()
}

// activated gives an agent sockets as slotfetchd.socket does.
func activated(t *testing.T, mode os.FileMode) *agent {
	t.Helper()
	a := newAgent(t, "")
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer tcp.Close()
	local, err := net.Listen("unix", a.socket)
	check(t, err)
	local.(*net.UnixListener).SetUnlinkOnClose(false)
	defer local.Close()
	check(t, os.Chmod(a.socket, mode))
	f1, err := tcp.(*net.TCPListener).File()
	check(t, err)
	f2, err := local.(*net.UnixListener).File()
	check(t, err)
	t.Cleanup(func() { f1.Close(); f2.Close() })
	a.files = []*os.File{f1, f2}
	a.base = "https://" + tcp.Addr().String()
	return a
}

func TestSocketActivation(t *testing.T) {
	t.Parallel()
	a := activated(t, 0o660)
	want := a.base
	a.activate = true
	a.first(t)
	if a.base != want {
		t.Errorf("it listens on %s, not on the socket that it got, %s", a.base, want)
	}
	a.loginAdmin(t)
	local := a.local(t)
	local.do(t, "GET", fetches, "").want(t, 200)
	a.restart(t, syscall.SIGTERM) // the sockets stay with the manager
	local.do(t, "GET", fetches, "").want(t, 200)
}

// The file mode of the local socket is all the login there is, whoever made the socket.
func TestLocalSocketForAll(t *testing.T) {
	t.Parallel()
	a := activated(t, 0o666)
	a.activate = true
	out, err := a.command("serve").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "lets everybody in") {
		t.Errorf("%v: %s", err, out)
	}
}

// On the unix socket the kernel says who calls; the audit has it.
func TestLocalSocket(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	if info, err := os.Stat(a.socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v %v", info.Mode(), err)
	}
	r := a.local(t).do(t, "GET", "/api/user_info", "").want(t, 200).is(t, "user.role", "admin")
	if os.Getuid() == 0 {
		r.is(t, "user.name", "root")
	}
}

// local is a caller on the unix socket.
func (a *agent) local(t *testing.T) *client {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", a.socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &client{a: &agent{base: "http://slotfetchd"}, http: &http.Client{Transport: transport, Timeout: time.Minute}}
}

// Commands that open the database work beside the agent, and say what is wrong without one.
func TestDatabaseCommands(t *testing.T) {
	t.Parallel()
	a := newAgent(t, "")
	out, err := a.command("db", "check").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no such file") {
		t.Errorf("without a database: %v: %s", err, out)
	}
	a.first(t)
	c := a.loginAdmin(t)
	job := c.fetch(t, serveSmall(t), small.SHA256())
	c.awaitStatus(t, job, "finished")
	copied := filepath.Join(t.TempDir(), "copy.db")
	for _, args := range [][]string{{"db", "check"}, {"db", "backup", copied}, {"config", "check"}} {
		if out, err := a.command(args...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	if out, err := a.command("db", "backup", copied).CombinedOutput(); err == nil || !strings.Contains(string(out), "exists already") {
		t.Errorf("a second backup: %v: %s", err, out)
	}
	// The copy is as good as the original.
	c.do(t, "DELETE", job, "").want(t, 200)
	a.stop(t, syscall.SIGTERM)
	text, err := os.ReadFile(copied)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(a.state, "slotfetch.db"), text, 0o600))
	a.start(t)
	c.do(t, "GET", job, "").want(t, 200).is(t, "body.status", "finished")

	a.stop(t, syscall.SIGTERM)
	check(t, os.WriteFile(filepath.Join(a.state, "slotfetch.db"), []byte(strings.Repeat("x", 9000)), 0o600))
	out, err = a.command("db", "check").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "corrupt") {
		t.Errorf("a corrupt one: %v: %s", err, out)
	}
}

func TestHelpNeedsNothing(t *testing.T) {
	t.Parallel()
	a := newAgent(t, "")
	for _, args := range [][]string{{"--help"}, {"serve", "--help"}, {"user", "add", "--help"}, {"version"}, {"--version"}} {
		out, err := a.command(args...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "slotfetchd") {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	if entries, err := os.ReadDir(a.state); err == nil {
		t.Errorf("help made %v", entries)
	}
}
