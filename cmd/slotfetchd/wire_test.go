package main_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfetch/fetch/fetchtest"
)

// wire is a cable between two network namespaces, in which an origin and the agent are. Nothing of it is in the
// namespace of the tests.
type wire struct{ far, near string } // the namespaces of origin and agent

// The network is from those that RFC 2544 sets aside for tests.
const farAddress, nearAddress = "198.18.7.1", "198.18.7.2"

// port is what both ends of the cable are called.
const port = "v0"

// newWire makes a cable of 10 MB/s. The test is skipped where that cannot be done.
func newWire(t *testing.T) *wire {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skipf("SKIPPED %s: only root may make network namespaces", t.Name())
	}
	for _, name := range []string{"ip", "tc", "nft"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED %s: %v", t.Name(), err)
		}
	}
	id := fmt.Sprintf("sfn%d", os.Getpid())
	w := &wire{far: id + "o", near: id + "a"}
	for _, space := range []string{w.far, w.near} {
		if err := run("", "ip netns add "+space); err != nil {
			t.Skipf("SKIPPED %s: %v", t.Name(), err)
		}
		t.Cleanup(func() { check(t, run("", "ip netns delete "+space)) }) // the cable goes with it
	}
	check(t, run("", "ip link add "+port+" netns "+w.far+" type veth peer name "+port+" netns "+w.near))
	for space, address := range map[string]string{w.far: farAddress, w.near: nearAddress} {
		for _, line := range []string{
			"link set lo up",
			"address add " + address + "/30 dev " + port,
			"link set " + port + " gso_max_segs 1 up", // packets as they are on a real cable
		} {
			check(t, run("", "ip -n "+space+" "+line))
		}
	}
	check(t, w.rate("80mbit burst 64kb latency 50ms"))
	for _, what := range []string{loses, resets} {
		if err := w.filter(what); err != nil {
			t.Skipf("SKIPPED %s: %v", t.Name(), err)
		}
	}
	check(t, w.filter(""))
	return w
}

// run runs a command of words without spaces.
func run(stdin, line string) error {
	words := strings.Fields(line)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// rate says how fast the origin may send, in words of tc-tbf(8).
func (w *wire) rate(limit string) error {
	return run("", "ip netns exec "+w.far+" tc qdisc replace dev "+port+" root tbf rate "+limit)
}

// What the packet filter of the agent's side may do, in words of nft(8).
const (
	loses = `
chain in { type filter hook input priority 0; iifname "` + port + `" numgen random mod 50 < 1 counter drop; }
chain out { type filter hook output priority 0; oifname "` + port + `" numgen random mod 50 < 1 counter drop; }`
	swallows = `
chain in { type filter hook input priority 0; iifname "` + port + `" drop; }
chain out { type filter hook output priority 0; oifname "` + port + `" drop; }`
	// resets answers what the agent sends: on input the origin would get the reset.
	resets = `chain out { type filter hook output priority 0; oifname "` + port + `" meta l4proto tcp reject with tcp reset; }`
)

// filter replaces all that the packet filter of the agent's side does; empty: it lets everything pass.
func (w *wire) filter(chains string) error {
	return run("table inet fault\ndelete table inet fault\ntable inet fault {\n"+chains+"\n}\n", "ip netns exec "+w.near+" nft -f -")
}

var dropped = regexp.MustCompile(`counter packets ([0-9]+)`)

// lost is how many packets have been dropped since loses began.
func (w *wire) lost(t *testing.T) (n int) {
	t.Helper()
	out, err := exec.Command("ip", "netns", "exec", w.near, "nft", "list", "ruleset").Output()
	check(t, err)
	for _, m := range dropped.FindAllStringSubmatch(string(out), -1) {
		packets, err := strconv.Atoi(m[1])
		check(t, err)
		n += packets
	}
	return n
}

// end switches one end of the cable up or down. The other one then has no carrier.
func (w *wire) end(space, to string) error { return run("", "ip -n "+space+" link set "+port+" "+to) }

// mend makes the cable as good as new.
func (w *wire) mend(t *testing.T) {
	t.Helper()
	for _, err := range []error{w.filter(""), w.end(w.far, "up"), w.end(w.near, "up"), w.rate("80mbit burst 64kb latency 50ms")} {
		check(t, err)
	}
}

// listen opens a port in the origin's namespace, in which it stays. Port 0 is any.
func (w *wire) listen(port int) (*net.TCPListener, error) {
	runtime.LockOSThread() // of which alone the namespace is changed
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	defer home.Close()
	there, err := os.Open("/run/netns/" + w.far)
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.ParseIP(farAddress), Port: port})
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		panic(err) // a thread that is lost there must not run anything else
	}
	runtime.UnlockOSThread()
	return l, err
}

// origin serves one image at the far end of a wire and counts what it sends.
type origin struct {
	t      *testing.T
	w      *wire
	img    *fetchtest.Image
	url    string
	struck chan struct{} // closed when strike has come back

	server *http.Server
	port   int
	served sync.WaitGroup

	mu     sync.Mutex
	sent   int64 // by all connections, headers included
	at     int64
	strike func() error // nil: no more
}

// sendBuffer is what the kernel doubles for its own needs, in bytes.
const sendBuffer = 128 << 10

// newOrigin serves img by http, or by ftp.
func newOrigin(t *testing.T, w *wire, scheme string, img *fetchtest.Image) *origin {
	t.Helper()
	o := &origin{t: t, w: w, img: img, struck: make(chan struct{})}
	if scheme == "ftp" {
		s := fetchtest.NewFTP(t, fetchtest.Script{Files: map[string]*fetchtest.Image{"image": img}, Modified: time.Unix(1e9, 0),
			Listen: func() (net.Listener, error) { return o.listen(0) }})
		o.url = s.URL + "/image"
		return o
	}
	check(t, o.start())
	o.url = fmt.Sprintf("http://%s:%d/image", farAddress, o.port)
	t.Cleanup(func() {
		check(t, o.stop())
		o.served.Wait()
	})
	return o
}

// start listens, on the port of the last time if there was one.
func (o *origin) start() error {
	l, err := o.listen(o.port)
	if err != nil {
		return err
	}
	o.port = l.Addr().(*net.TCPAddr).Port
	server := &http.Server{Handler: o}
	o.server = server
	o.served.Go(func() { _ = server.Serve(l) }) // it ends with an error, always
	return nil
}

// stop ends as the kernel does it with a process that dies: listener and connections are closed.
func (o *origin) stop() error { return o.server.Close() }

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", strconv.Quote(o.img.SHA256()[:16]))
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, o.img.Reader())
}

func (o *origin) listen(port int) (net.Listener, error) {
	l, err := o.w.listen(port)
	if err != nil {
		return nil, err
	}
	return struckListener{l, o}, nil
}

// aim has strike called when so many bytes are sent, before another one is.
func (o *origin) aim(at int64, strike func() error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.at, o.strike = at, strike
}

// next counts n bytes that are to be sent, or as many as there may be before the strike.
func (o *origin) next(n int) (may int, strike func() error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.strike != nil && o.sent+int64(n) > o.at {
		n, strike = int(max(o.at-o.sent, 0)), o.strike
		o.strike = nil
	}
	o.sent += int64(n)
	return n, strike
}

func (o *origin) unsent(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sent -= int64(n)
}

func (o *origin) total() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.sent
}

type struckListener struct {
	*net.TCPListener
	o *origin
}

func (l struckListener) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	if err := c.SetWriteBuffer(sendBuffer); err != nil {
		c.Close()
		return nil, err
	}
	return struckConn{c, l.o}, nil
}

// struckConn has no ReadFrom, which would count a whole image at once.
type struckConn struct {
	net.Conn
	o *origin
}

func (c struckConn) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		may, strike := c.o.next(len(p) - n)
		var m int
		m, err = c.Conn.Write(p[n : n+may])
		c.o.unsent(may - m)
		n += m
		if strike != nil {
			if serr := strike(); serr != nil {
				c.o.t.Error(serr)
			}
			close(c.o.struck)
		}
	}
	return n, err
}
