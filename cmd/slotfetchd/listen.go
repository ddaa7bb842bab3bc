package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"slotfetch/api"
	"slotfetch/auth"
)

// listen opens the TLS port and the unix socket, each unless systemd hands it over (slotfetchd.socket).
func (d *daemon) listen() error {
	tcp, local, err := inherited()
	if err != nil {
		return err
	}
	if tcp == nil {
		if tcp, err = net.Listen("tcp", d.cfg.API.Listen); err != nil {
			return fmt.Errorf("cannot listen: %w", err)
		}
	}
	d.add(tcp)
	if local == nil && d.cfg.Local.Socket != "" {
		if local, err = listenLocal(d.cfg.Local.Socket); err != nil {
			return err
		}
	}
	if local != nil {
		d.add(local)
		return private(local)
	}
	return nil
}

// inherited are the sockets that systemd opened for us, told apart by their kind; nil where there is none.
func inherited() (tcp, local net.Listener, err error) {
	all, err := activation.Listeners() // once only: it takes the environment away
	if err != nil {
		return nil, nil, fmt.Errorf("cannot take sockets from systemd: %w", err)
	}
	for _, l := range all {
		switch {
		case l == nil:
			return nil, nil, errors.New("cannot take sockets from systemd: one is not a stream socket that listens")
		case l.Addr().Network() == "unix" && local == nil:
			local = l
		case l.Addr().Network() == "tcp" && tcp == nil:
			tcp = l
		default:
			return nil, nil, fmt.Errorf("cannot take sockets from systemd: %s is one too many, one TCP and one unix socket will do", l.Addr())
		}
	}
	return tcp, local, nil
}

// socketMode lets owner and group connect.
const socketMode = 0o660

// listenLocal replaces a socket that a dead agent left.
func listenLocal(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("cannot replace local socket: %w", err)
		}
	}
	// bind(2) gives the file the mode of the socket, less the umask, which belongs to the whole process and is left alone.
	// So nobody gets in before the mode is what it should be.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), socketMode) }); e != nil {
			return e
		}
		return err
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on local socket: %w", err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		l.Close()
		return nil, fmt.Errorf("cannot let the group into the local socket: %w", err)
	}
	return l, nil
}

// private makes sure that not everybody may connect to the local socket. Its file mode is all the login there is:
// owner and group, and root, get in.
func private(l net.Listener) error {
	path := l.Addr().String()
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("cannot look at local socket: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return fmt.Errorf("refusing to serve the local socket %s: its mode %#o lets everybody in, it must be 0660 or stricter (SocketMode=)",
			path, info.Mode().Perm())
	}
	return nil
}

// add makes the server of a listener: TLS on TCP, callers known by the kernel on the unix socket.
func (d *daemon) add(l net.Listener) {
	s := &http.Server{
		Handler:           d.api,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second, // JSON bodies only
		WriteTimeout:      90 * time.Second, // a DELETE waits for 30 s
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 32}, // a connection counts as one
		ErrorLog:          log.New(serverLog{d.log}, "", 0),
	}
	if l.Addr().Network() == "unix" {
		s.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return auth.WithLocal(ctx, peer(c)) }
	} else {
		s.TLSConfig = d.cert.config()
	}
	d.listeners, d.servers = append(d.listeners, api.Limit(l, d.cfg.API.Connections, d.cfg.API.ConnectionsPerAddress)), append(d.servers, s)
}

// serverLog takes what net/http has to say of connections. Our own faults are news: a panic outside of the handlers, which
// ends that connection, and sockets that cannot be accepted. Strangers' handshakes are none.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	if strings.HasPrefix(text, "http: panic serving ") || strings.HasPrefix(text, "http: Accept error: ") {
		l.log.Error("trouble with a connection", "err", text)
	}
	return len(line), nil
}

// peer is the user at the other end of a unix socket, for the audit. In a user namespace (PrivateUsers=) all but
// root and the agent itself are nobody.
func peer(c net.Conn) string {
	if wrapped, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = wrapped.NetConn()
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return "unknown"
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return "unknown"
	}
	var cred *unix.Ucred
	if raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return "unknown"
	}
	id := strconv.FormatUint(uint64(cred.Uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "uid " + id
}
