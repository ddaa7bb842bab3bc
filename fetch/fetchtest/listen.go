package fetchtest

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// Listen calls handle for each connection to addr (empty: 127.0.0.1 and any free port), each in a goroutine of its
// own, and gives the address. The connection is closed when handle returns. When the test is over all connections
// are closed, and each handle has to come back.
func Listen(t testing.TB, addr string, handle func(net.Conn)) string {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, handle)
	return l.Addr().String()
}

func serve(t testing.TB, l net.Listener, handle func(net.Conn)) {
	var (
		group sync.WaitGroup

		mu    sync.Mutex
		conns = map[net.Conn]bool{}
		over  bool
	)
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			if over {
				c.Close()
			}
			mu.Unlock()
			group.Go(func() {
				defer func() {
					c.Close()
					mu.Lock()
					delete(conns, c)
					mu.Unlock()
				}()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		over = true
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		group.Wait()
	})
}

// ImplicitAddr is port 990 of a loopback address where it is free: ftps means implicit TLS on that port only. The
// test is skipped where ports below 1024 are for root and we are not.
func ImplicitAddr(t testing.TB) string {
	t.Helper()
	for range 50 {
		host := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
		l, err := net.Listen("tcp", host+":990")
		if err == nil {
			l.Close()
			return host + ":990"
		}
		if errors.Is(err, fs.ErrPermission) {
			t.Skip("implicit TLS needs port 990, which only root may open here")
		}
	}
	t.Fatal("found no loopback address with a free port 990")
	return ""
}
