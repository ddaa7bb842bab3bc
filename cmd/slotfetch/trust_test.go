package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestParseFingerprint(t *testing.T) {
	want := "SHA256:" + strings.TrimSuffix(strings.Repeat("AB:", 32), ":")
	plain := strings.Repeat("ab", 32)
	for _, s := range []string{plain, strings.ToUpper(plain), want, strings.TrimPrefix(want, "SHA256:"), "sha256:" + plain, "sha256 Fingerprint=" + want[7:], " " + want + "\n"} {
		if got, err := parseFingerprint(s); err != nil || got != want {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "SHA256:", plain[:62], plain + "ab", strings.Repeat("xy", 32)} {
		if got, err := parseFingerprint(s); err == nil {
			t.Errorf("%q was taken as %q", s, got)
		}
	}
}

func TestFirstUseWithoutTerminal(t *testing.T) {
	home(t)
	b := newFakeBox(t)
	r := invoke(t, testPassword, "login", "-H", b.address(), "--user", testUser)
	r.want(t, exitNetwork, b.fingerprint(), "slotfetch trust "+b.address()+" --pin SHA256:")
	if n := len(b.seen()); n != 0 {
		t.Errorf("%d requests were sent to a box that is not trusted", n)
	}
	if _, err := os.Stat(testJar(t, b.address()).path); err == nil {
		t.Error("a login was stored")
	}
}

func TestTrustOnFirstUse(t *testing.T) {
	dir := home(t)
	b := newFakeBox(t)
	invoke(t, testPassword, "login", "-H", b.address(), "--user", testUser, "--trust-on-first-use").want(t, exitOK, b.fingerprint())
	invoke(t, "", "ls", "-H", b.address()).want(t, exitOK)
	info, err := os.Stat(filepath.Join(dir, "state", "slotfetch", "known_hosts.toml"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	if r := invoke(t, "", "trust", "--list", "-o", "id").want(t, exitOK); r.stdout != b.address()+"\n" {
		t.Errorf("list: %q", r.stdout)
	}
	if r := invoke(t, "", "trust", b.address()).want(t, exitOK); !strings.Contains(r.stdout, "is pinned") {
		t.Errorf("trust: %q", r.stdout)
	}
}

func TestPinChanged(t *testing.T) {
	b := withLogin(t)
	wrong := "SHA256:" + strings.TrimSuffix(strings.Repeat("AA:", 32), ":")
	invoke(t, "", "trust", "--pin", wrong).want(t, exitOK)
	before := len(b.seen())
	for _, args := range [][]string{{"ls"}, {"login", "--user", testUser, "--trust-on-first-use"}, {"trust"}} {
		invoke(t, testPassword, args...).want(t, exitNetwork, "HAS CHANGED", wrong, b.fingerprint(), "slotfetch trust --forget "+b.address())
	}
	if len(b.seen()) != before {
		t.Error("a request was sent to a box whose certificate has changed")
	}
	invoke(t, "", "trust", "--forget", b.address()).want(t, exitOK)
	invoke(t, "", "trust", "--forget", b.address()).want(t, exitNotFound)
	invoke(t, "", "ls").want(t, exitNetwork, "not trusted yet")
	// A pin that is given anew replaces the old one.
	invoke(t, "", "trust", "--pin", wrong).want(t, exitOK)
	invoke(t, testPassword, "login", "--user", testUser, "--pin", b.fingerprint()).want(t, exitOK)
	invoke(t, "", "ls").want(t, exitOK)
}

func TestPinGivenIsWrong(t *testing.T) {
	home(t)
	b := newFakeBox(t)
	invoke(t, testPassword, "login", "-H", b.address(), "--user", testUser, "--pin", strings.Repeat("aa", 32)).want(t, exitNetwork, "--pin", b.fingerprint())
	invoke(t, testPassword, "login", "-H", b.address(), "--user", testUser, "--pin", "aa").want(t, exitUsage)
	if r := invoke(t, "", "trust", "--list", "-o", "id").want(t, exitOK); r.stdout != "" {
		t.Errorf("pinned: %q", r.stdout)
	}
}

func TestCACertAndInsecure(t *testing.T) {
	home(t)
	b, other := newFakeBox(t), filepath.Join(t.TempDir(), "none.pem")
	if err := os.WriteFile(other, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	login := []string{"login", "-H", b.address(), "--user", testUser}
	invoke(t, testPassword, append(login, "--cacert", b.caFile())...).want(t, exitOK)
	invoke(t, "", "ls", "-H", b.address(), "--cacert", b.caFile()).want(t, exitOK)
	invoke(t, "", "ls", "-H", b.address(), "--cacert", other).want(t, exitUsage, "no PEM certificate")
	invoke(t, "", "ls", "-H", b.address()).want(t, exitNetwork)
	invoke(t, "", "ls", "-H", b.address(), "--insecure", "-q").want(t, exitOK, "WARNING")
	invoke(t, "", "ls", "-H", b.address(), "--insecure", "--cacert", other).want(t, exitUsage)
}

func TestDamagedPinsAreNoFirstContact(t *testing.T) {
	b := withLogin(t)
	path, err := pinsFile()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("[pins\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	invoke(t, testPassword, "login", "--user", testUser, "--trust-on-first-use", "-H", b.address()).want(t, exitNetwork, path)
	if err := os.Chmod(path, 0o622); err != nil {
		t.Fatal(err)
	}
	invoke(t, "", "ls").want(t, exitAuth, "chmod 600")
}

func TestPinsByManyRuns(t *testing.T) {
	home(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := changePins(func(all map[string]pin) { all[fmt.Sprintf("lab%d:443", i)] = pin{SHA256: "x"} }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	p, err := loadPins()
	if err != nil || len(p.Pins) != 20 {
		t.Errorf("%d pins, %v", len(p.Pins), err)
	}
}
