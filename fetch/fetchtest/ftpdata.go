package fetchtest

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

func (s *Session) closePassive() {
	if s.passive != nil {
		s.passive.Close()
		s.passive = nil
	}
}

// listen opens a port for the data connection and gives the answer that names it.
func (s *Session) listen(verb, reply string) string {
	s.closePassive()
	host, _, _ := net.SplitHostPort(s.raw.LocalAddr().String())
	open := s.script.Listen
	if open == nil {
		open = func() (net.Listener, error) { return net.Listen("tcp", net.JoinHostPort(host, "0")) }
	}
	l, err := open()
	if err != nil {
		return "425 no port"
	}
	s.passive = l
	port := l.Addr().(*net.TCPAddr).Port
	if reply == "" && verb == "EPSV" {
		reply = "229 ok (|||{port}|)"
	} else if reply == "" {
		reply = "227 ok (" + strings.ReplaceAll(host, ".", ",") + ",{p1},{p2})"
	}
	return strings.NewReplacer("{port}", strconv.Itoa(port), "{p1}", strconv.Itoa(port/256), "{p2}", strconv.Itoa(port%256)).Replace(reply)
}

// retrieve sends a file; it is false if the session ends with that.
func (s *Session) retrieve(name, reply string) bool {
	img := s.script.Files[name]
	if img == nil {
		return s.say("550 no such file")
	}
	if s.passive == nil {
		return s.say("425 no data connection")
	}
	defer s.closePassive()
	if !s.say(or(reply, "150 here it comes")) {
		return false
	}
	// The client says nothing during a transfer: what can be read now is the end of the connection.
	idle := make(chan struct{})
	in := s.in
	go func() {
		defer close(idle)
		if _, err := in.Peek(1); err != nil {
			s.closed()
		}
	}()
	defer func() { <-idle }()
	if l, ok := s.passive.(interface{ SetDeadline(time.Time) error }); ok {
		_ = l.SetDeadline(time.Now().Add(Patience))
	}
	data, err := s.passive.Accept()
	if err != nil {
		return s.say("425 no data connection")
	}
	defer data.Close()
	// When the session is over, so is the transfer.
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		select {
		case <-s.Closed:
			if !s.script.HangUp {
				data.Close()
			}
		case <-finished:
		}
	}()
	if refused := s.transfer(data, img); refused != "" {
		return s.say(refused)
	}
	if s.script.HangUp {
		return false
	}
	if s.script.DripAt == "done" {
		for s.wait() {
			fmt.Fprint(s.conn, "2")
		}
		return false
	}
	return s.say(or(s.script.Done, "226 done"))
}

// transfer sends the data; it gives a reply if it refused to.
func (s *Session) transfer(data net.Conn, img *Image) (refused string) {
	raw := data
	if s.prot {
		c := tls.Server(data, s.script.TLS)
		if err := c.Handshake(); err != nil {
			return "425 TLS failed"
		}
		if s.script.Reuse && !c.ConnectionState().DidResume {
			raw.Close() // no goodbye: this is how the real ones do it
			return "522 SSL connection failed: session reuse required"
		}
		data = c
	}
	from := min(s.rest, img.Size())
	if s.script.NoRest {
		from = 0
	}
	s.rest = 0
	r := io.MultiReader(io.NewSectionReader(img, from, img.Size()-from), strings.NewReader(strings.Repeat("x", s.script.Surplus)))
	if s.script.Fault != None || s.script.HangUp {
		_, _ = io.CopyN(data, r, s.script.After)
	}
	if s.script.HangUp {
		s.raw.Close()
	}
	switch s.script.Fault {
	case FIN:
		r = strings.NewReader("")
	case RST:
		cut(raw, true)
		return ""
	case Stall:
		s.stalled()
		select {
		case <-s.release:
		case <-s.Closed:
			return ""
		}
	case Drip:
		for s.wait() {
			if _, err := io.CopyN(data, r, 1); err != nil {
				break
			}
		}
	}
	_, _ = io.Copy(data, r)
	if c, ok := data.(*tls.Conn); ok {
		_ = c.CloseWrite()
	}
	raw.Close()
	return ""
}

func (s *Session) wait() bool {
	timer := time.NewTimer(s.script.Pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.Closed:
		return false
	}
}

// PortPair writes a port as PASV does: its two bytes.
func PortPair(port int) string { return fmt.Sprintf("%d,%d", port/256, port%256) }
