package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for _, tt := range []struct {
		in, url, hostPort string // url empty: refused
	}{
		{"lab1", "https://lab1", "lab1:443"},
		{"LAB1.example.com:8443", "https://lab1.example.com:8443", "lab1.example.com:8443"},
		{"10.0.0.5:443", "https://10.0.0.5", "10.0.0.5:443"},
		{"::1", "https://[::1]", "[::1]:443"},
		{"[::1]", "https://[::1]", "[::1]:443"},
		{"[::1]:8443", "https://[::1]:8443", "[::1]:8443"},
		{"https://lab1:8443/", "https://lab1:8443", "lab1:8443"},
		{"https://[::1]:8443", "https://[::1]:8443", "[::1]:8443"},
		{"", "", ""},
		{"http://lab1", "", ""},
		{"ftp://lab1", "", ""},
		{"https://u:p@lab1", "", ""},
		{"https://lab1/api", "", ""},
		{"https://lab1?x=1", "", ""},
		{"lab1:0", "", ""},
		{"lab1:65536", "", ""},
		{"lab1:https", "", ""},
		{"lab1:", "", ""},
		{":8443", "", ""},
		{"lab 1", "", ""},
		{"../etc/passwd", "", ""},
		{"unix://relative", "", ""},
	} {
		b, err := parseAddress(tt.in)
		if tt.url == "" {
			if err == nil || asFailure(err).code != exitUsage {
				t.Errorf("%q: %+v, %v", tt.in, b, err)
			}
			continue
		}
		if err != nil || b.baseURL() != tt.url || b.hostPort() != tt.hostPort {
			t.Errorf("%q: %q %q %v", tt.in, b.baseURL(), b.hostPort(), err)
		}
	}
}

func TestWhichBox(t *testing.T) {
	dir := home(t)
	write := func(text string) {
		path := filepath.Join(dir, "config", "slotfetch", "config.toml")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	curl := func(want string, args ...string) {
		t.Helper()
		r := invoke(t, "", append([]string{"ls", "--curl"}, args...)...).want(t, exitOK)
		if !strings.HasSuffix(r.stdout, " "+want+"/api/firmware/fetch\n") {
			t.Errorf("%s, want %s", r.stdout, want)
		}
	}
	if _, err := os.Stat(localSocket); err != nil {
		invoke(t, "", "ls").want(t, exitUsage, "no box is given", "--box")
	}
	write("default = \"lab1\"\n[boxes.lab1]\naddress = \"10.0.0.5:8443\"\nuser = \"admin\"\n[boxes.lab2]\naddress = \"10.0.0.6\"\n")
	curl("https://10.0.0.5:8443")
	t.Setenv("SLOTFETCH_BOX", "lab2")
	curl("https://10.0.0.6")
	curl("https://lab3", "-H", "lab3")
	r := invoke(t, "", "login", "--curl", "-H", "lab1").want(t, exitOK)
	if want := "-u admin -c " + filepath.Join(dir, "state/slotfetch/cookies/10.0.0.5_8443.txt"); !strings.Contains(r.stdout, want) {
		t.Errorf("login --curl: %s", r.stdout)
	}
	if r := invoke(t, "", "__complete", "-H", "").want(t, exitOK); r.stdout != "lab1\t10.0.0.5:8443\nlab2\t10.0.0.6\n:4\n" {
		t.Errorf("completion: %q", r.stdout)
	}
	write("default = \"lab1\"\nboxs = 1\n")
	invoke(t, "", "ls").want(t, exitUsage, "unknown key", "boxs = 1")
	write("default = 1\n")
	invoke(t, "", "ls").want(t, exitUsage, "cannot read")
	write("[boxes.lab2]\nuser = \"x\"\n")
	invoke(t, "", "ls").want(t, exitUsage, "has no address")
}
