package fetchtest

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// HTTP is an HTTP/1.1 server on a real socket. What it does at a path is said with [HTTP.Handle]; other paths answer
// 404. Each connection serves one request.
type HTTP struct {
	// Addr is host:port, URL the same with its scheme and no slash at the end.
	Addr, URL string

	t     testing.TB
	tls   *tls.Config
	queue chan *Exchange

	mu       sync.Mutex
	handlers map[string]Handler
	seen     []*Exchange
}

// Handler answers one request by writing to the connection as it likes.
type Handler func(*Exchange)

// NewHTTP starts a server on 127.0.0.1 that speaks plain HTTP, or TLS if conf is not nil.
func NewHTTP(t testing.TB, conf *tls.Config) *HTTP {
	t.Helper()
	return NewHTTPAt(t, "", conf)
}

// NewHTTPAt is NewHTTP at an address of choice: several loopback addresses make several hosts.
func NewHTTPAt(t testing.TB, addr string, conf *tls.Config) *HTTP {
	t.Helper()
	s := &HTTP{t: t, tls: conf, handlers: map[string]Handler{}, queue: make(chan *Exchange, 1024)}
	s.Addr = Listen(t, addr, s.serve)
	s.URL = "http://" + s.Addr
	if conf != nil {
		s.URL = "https://" + s.Addr
	}
	return s
}

// Handle says what happens at path ("/x.iso") from now on, and gives the URL.
func (s *HTTP) Handle(path string, h Handler) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[path] = h
	return s.URL + path
}

// Next waits for the next request that Next has not given yet. It comes as soon as its header is read.
func (s *HTTP) Next(t testing.TB) *Exchange {
	t.Helper()
	return Await(t, "a request", s.queue)
}

// Requests are all requests so far, in the order of their arrival.
func (s *HTTP) Requests() []*Exchange {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Exchange(nil), s.seen...)
}

func (s *HTTP) serve(conn net.Conn) {
	raw := conn
	if s.tls != nil {
		conn = tls.Server(conn, s.tls)
	}
	br := bufio.NewReader(conn)
	r, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	closed := make(chan struct{})
	x := &Exchange{Method: r.Method, URL: r.URL, Host: r.Host, Header: r.Header, Closed: closed,
		Conn: conn, raw: raw, in: br, release: make(chan struct{})}
	s.mu.Lock()
	h := s.handlers[r.URL.Path]
	s.seen = append(s.seen, x)
	s.mu.Unlock()
	if h == nil {
		h = Status(http.StatusNotFound)
	}
	// Clients of ours send nothing after the header, so reading can only end.
	go func() {
		defer close(closed)
		if r.Method != http.MethodConnect {
			_, _ = io.Copy(io.Discard, br)
		}
	}()
	select {
	case s.queue <- x:
	default: // nobody asks for so many
	}
	h(x)
	x.end()
	<-closed
}

// Exchange is one request and the connection it came over.
type Exchange struct {
	Method string
	URL    *url.URL
	Host   string
	Header http.Header
	// Closed is closed when the connection is over: the client closed it, or the server cut it.
	Closed <-chan struct{}
	// Conn is for handlers that want to write what is no HTTP.
	Conn net.Conn

	raw     net.Conn // without TLS
	in      *bufio.Reader
	release chan struct{}
	once    sync.Once
	sent    atomic.Int64
}

// Auth gives the credentials of the request; ok is false if it had none.
func (x *Exchange) Auth() (username, password string, ok bool) {
	return (&http.Request{Header: x.Header}).BasicAuth()
}

// Sent is how many bytes of a body were written.
func (x *Exchange) Sent() int64 { return x.sent.Load() }

// Release lets a stalled exchange go on.
func (x *Exchange) Release() { x.once.Do(func() { close(x.release) }) }

// Stall waits for Release; it is false if the connection ended before.
func (x *Exchange) Stall() bool {
	select {
	case <-x.release:
		return true
	case <-x.Closed:
		return false
	}
}

// Printf writes to the connection.
func (x *Exchange) Printf(format string, args ...any) {
	fmt.Fprintf(x.Conn, format, args...)
}

// Write writes bytes of a body. They count before they are on their way, so that who has them all finds them counted.
func (x *Exchange) Write(p []byte) (int, error) {
	x.sent.Add(int64(len(p)))
	n, err := x.Conn.Write(p)
	x.sent.Add(int64(n - len(p)))
	return n, err
}

// Cut ends the connection: with a reset, or, under TLS without its goodbye, with a FIN. What was written just before
// a reset may get lost.
func (x *Exchange) Cut(reset bool) {
	cut(x.raw, reset)
}

func cut(c net.Conn, reset bool) {
	if tcp, ok := c.(*net.TCPConn); ok && reset {
		_ = tcp.SetLinger(0)
	} else if ok {
		_ = tcp.CloseWrite()
		return
	}
	c.Close()
}

// end says goodbye in order; the client closes first.
func (x *Exchange) end() {
	if c, ok := x.Conn.(*tls.Conn); ok {
		_ = c.CloseWrite()
	}
	if c, ok := x.raw.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
}

// Pause waits; it is false if the connection ended before.
func (x *Exchange) Pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-x.Closed:
		return false
	}
}
