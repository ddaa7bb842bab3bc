package fetchtest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Real is a server that is somebody else's program.
type Real struct {
	// Addr is host:port, URL the same with its scheme and no slash at the end.
	Addr, URL string
	// Dir is the directory it serves.
	Dir string
	// Ended gives a value for each connection that the server has seen end; nil if it cannot tell.
	Ended <-chan struct{}
}

// RealConfig says how to run a real server.
type RealConfig struct {
	// CA issues the certificate. Nil: plain FTP.
	CA *CA
	// Implicit is TLS from the first byte.
	Implicit bool
}

func (c RealConfig) addr(t testing.TB) string {
	if c.Implicit {
		return ImplicitAddr(t)
	}
	return "127.0.0.1:0"
}

func (c RealConfig) url(addr string) string {
	if c.CA != nil {
		return "ftps://" + addr
	}
	return "ftp://" + addr
}

// program finds what may lie where only root's PATH leads, or skips the test.
func program(t testing.TB, name string) string {
	t.Helper()
	for _, candidate := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// publicDir is a directory that a server which runs as another user can read.
func publicDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} { // the parent is the test's own, too
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// inetd listens and runs one process for each connection, with the socket as its standard input and output. So
// there is no start-up to wait for, any port will do, and the end of a connection is the end of a process.
func inetd(t testing.TB, addr, path string, args ...string) (string, <-chan struct{}) {
	var (
		ended = make(chan struct{}, 1024)

		mu   sync.Mutex
		pids = map[int]bool{}
		over bool
	)
	run := func(c net.Conn) error {
		f, err := c.(*net.TCPConn).File()
		if err != nil {
			return err
		}
		cmd := exec.Command(path, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, f
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		mu.Lock()
		if over {
			mu.Unlock()
			return f.Close()
		}
		if err = cmd.Start(); err == nil {
			pids[cmd.Process.Pid] = true
		}
		mu.Unlock()
		f.Close()
		c.Close() // the process has it
		if err != nil {
			return err
		}
		_ = cmd.Wait() // it may well be unhappy with its client
		mu.Lock()
		delete(pids, cmd.Process.Pid)
		mu.Unlock()
		ended <- struct{}{}
		return nil
	}
	addr = Listen(t, addr, func(c net.Conn) {
		if err := run(c); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
		for pid := range pids {
			_ = syscall.Kill(-pid, syscall.SIGKILL)
		}
	})
	return addr, ended
}

// StartVsftpd runs vsftpd, which needs root, for anonymous users. It skips the test where that cannot be.
func StartVsftpd(t testing.TB, c RealConfig) *Real {
	t.Helper()
	path := program(t, "vsftpd")
	if os.Geteuid() != 0 {
		t.Skip("vsftpd needs root")
	}
	addr := c.addr(t)
	dir, empty, conf := publicDir(t), publicDir(t), filepath.Join(t.TempDir(), "vsftpd.conf")
	args := []string{"-olisten=NO", "-obackground=NO", "-oanonymous_enable=YES", "-olocal_enable=NO",
		"-oanon_root=" + dir, "-osecure_chroot_dir=" + empty, "-oxferlog_enable=NO",
		"-oftp_username=daemon", // nobody has no home, which vsftpd insists on
		// Sandboxes that containers do not let it build.
		"-oseccomp_sandbox=NO", "-oisolate_network=NO", "-oisolate=NO"}
	if c.CA != nil {
		host, _, _ := net.SplitHostPort(addr)
		pem := c.CA.WriteFile(t, Good, host)
		args = append(args, "-ossl_enable=YES", "-oallow_anon_ssl=YES", "-oforce_anon_data_ssl=YES", "-oforce_anon_logins_ssl=YES",
			"-orequire_ssl_reuse=YES", "-ossl_ciphers=HIGH", "-orsa_cert_file="+pem, "-orsa_private_key_file="+pem)
	}
	if c.Implicit {
		args = append(args, "-oimplicit_ssl=YES")
	}
	// All settings are arguments, but it wants a file.
	if err := os.WriteFile(conf, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	addr, ended := inetd(t, addr, path, append(args, conf)...)
	return &Real{Addr: addr, URL: c.url(addr), Dir: dir, Ended: ended}
}

// StartPureFTPd runs pure-ftpd, which needs root, for one user, whose name and password are in the URL. It skips the
// test where that cannot be.
func StartPureFTPd(t testing.TB, c RealConfig) *Real {
	t.Helper()
	path, adduser := program(t, "pure-ftpd"), program(t, "pure-pw")
	if os.Geteuid() != 0 {
		t.Skip("pure-ftpd needs root")
	}
	if c.Implicit {
		t.Skip("pure-ftpd has implicit TLS only as a stand-alone server")
	}
	addr := c.addr(t)
	dir, private := publicDir(t), t.TempDir()
	users, db := filepath.Join(private, "passwd"), filepath.Join(private, "db")
	// An unprivileged user that every Debian has; the smallest user id is lowered to fit.
	add := exec.Command(adduser, "useradd", "user", "-u", "daemon", "-d", dir, "-f", users, "-m", "-F", db)
	add.Stdin = strings.NewReader("password\npassword\n")
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	args := []string{"--noanonymous", "--dontresolve", "--minuid=1", "--login=puredb:" + db}
	if c.CA != nil {
		host, _, _ := net.SplitHostPort(addr)
		args = append(args, "--tls=3", "--certfile="+c.CA.WriteFile(t, Good, host))
	}
	addr, ended := inetd(t, addr, path, args...)
	return &Real{Addr: addr, URL: c.url("user:password@" + addr), Dir: dir, Ended: ended}
}
