package source_test

import (
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

// cutListener ends its connections, or falls silent, when they have sent so many bytes.
type cutListener struct {
	net.Listener
	left  *atomic.Int64
	reset bool
	mute  bool
}

func (l cutListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &cutConn{c, l}, err
}

type cutConn struct {
	net.Conn
	l cutListener
}

func (c *cutConn) Write(p []byte) (int, error) {
	left := c.l.left.Add(-int64(len(p))) // below 0: so many of p may not go
	if left >= 0 {
		return c.Conn.Write(p)
	}
	n, _ := c.Conn.Write(p[:max(0, int64(len(p))+left)])
	switch {
	case c.l.mute:
		return len(p), nil
	case c.l.reset:
		_ = c.Conn.(*net.TCPConn).SetLinger(0)
	}
	c.Conn.Close()
	return n, net.ErrClosed
}

// TestFTPReplyCut: wherever in its replies the control connection ends, another attempt may help.
func TestFTPReplyCut(t *testing.T) {
	cut := func(t *testing.T, n int64, reset, mute bool, idle time.Duration) outcome {
		left := new(atomic.Int64)
		left.Store(n)
		s := fetchtest.NewFTP(t, fetchtest.Script{Files: map[string]*fetchtest.Image{"x.iso": image}, Modified: saturday,
			Listen: func() (net.Listener, error) {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				return cutListener{l, left, reset, mute}, err
			}})
		got, _ := attempt(t, quick(idle), source.Request{URL: parse(t, s.URL+"/x.iso")}, image, 0, source.Validator{})
		got.Bytes, got.Head = 0, false // the data may have begun
		return got
	}
	gone := failure(source.Temporary, "broken", broke)
	const talk = 200 // a little more than what the server says before it sends data
	for n := range int64(talk) {
		for _, reset := range []bool{false, true} {
			t.Run(fmt.Sprint("after ", n, " reset ", reset), func(t *testing.T) {
				got := cut(t, n, reset, false, fetchtest.Patience)
				if got.Code != "refused" { // as is the port of the data, which is closed with the rest, but known
					wantOutcome(t, gone, got)
				}
			})
		}
	}
	for n := int64(0); n < talk; n += 7 {
		t.Run(fmt.Sprint("silent after ", n), func(t *testing.T) {
			t.Parallel()
			wantOutcome(t, failure(source.Temporary, "stalled", silent), cut(t, n, false, true, 200*time.Millisecond))
		})
	}
}
