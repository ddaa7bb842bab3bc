package main

import (
	"net"
	"sync"
	"time"
)

// far makes a listener look far away and narrow: every answer begins one round trip after its request, the first one two,
// and no connection sends faster than each, nor all together faster than all, in bytes a second; 0: no limit. TCP's slow
// start is not part of it.
type far struct {
	net.Listener
	trip      time.Duration
	each, all float64

	shared bucket
}

func (f *far) Accept() (net.Conn, error) {
	c, err := f.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &farConn{Conn: c, far: f, ready: time.Now().Add(2 * f.trip)}, nil
}

type farConn struct {
	net.Conn
	far *far
	own bucket

	mu    sync.Mutex
	ready time.Time // when the next answer may begin
}

func (c *farConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.mu.Lock()
		if t := time.Now().Add(c.far.trip); t.After(c.ready) {
			c.ready = t
		}
		c.mu.Unlock()
	}
	return n, err
}

func (c *farConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	ready := c.ready
	c.mu.Unlock()
	time.Sleep(time.Until(ready))
	c.own.take(len(p), c.far.each, ready)
	c.far.shared.take(len(p), c.far.all, ready)
	return c.Conn.Write(p)
}

// bucket spaces out what is sent.
type bucket struct {
	mu   sync.Mutex
	next time.Time
}

// take sleeps until n more bytes of an answer that began at start are due at rate. A sleep that was too long is made good,
// one before the answer is not.
func (b *bucket) take(n int, rate float64, start time.Time) {
	if rate == 0 {
		return
	}
	b.mu.Lock()
	if b.next.Before(start) {
		b.next = start
	}
	b.next = b.next.Add(time.Duration(float64(n) / rate * float64(time.Second)))
	due := b.next
	b.mu.Unlock()
	time.Sleep(time.Until(due))
}
