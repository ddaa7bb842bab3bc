package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// layers makes a vendor directory, a file and a drop-in, and gives sources that read them.
func layers(t *testing.T, vendor, file, drop string) sources {
	t.Helper()
	dir := t.TempDir()
	src := sources{vendor: filepath.Join(dir, "vendor"), file: filepath.Join(dir, "etc", "config.toml")}
	for name, text := range map[string]string{
		filepath.Join(src.vendor, "10-box.toml"): vendor,
		src.file:                                 file,
		filepath.Join(filepath.Dir(src.file), "conf.d", "50-site.toml"): drop,
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return src
}

func TestLayersWinInOrder(t *testing.T) {
	t.Parallel()
	text := func(count string) string { return "[slots]\ncount = " + count }
	src := layers(t, text("2")+"\nfirst = 7", text("3")+"\n[fetch]\nretry_max = '3s'", text("4"))
	src.env = []string{"HOME=/root", "SLOTFETCH_SLOTS__COUNT=5", "SLOTFETCH_FETCH__IDLE_TIMEOUT=7s", "SLOTFETCH_FETCH__FILE_ROOTS=['/a', '/b']",
		"SLOTFETCH_STATE_DIR=/srv/state", "SLOTFETCH_BOX=not a key of the agent"}
	src.set = []string{"slots.count=6", "api.listen=127.0.0.1:9443"}
	s, err := loadSettings(src)
	if err != nil {
		t.Fatal(err)
	}
	if s.Slots.Count != 6 || s.Slots.First != 7 || s.API.Listen != "127.0.0.1:9443" || time.Duration(s.Fetch.IdleTimeout) != 7*time.Second ||
		time.Duration(s.Fetch.RetryMax) != 3*time.Second || s.StateDir != "/srv/state" || s.Slots.Dir != "/srv/state/slots" ||
		strings.Join(s.Fetch.FileRoots, " ") != "/a /b" || s.Fetch.Workers != 1 {
		t.Errorf("got %+v", s.config)
	}
	for key, want := range map[string]string{"slots.count": "--set slots.count", "slots.first": "10-box.toml", "fetch.retry_max": "config.toml",
		"state_dir": "SLOTFETCH_STATE_DIR", "fetch.idle_timeout": "SLOTFETCH_FETCH__IDLE_TIMEOUT", "fetch.workers": "default"} {
		if got := s.origin[key]; !strings.HasSuffix(got, want) {
			t.Errorf("%s is from %s, want %s", key, got, want)
		}
	}
	for drop := range 3 { // without what wins, the next wins
		src.set = nil
		want := []int{5, 4, 3}[drop]
		if drop > 0 {
			src.env = nil
		}
		if drop > 1 {
			src.file = filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(src.file, []byte(text("3")), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if s, err := loadSettings(src); err != nil || s.Slots.Count != want {
			t.Errorf("count is %d, want %d: %v", s.Slots.Count, want, err)
		}
	}
}

func TestBadSettings(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		file     string
		env, set []string
		want     []string // all in the error
		not      string
	}{
		"unknown key in a file":     {file: "[slots]\ncuont = 3", want: []string{"config.toml", "line 2: slots.cuont: there is no such key"}},
		"two unknown keys":          {file: "[slots]\ncuont = 3\nfirst = 1\nfrist = 2", want: []string{"line 2: slots.cuont", "line 4: slots.frist"}},
		"unknown key by a password": {file: "[proxy]\nhttp = 'http://u:canary@p:3128'\nhtps = 'http://v:canary@p:3128'", want: []string{"config.toml", "line 3: proxy.htps"}, not: "canary"},
		"a password as a key":       {file: "[proxy]\n'http://u:canary@p:3128' = 1", want: []string{"config.toml", "line 2"}, not: "canary"},
		"a password of no type":     {file: "[proxy]\nhttp = ['http://u:canary@p:3128']", want: []string{"config.toml", "line 2: proxy.http: "}, not: "canary"},
		"a password without quotes": {file: "[proxy]\nhttp = http://u:canary@p:3128", want: []string{"config.toml", "line 2: "}, not: "canary"},
		"a password with one quote": {file: "[proxy]\nhttp = 'http://u:canary@p:3128\n", want: []string{"config.toml", "line 2: "}, not: "canary"},
		"a password before =":       {file: "[proxy]\nhttp://u:canary@p:3128 = 1\n", want: []string{"config.toml", "line 2: "}, not: "canary"},
		"bad value in a file":       {file: "[slots]\ncount = 'x'", want: []string{"config.toml", "line 2: slots.count: "}},
		"no TOML":                   {file: "count: 3", want: []string{"config.toml", "line 1: "}},
		"bad duration":              {file: "[fetch]\nidle_timeout = '-3s'", want: []string{"line 2: fetch.idle_timeout: ", "no duration above zero"}},
		"unknown variable":          {env: []string{"SLOTFETCH_SLOTS__CUONT=3"}, want: []string{"SLOTFETCH_SLOTS__CUONT", `"slots.cuont"`}},
		"bad value in a variable":   {env: []string{"SLOTFETCH_SLOTS__COUNT=three"}, want: []string{"SLOTFETCH_SLOTS__COUNT: "}, not: "line"},
		"unknown flag":              {set: []string{"slots.cuont=3"}, want: []string{"--set slots.cuont"}},
		"flag without a value":      {set: []string{"slots.count"}, want: []string{"section.key=value"}},
		"password in a flag":        {set: []string{"proxy.http=http://u:canary@p:3128"}, want: []string{"password"}, not: "canary"},
		"password in a variable":    {env: []string{"SLOTFETCH_PROXY__HTTPS=http://u:canary@p:3128"}, want: []string{"password"}, not: "canary"},
		"several bad values":        {file: "[slots]\ncount = 0\nfirst = -1", want: []string{"slots.count", "slots.first"}},
		"bad address":               {file: "[api]\nlisten = '8443'", want: []string{"api.listen", `"8443"`}},
		"bad proxy":                 {file: "[proxy]\nhttp = 'p:canary@x:1'", want: []string{"proxy.http"}, not: "canary"},
		"half a certificate":        {file: "[api]\ntls_cert = '/x'", want: []string{"tls_cert", "tls_key"}},
		"no prefix":                 {file: "[egress]\nallow = ['10.0.0.0/8', 'lab']", want: []string{"line 2: egress.allow: ", `"lab" is no address or prefix`}},
		"an address with a zone":    {file: "[egress]\nallow = ['fe80::1%eth0']", want: []string{"line 2: egress.allow: ", "is no address or prefix"}},
		"a prefix of both kinds":    {file: "[egress]\ndeny = ['::ffff:10.0.0.0/80']", want: []string{"egress.deny", "::ffff:10.0.0.0/80"}},
		"a relative path of a root": {file: "[fetch]\nfile_roots = ['x']", want: []string{"file_roots"}},
	} {
		t.Run(name, func(t *testing.T) {
			src := layers(t, "", tt.file, "")
			src.env, src.set = tt.env, tt.set
			s, err := loadSettings(src)
			if err == nil {
				err = s.check()
			}
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if tt.not != "" && strings.Contains(err.Error(), tt.not) {
				t.Errorf("error %q tells a secret", err)
			}
		})
	}
	t.Run("missing file", func(t *testing.T) {
		src := sources{file: filepath.Join(t.TempDir(), "none.toml")}
		if _, err := loadSettings(src); err != nil {
			t.Errorf("not asked for: %v", err)
		}
		src.asked = true
		if _, err := loadSettings(src); err == nil {
			t.Error("asked for: no error")
		}
	})
}

func TestEgressPrefixes(t *testing.T) {
	t.Parallel()
	s, err := loadSettings(layers(t, "", "[egress]\nallow = ['127.0.0.1', '10.0.0.0/8']\ndeny = ['fd00::5', '::ffff:10.0.0.5']", ""))
	if err == nil {
		err = s.check()
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.Egress.policy()); got != "{[127.0.0.1/32 10.0.0.0/8] [fd00::5/128 ::ffff:10.0.0.5/128]}" {
		t.Error(got)
	}
}

// What show prints is a configuration with the same meaning, but for secrets.
func TestShowSettings(t *testing.T) {
	t.Parallel()
	src := layers(t, "", "[proxy]\nhttp = 'http://user:canary@proxy:3128'\n[egress]\nallow = ['10.0.0.0/8']\n[info]\nnickname = \"it's # \\\"mine\\\"\"", "")
	s, err := loadSettings(src)
	if err != nil {
		t.Fatal(err)
	}
	for _, origin := range []bool{false, true} {
		text, err := s.show(origin)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, "canary") || strings.Contains(text, "user:") {
			t.Errorf("show tells the password:\n%s", text)
		}
		if strings.Contains(text, src.file) != origin {
			t.Errorf("origin %v:\n%s", origin, text)
		}
		again, err := loadSettings(layers(t, "", text, ""))
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		again.Proxy.HTTP = s.Proxy.HTTP
		if a, b := mustShow(t, again), mustShow(t, s); a != b {
			t.Errorf("read again it is\n%s\nnot\n%s", a, b)
		}
	}
}

// What is no URL may hold a password all the same.
func TestShowOddProxy(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"":                           "",
		"http://proxy:3128":          "http://proxy:3128",
		"http://u:canary@proxy:3128": "http://REDACTED@proxy:3128",
		"u:canary@proxy:3128":        "REDACTED, not a URL with a scheme and a host",
		"//u:canary@proxy:3128":      "REDACTED, not a URL with a scheme and a host",
		"http:u:canary@proxy":        "REDACTED, not a URL with a scheme and a host",
		"http://u:canary%@proxy":     "REDACTED, not a URL with a scheme and a host",
	} {
		s := settings{config: defaults()}
		s.Proxy.HTTP, s.Proxy.HTTPS = raw, raw
		again, err := loadSettings(layers(t, "", mustShow(t, s), ""))
		if err != nil {
			t.Fatal(err)
		}
		if p := again.Proxy; p.HTTP != want || p.HTTPS != want {
			t.Errorf("%s is shown as %s and %s, want %s", raw, p.HTTP, p.HTTPS, want)
		}
	}
}

func mustShow(t *testing.T, s settings) string {
	t.Helper()
	text, err := s.show(false)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// The commented configuration that is installed names every key, and no other.
func TestInstalledConfig(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../systemd/config.toml")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := loadSettings(layers(t, "", string(text), "")); err != nil || s.check() != nil {
		t.Errorf("as it is installed: %v, %v", err, s.check())
	}
	bare := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(string(text), "$1")
	src := layers(t, "", bare, "")
	s, err := loadSettings(src)
	if err != nil {
		t.Fatal(err)
	}
	d := settings{config: defaults()}
	d.Slots.Dir = d.StateDir + "/slots"
	for _, k := range configKeys() {
		if s.origin[k.name] != src.file {
			t.Errorf("%s is not there", k.name)
		}
	}
	for _, example := range []*string{&s.API.TLSCert, &s.API.TLSKey, &s.Proxy.HTTP, &s.Proxy.HTTPS, &s.Proxy.NoProxy} {
		*example = ""
	}
	d.Egress, d.Fetch.FileRoots = s.Egress, s.Fetch.FileRoots // empty, not nil
	if a, b := mustShow(t, s), mustShow(t, d); a != b {
		t.Errorf("it calls these the defaults:\n%s\nbut they are\n%s", a, b)
	}
}
