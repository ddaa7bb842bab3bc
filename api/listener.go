package api

import (
	"net"
	"net/netip"
	"sync"
)

// Connection limits, unless somebody knows better: timeouts alone do not bound what half-open requests cost.
const (
	MaxConns        = 256
	MaxConnsAddress = 32
)

// Limit wraps l so that at most most connections are open, and at most each from one address, or IPv6 /64; one more is
// closed at once. Connections on a unix socket count only in the sum.
func Limit(l net.Listener, most, each int) net.Listener {
	return &limited{Listener: l, most: most, each: each, from: map[netip.Addr]int{}}
}

type limited struct {
	net.Listener
	most, each int

	mu   sync.Mutex
	all  int
	from map[netip.Addr]int
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var from netip.Addr
		if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
			from = host(a.Addr())
		}
		if l.take(from) {
			return &counted{Conn: c, release: func() { l.drop(from) }}, nil
		}
		c.Close()
	}
}

// host is what a counts as: an IPv6 host owns its whole /64.
func host(a netip.Addr) netip.Addr {
	if a = a.Unmap().WithZone(""); a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

func (l *limited) take(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= l.most || from.IsValid() && l.from[from] >= l.each {
		return false
	}
	l.all++
	if from.IsValid() {
		l.from[from]++
	}
	return true
}

func (l *limited) drop(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.from[from]--; l.from[from] <= 0 {
		delete(l.from, from)
	}
}

type counted struct {
	net.Conn
	once    sync.Once
	release func()
}

// NetConn gives the connection itself, as tls.Conn does.
func (c *counted) NetConn() net.Conn { return c.Conn }

func (c *counted) Close() error {
	c.once.Do(c.release)
	return c.Conn.Close()
}
