package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func testJar(t *testing.T, address string) jar {
	t.Helper()
	b, err := parseAddress(address)
	if err != nil {
		t.Fatal(err)
	}
	j, err := jarFor(b)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestJarPath(t *testing.T) {
	dir := home(t)
	for address, want := range map[string]string{
		"Box.example.com":   "box.example.com.txt",
		"10.0.0.5:8443":     "10.0.0.5_8443.txt",
		"https://lab1:0443": "lab1.txt",
		"[fe80::1]:8443":    "fe80::1_8443.txt",
	} {
		if got := testJar(t, address).path; got != filepath.Join(dir, "state", "slotfetch", "cookies", want) {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}

func TestJarRoundTrip(t *testing.T) {
	home(t)
	now := time.Date(2026, 5, 4, 8, 0, 0, 0, time.UTC)
	j := testJar(t, "10.0.0.5:8443")
	if s, err := j.load(now); err != nil || s.token != "" {
		t.Fatalf("a missing jar gave %v, %v", s, err)
	}
	foreign := "other.example.com\tFALSE\t/\tTRUE\t0\tcolour\tred"
	if err := os.MkdirAll(filepath.Dir(j.path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(j.path, []byte("# comment\n"+foreign+"\n#HttpOnly_10.0.0.5\tFALSE\t/\tTRUE\t0\tsession_id\told\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := j.save(session{token: testToken, expires: now.Add(12 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	want := "# Netscape HTTP Cookie File\n# Written by slotfetch; share it with: curl -b FILE\n\n" + foreign +
		"\n#HttpOnly_10.0.0.5\tFALSE\t/\tTRUE\t1777924800\tsession_id\t" + testToken + "\n"
	if d := cmp.Diff(want, string(data)); d != "" {
		t.Error(d)
	}
	if info, err := os.Stat(j.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	s, err := j.load(now)
	if err != nil || s.token != testToken || !s.expires.Equal(now.Add(12*time.Hour)) {
		t.Errorf("loaded %v, %v", s, err)
	}
	if s, err := j.load(now.Add(12 * time.Hour)); err != nil || s.token != "" {
		t.Errorf("an expired login gave %v, %v", s, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(j.path), ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestJarRefusesOpenFile(t *testing.T) {
	b := withLogin(t)
	j := testJar(t, b.address())
	for _, mode := range []os.FileMode{0o640, 0o604} {
		if err := os.Chmod(j.path, mode); err != nil {
			t.Fatal(err)
		}
		invoke(t, "", "ls").want(t, exitAuth, "other users can get at it", "chmod 600 "+j.path)
	}
	if err := os.Chmod(j.path, 0o600); err != nil {
		t.Fatal(err)
	}
	invoke(t, "", "ls").want(t, exitOK)
}

func TestJarLines(t *testing.T) {
	home(t)
	j := testJar(t, "lab1")
	for _, tt := range []struct {
		name, line, want string
	}{
		{"ours", "#HttpOnly_lab1\tFALSE\t/\tTRUE\t0\tsession_id\tabc", "abc"},
		{"without HttpOnly", "lab1\tFALSE\t/\tTRUE\t0\tsession_id\tabc", "abc"},
		{"dot and upper case", ".LAB1\tTRUE\t/\tTRUE\t0\tsession_id\tabc", "abc"},
		{"comment", "# lab1\tFALSE\t/\tTRUE\t0\tsession_id\tabc", ""},
		{"other host", "lab2\tFALSE\t/\tTRUE\t0\tsession_id\tabc", ""},
		{"other cookie", "lab1\tFALSE\t/\tTRUE\t0\tsession\tabc", ""},
		{"bad expiry", "lab1\tFALSE\t/\tTRUE\tsoon\tsession_id\tabc", ""},
		{"header injection", "lab1\tFALSE\t/\tTRUE\t0\tsession_id\ta; b", ""},
		{"too short", "lab1\tFALSE\t/", ""},
	} {
		if s, _ := j.parseLine(tt.line); s.token != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, s.token, tt.want)
		}
	}
}

func FuzzJarLine(f *testing.F) {
	f.Add("#HttpOnly_lab1\tFALSE\t/\tTRUE\t0\tsession_id\tabc")
	j := jar{box: box{host: "lab1", port: "443"}}
	f.Fuzz(func(t *testing.T, line string) {
		if s, ok := j.parseLine(line); ok && !validToken(s.token) {
			t.Fatalf("%q gave the token %q", line, s.token)
		}
	})
}

// TestJarWithCurl proves that the jar is one for curl, both ways.
func TestJarWithCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	b := withLogin(t)
	b.add(testKey, finished())
	j := testJar(t, b.address())
	call := func(ctx context.Context, args ...string) string {
		t.Helper()
		args = append([]string{"-sS", "-k"}, args...)
		out, err := exec.CommandContext(ctx, curl, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("curl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	url := "https://" + b.address()
	if got := call(t.Context(), "-b", j.path, url+pathFetches); !strings.Contains(got, testKey) {
		t.Errorf("curl -b: %s", got)
	}
	if got := call(t.Context(), url+pathFetches); !strings.Contains(got, "Unauthenticated") {
		t.Errorf("without the jar: %s", got)
	}

	// The other way: curl logs in, slotfetch goes on.
	if err := j.remove(); err != nil {
		t.Fatal(err)
	}
	invoke(t, "", "ls").want(t, exitAuth, "Log in with: slotfetch login -H "+b.address())
	call(t.Context(), "-u", testUser+":"+testPassword, "-c", j.path, url+pathLogin)
	if err := os.Chmod(j.path, 0o600); err != nil {
		t.Fatal(err)
	}
	invoke(t, "", "ls").want(t, exitOK)
}
