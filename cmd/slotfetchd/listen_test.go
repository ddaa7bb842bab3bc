package main

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"slotfetch/fetch/fetchtest"
)

// A panic outside of the handlers ends one connection, and is heard of; a stranger's handshake is not.
func TestPanicOfAConnection(t *testing.T) {
	t.Parallel()
	lines := make(chan string, 10)
	d := &daemon{cfg: defaults(), log: slog.New(slog.NewTextHandler(lineWriter(lines), nil)), cert: &certificate{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.add(l)
	s := d.servers[0]
	s.Handler = http.NotFoundHandler()
	s.TLSConfig = &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if h.ServerName == "panic.test" {
			panic("no certificate")
		}
		return nil, errors.New("no certificate")
	}}
	served := make(chan error, 1)
	go func() { served <- s.ServeTLS(d.listeners[0], "", "") }()
	for _, name := range []string{"other.test", "panic.test"} {
		if c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: name}); err == nil {
			c.Close()
			t.Errorf("%s: a handshake without a certificate", name)
		}
	}
	if line := fetchtest.Await(t, "the log", lines); !strings.Contains(line, "trouble with a connection") || !strings.Contains(line, "panic serving") {
		t.Errorf("logged: %s", line)
	}
	s.Close()
	fetchtest.Await(t, "the server", served)
	if len(lines) > 0 {
		t.Errorf("logged: %s", <-lines)
	}
}

// lineWriter sends what is written.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}

// The local socket lets nobody in for an instant, and making it leaves alone what others make meanwhile.
func TestLocalSocketMode(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	file, err := os.Create(filepath.Join(dir, "like this"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	like, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if info, err := os.Lstat(path); err == nil && info.Mode().Perm()&0o007 != 0 {
				t.Errorf("the socket has mode %o for an instant", info.Mode().Perm())
				return
			}
			name := filepath.Join(dir, strconv.Itoa(i))
			if err := os.WriteFile(name, nil, 0o666); err != nil {
				t.Error(err)
				return
			}
			info, err := os.Stat(name)
			if err != nil {
				t.Error(err)
				return
			}
			if info.Mode() != like.Mode() {
				t.Errorf("a file made meanwhile has mode %v, want %v", info.Mode(), like.Mode())
				return
			}
			os.Remove(name)
		}
	}()
	for range 2000 {
		l, err := listenLocal(path)
		if err != nil {
			t.Error(err)
			break
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm() != 0o660 {
			t.Errorf("the socket has mode %v", info.Mode())
		}
		l.Close()
	}
	close(stop)
	<-done
}
