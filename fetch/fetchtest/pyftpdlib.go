package fetchtest

import (
	"bufio"
	_ "embed"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

//go:embed pyftpdlib.py
var pyftpdlibScript string

// StartPyftpdlib runs the server of Debian's python3-pyftpdlib for anonymous users, with python3-openssl for TLS. It
// skips the test where that cannot be.
func StartPyftpdlib(t testing.TB, c RealConfig) *Real {
	t.Helper()
	const python = "/usr/bin/python3" // Debian's packages belong to Debian's Python
	modules := "import pyftpdlib"
	if c.CA != nil {
		modules += ", OpenSSL"
	}
	if err := exec.Command(python, "-c", modules).Run(); err != nil {
		t.Skipf("Debian's python3 cannot %s", modules)
	}
	if c.Implicit {
		t.Skip("pyftpdlib has no implicit TLS")
	}
	dir, pem := publicDir(t), ""
	if c.CA != nil {
		host, _, _ := net.SplitHostPort(c.addr(t))
		pem = c.CA.WriteFile(t, Good, host)
	}
	cmd := exec.Command(python, "-u", "-c", pyftpdlibScript, dir, pem)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended, done := make(chan struct{}, 1024), make(chan struct{})
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatalf("pyftpdlib did not start: %v", cmd.Wait())
	}
	addr := lines.Text()
	go func() {
		defer close(done)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "ended") {
				ended <- struct{}{}
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
	})
	return &Real{Addr: addr, URL: c.url(addr), Dir: dir, Ended: ended}
}
