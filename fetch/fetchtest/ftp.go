package fetchtest

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// Silent, as a reply of a [Script], is none: the server stays connected and says nothing.
const Silent = "silent"

// Cut, as a reply of a [Script], is half a reply and the end of the connection.
const Cut = "cut"

// Script says how an FTP server behaves. The zero value is a good server without files.
type Script struct {
	// TLS switches on TLS: after AUTH TLS, or from the first byte if Implicit. An Implicit server listens on
	// [ImplicitAddr], unless Addr says otherwise.
	TLS      *tls.Config
	Implicit bool
	// Addr is the address to listen on; empty: any port of 127.0.0.1.
	Addr string
	// Listen opens a port for the server, and one for each data connection, in another way than at Addr; nil: none.
	Listen func() (net.Listener, error)
	// Files are the images by name, as the client asks for them.
	Files map[string]*Image
	// Modified is what MDTM says; zero: MDTM is not supported.
	Modified time.Time
	// Banner replaces the greeting.
	Banner string
	// Reply replaces the answer to a command, by verb. In the answers to PASV and EPSV, {port} is the port of the
	// data connection and {p1},{p2} its two bytes. With any but a positive answer to RETR there is no transfer.
	Reply map[string]string
	// Done replaces the answer after the data.
	Done string
	// Fault happens after After bytes of data. FIN goes on with Done, which lies about the end.
	Fault Fault
	After int64
	// DripAt says a reply that never ends, byte by byte: to this command, or "banner" or "done".
	DripAt string
	// Pause is the time between two bytes of a Drip.
	Pause time.Duration
	// HangUp closes the control connection after After bytes of data; the data flows on.
	HangUp bool
	// NoRest takes REST and sends from 0 all the same.
	NoRest bool
	// Surplus bytes are sent after the file.
	Surplus int
	// Reuse demands that data connections resume the TLS session of the control connection.
	Reuse bool
	// Flood answers this command with a reply of 300 MB in many lines.
	Flood string
	// Then is for the sessions after the first one; nil: this one is for all.
	Then *Script
}

// FTP is an FTP server on a real socket that follows a [Script]. It has no active mode.
type FTP struct {
	// Addr is host:port, URL the same with its scheme and no slash at the end.
	Addr, URL string

	script Script
	queue  chan *Session

	mu   sync.Mutex
	seen []*Session
}

// NewFTP starts a server.
func NewFTP(t testing.TB, script Script) *FTP {
	t.Helper()
	s := &FTP{script: script, queue: make(chan *Session, 1024)}
	if script.Implicit && script.Addr == "" {
		script.Addr = ImplicitAddr(t)
	}
	if script.Listen == nil {
		s.Addr = Listen(t, script.Addr, s.serve)
	} else {
		l, err := script.Listen()
		if err != nil {
			t.Fatal(err)
		}
		s.Addr = l.Addr().String()
		serve(t, l, s.serve)
	}
	s.URL = "ftp://" + s.Addr
	if script.TLS != nil {
		s.URL = "ftps://" + s.Addr
	}
	return s
}

// Next waits for the next session that Next has not given yet.
func (s *FTP) Next(t testing.TB) *Session {
	t.Helper()
	return Await(t, "an FTP session", s.queue)
}

// Sessions are all sessions so far.
func (s *FTP) Sessions() []*Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Session(nil), s.seen...)
}

// SetFile replaces a file for sessions to come, and what MDTM says.
func (s *FTP) SetFile(name string, img *Image, modified time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script.Files = map[string]*Image{name: img}
	s.script.Modified = modified
}

// Session is one control connection and its data connections.
type Session struct {
	// Closed is closed when the control connection is over.
	Closed <-chan struct{}
	// Stalled is closed when the data stalls.
	Stalled <-chan struct{}

	script  Script
	raw     net.Conn
	conn    net.Conn
	in      *bufio.Reader
	closed  func()
	stalled func()
	release chan struct{}
	once    sync.Once

	passive net.Listener
	rest    int64
	prot    bool

	mu       sync.Mutex
	commands []string
}

// Commands are the lines that the client sent, passwords included.
func (s *Session) Commands() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.commands...)
}

// Release lets a stalled transfer go on.
func (s *Session) Release() { s.once.Do(func() { close(s.release) }) }

func (s *FTP) serve(conn net.Conn) {
	s.mu.Lock()
	closed, stalled := make(chan struct{}), make(chan struct{})
	script := s.script
	if script.Then != nil && len(s.seen) > 0 {
		script = *script.Then
	}
	ss := &Session{Closed: closed, Stalled: stalled, script: script, raw: conn, release: make(chan struct{}),
		closed: sync.OnceFunc(func() { close(closed) }), stalled: sync.OnceFunc(func() { close(stalled) })}
	s.seen = append(s.seen, ss)
	s.mu.Unlock()
	select {
	case s.queue <- ss:
	default: // nobody asks for so many
	}
	defer ss.closed()
	if ss.script.Implicit {
		conn = tls.Server(conn, ss.script.TLS)
	}
	ss.over(conn)
	defer ss.closePassive()
	if ss.script.Fault == NoAnswer {
		ss.script.Banner = Silent
	}
	if ss.script.DripAt == "banner" {
		ss.drip()
		return
	}
	if !ss.say(or(ss.script.Banner, "220 ready")) {
		return
	}
	for {
		line, err := ss.in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		ss.mu.Lock()
		ss.commands = append(ss.commands, line)
		ss.mu.Unlock()
		verb, arg, _ := strings.Cut(line, " ")
		if !ss.command(strings.ToUpper(verb), arg) {
			return
		}
	}
}

// over speaks over conn from now on.
func (s *Session) over(conn net.Conn) { s.conn, s.in = conn, bufio.NewReader(conn) }

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// say sends a reply; it is false if the session ends with that.
func (s *Session) say(reply string) bool {
	if reply == Silent {
		return true
	}
	if reply == Cut {
		fmt.Fprint(s.conn, "2")
		return false
	}
	_, err := fmt.Fprintf(s.conn, "%s\r\n", reply)
	return err == nil && !strings.HasPrefix(reply, "421")
}

// drip says little for ever, until the client goes.
func (s *Session) drip() {
	gone := make(chan struct{})
	in := s.in
	go func() {
		defer close(gone)
		for {
			if _, err := in.ReadByte(); err != nil {
				s.closed()
				return
			}
		}
	}()
	for s.wait() {
		fmt.Fprint(s.conn, "2")
	}
	<-gone
}

func (s *Session) command(verb, arg string) bool {
	if verb == s.script.DripAt {
		s.drip()
		return false
	}
	if verb == s.script.Flood {
		fmt.Fprintf(s.conn, "230-\r\n")
		line := " " + strings.Repeat("x", 1000) + "\r\n"
		for range 300_000 {
			if _, err := fmt.Fprint(s.conn, line); err != nil {
				return false
			}
		}
		return false
	}
	reply, given := s.script.Reply[verb]
	switch verb {
	case "EPSV", "PASV":
		return s.say(s.listen(verb, reply))
	case "REST":
		if !given {
			_, _ = fmt.Sscan(arg, &s.rest)
		}
	case "RETR":
		if !given || strings.HasPrefix(reply, "1") {
			return s.retrieve(arg, reply)
		}
	case "PROT":
		s.prot = !given && arg == "P"
	case "AUTH":
		if !given && s.script.TLS != nil {
			if !s.say("234 go ahead") {
				return false
			}
			s.over(tls.Server(s.conn, s.script.TLS))
			return true
		}
	}
	if !given {
		reply = s.usual(verb, arg)
	}
	return s.say(reply) && verb != "QUIT"
}

// usual is what a good server says.
func (s *Session) usual(verb, arg string) string {
	img := s.script.Files[arg]
	switch verb {
	case "USER":
		return "331 password please"
	case "PASS":
		return "230 logged in"
	case "FEAT":
		feat := "211-Features:\r\n SIZE\r\n REST STREAM\r\n"
		if !s.script.Modified.IsZero() {
			feat += " MDTM\r\n"
		}
		return feat + "211 End"
	case "TYPE", "PBSZ", "PROT", "NOOP":
		return "200 ok"
	case "REST":
		return "350 go on"
	case "SIZE":
		if img != nil {
			return fmt.Sprintf("213 %d", img.Size())
		}
		return "550 no such file"
	case "MDTM":
		if img != nil && !s.script.Modified.IsZero() {
			return "213 " + s.script.Modified.UTC().Format("20060102150405")
		}
		return "550 no such file"
	case "QUIT":
		return "221 bye"
	}
	return "502 not implemented"
}
