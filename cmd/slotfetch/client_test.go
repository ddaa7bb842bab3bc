package main

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestUnreachable is about the reason and the remedy that an admin reads.
func TestUnreachable(t *testing.T) {
	dir := home(t)
	_, timeout := (&net.Dialer{Timeout: time.Nanosecond}).Dial("tcp", "127.0.0.1:9")
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	nobody := &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "lba1", IsNotFound: true}}
	config := filepath.Join(dir, "config/slotfetch/config.toml")
	explain := func(box string, err error, why, hint string) {
		t.Helper()
		b, e := parseAddress(box)
		if e != nil {
			t.Fatal(e)
		}
		gotWhy, gotHint := (&client{box: b}).explain(err)
		if gotWhy != why || gotHint != hint {
			t.Errorf("%s, %v:\n%s\n%s\nwant:\n%s\n%s", box, err, gotWhy, gotHint, why, hint)
		}
	}
	const port = "No port is given, so it was 443; slotfetchd listens on 8443 where nobody has changed that."
	explain("lab1:8443", timeout, "no connection within 10s", "")
	explain("lab1", timeout, "no connection within 10s", port)
	explain("lab1", refused, "connection refused", port)
	explain("lab1:443", refused, "connection refused", "")
	explain("lab1:8443", io.EOF, "it closed the connection without an answer", "")
	explain("unix:///run/s", refused, "connection refused", "Does slotfetchd run? Look with: systemctl status slotfetchd")
	explain("lba1", nobody, "cannot find the host lba1: no such host", "No box is named so in "+config+" either.")
	if err := os.MkdirAll(filepath.Dir(config), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte("[boxes.lab2]\naddress = \"10.0.0.6\"\n[boxes.lab1]\naddress = \"lba1\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	explain("lba1", nobody, "cannot find the host lba1: no such host", "The boxes in "+config+" are: lab1, lab2.")
}

// TestOtherServers is what answers at a wrong port.
func TestOtherServers(t *testing.T) {
	home(t)
	for _, tt := range []struct{ says, want string }{
		{"220 mail.example.com ESMTP\r\n", "does not speak https"},
		{"", "closed the connection without an answer"},
	} {
		l := listen(t)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, tt.says)
				_, _ = io.CopyN(io.Discard, c, 5) // the record header, so that closing does not reset
				_ = c.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			}
		}()
		invoke(t, "", "ls", "-H", l.Addr().String()).want(t, exitNetwork, tt.want)
	}
	b := withLogin(t)
	b.mu.Lock()
	b.intercept = func(w http.ResponseWriter, r *http.Request) bool { http.NotFound(w, r); return true }
	b.mu.Unlock()
	invoke(t, "", "ls").want(t, exitNetwork, "does not answer like a box", "404 Not Found")
	invoke(t, "", "show", testKey).want(t, exitNetwork, "does not answer like a box")
}

// TestHintsNameTheBox: what a hint says can be pasted, also when the box was given by a flag.
func TestHintsNameTheBox(t *testing.T) {
	b := withLogin(t)
	t.Setenv("SLOTFETCH_BOX", "")
	b.add(testKey, finished())
	flag := "-H=" + b.address()
	again := "slotfetch -H " + b.address() + " "
	invoke(t, "", "fetch", testURL, "--sha256", testDigest, "-d", flag).want(t, exitOK, again+"wait "+testKey)
	invoke(t, "", "cancel", testKey, flag).want(t, exitConflict, again+"prune "+testKey)
	invoke(t, "", "cancel", testKey, flag, "-o", "json").want(t, exitConflict, again+"prune "+testKey)
	invoke(t, "", "show", "zzzz", flag).want(t, exitUsage, again+"ls")
	invoke(t, "", "slots", "show", "9", flag).want(t, exitNotFound, "there is no slot 9", again+"slots\n")
}
