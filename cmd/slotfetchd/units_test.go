package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// units copies all units that are installed into a directory, with a program that is there, and has systemd verify them.
func units(t *testing.T, edit func(name, text string) string) (dir, complaints string, ok bool) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skipf("SKIPPED %s: %v", t.Name(), err)
	}
	dir = t.TempDir()
	var files []string
	for _, pattern := range []string{"*.service", "*.path", "*.socket"} {
		names, err := filepath.Glob("../../systemd/" + pattern)
		check(t, err)
		for _, name := range names {
			text, err := os.ReadFile(name)
			check(t, err)
			file := filepath.Join(dir, filepath.Base(name))
			body := regexp.MustCompile(`(?m)^(Exec\w+=)/usr/sbin/slotfetchd\b`).ReplaceAllString(string(text), "${1}"+program)
			check(t, os.WriteFile(file, []byte(edit(filepath.Base(name), body)), 0o644))
			files = append(files, file)
		}
	}
	if len(files) < 4 {
		t.Fatalf("only %v", files)
	}
	// By itself it forgives what a unit does not know, because a newer systemd may.
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, files...)...).CombinedOutput()
	var about []string // and not about other units of this machine
	for line := range strings.Lines(string(out)) {
		if slices.ContainsFunc(files, func(f string) bool { return strings.Contains(line, filepath.Base(f)) }) {
			about = append(about, line)
		}
	}
	return dir, strings.Join(about, ""), err == nil && about == nil
}

func as(_, text string) string { return text }

// The units are such as systemd takes without a word. What has a mistake in it, it does not.
func TestUnits(t *testing.T) {
	t.Parallel()
	if _, complaints, ok := units(t, as); !ok {
		t.Errorf("systemd says:\n%s", complaints)
	}
	for _, bad := range [][3]string{ // name, what is in it, what is there instead
		{"slotfetch-activate.path", "PathExists=/", "PathExist=/"},
		{"slotfetch-activate.path", "[Path]", "[Install]"},
		{"slotfetch-activate.service", "Type=oneshot", "Type=once"},
		{"slotfetch-activate.service", " activate\n", "-none activate\n"},
		{"slotfetchd.service", "Type=notify", "Type=notified"},
		{"slotfetchd.socket", "ListenStream=443", "ListenStream=443000"},
	} {
		found := false
		_, complaints, ok := units(t, func(name, text string) string {
			if name != bad[0] {
				return text
			}
			found = strings.Contains(text, bad[1])
			return strings.ReplaceAll(text, bad[1], bad[2])
		})
		if !found || ok {
			t.Errorf("%s with %s is taken: %v %s", bad[0], bad[2], found, complaints)
		}
	}
}

// What a unit is without, or has, for reasons that nothing else here would show.
func TestUnitsSay(t *testing.T) {
	t.Parallel()
	for name, line := range map[string]string{
		"slotfetchd.service":         "ExecPaths=/usr/sbin/slotfetchd( -/[a-z0-9/]+)+", // it would not start where one is missing
		"slotfetch-activate.service": "SendSIGKILL=no",                                 // nobody would thaw
	} {
		text, err := os.ReadFile("../../systemd/" + name)
		check(t, err)
		if !regexp.MustCompile("(?m)^" + line + "$").Match(text) {
			t.Errorf("%s lacks %s", name, line)
		}
	}
}

// What is not needed is not allowed: the exposure that systemd counts is this many tenths at most, of a hundred.
func TestUnitsSecurity(t *testing.T) {
	t.Parallel()
	dir, _, _ := units(t, as)
	for unit, most := range map[string]string{"slotfetchd.service": "12", "slotfetch-activate.service": "50"} {
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold="+most, filepath.Join(dir, unit)).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}

// Agent, root side and units mean the same files.
func TestUnitsFit(t *testing.T) {
	t.Parallel()
	text := func(name string) string {
		text, err := os.ReadFile("../../systemd/" + name)
		check(t, err)
		return string(text)
	}
	empty := filepath.Join(t.TempDir(), "c.toml")
	check(t, os.WriteFile(empty, nil, 0o600))
	out, err := exec.Command(program, "--config", empty, "config", "show").Output()
	check(t, err)
	value := func(key string) string {
		m := regexp.MustCompile(`(?m)^`+key+` = ['"](.*)['"]$`).FindAllStringSubmatch(string(out), -1)
		if len(m) == 0 {
			t.Fatalf("no %s in\n%s", key, out)
		}
		return m[0][1]
	}
	for _, want := range [][2]string{
		{"slotfetch-activate.path", "PathExists=" + value("state_dir") + "/activate/request.json"},
		{"slotfetch-activate.service", "ExecStart=/usr/sbin/slotfetchd activate"},
		{"slotfetch-activate.service", "StartLimitIntervalSec=0"}, // or the sixth request within 10 s is the last
		{"slotfetchd.service", "Wants=network-online.target slotfetch-activate.path"},
	} {
		if !strings.Contains(text(want[0]), "\n"+want[1]+"\n") {
			t.Errorf("%s does not say %s", want[0], want[1])
		}
	}
	if value("state_dir") != "/var/lib/slotfetch" || !strings.Contains(text("slotfetchd.service"), "\nStateDirectory=slotfetch\n") {
		t.Errorf("the agent may not write %s", value("state_dir"))
	}
}
