package slots_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"slotfetch/slots"
)

// smallISO has the label LABEL, and /VER.TXT;1 with "7.0.5\n" in block 18; the root is in block 17.
func smallISO() []byte {
	b := make([]byte, 20*2048)
	pvd := b[16*2048:]
	pvd[0] = 1
	copy(pvd[1:], "CD001")
	copy(pvd[40:72], "LABEL                           ")
	binary.LittleEndian.PutUint32(pvd[80:], 20)
	binary.LittleEndian.PutUint16(pvd[128:], 2048)
	record(pvd[156:], 17, 2048, 2, "\x00")
	record(b[17*2048:], 18, 6, 0, "VER.TXT;1", "PX\x05\x01\x00NM\x0c\x01\x00release", "NM\x0a\x01\x00-file")
	copy(b[18*2048:], "7.0.5\nmore")
	return b
}

func record(b []byte, block, length uint32, flags byte, name string, system ...string) {
	n := 33 + len(name)
	n += n % 2
	n += copy(b[n:], strings.Join(system, ""))
	b[0] = byte(n)
	binary.LittleEndian.PutUint32(b[2:], block)
	binary.LittleEndian.PutUint32(b[10:], length)
	b[25] = flags
	b[32] = byte(len(name))
	copy(b[33:], name)
}

func TestHostileISO(t *testing.T) {
	root := 17 * 2048
	for _, tt := range []struct {
		name    string
		change  func(b []byte) []byte
		path    string
		notISO  bool
		version string
	}{
		{name: "good", path: "ver.txt", version: "7.0.5"},
		{name: "leading slash", path: "/Ver.Txt", version: "7.0.5"},
		{name: "Rock Ridge", path: "release-file", version: "7.0.5"},
		{name: "Rock Ridge without length", path: "release-file", change: func(b []byte) []byte { b[root+42+2] = 0; return b }},
		{name: "Rock Ridge beyond the record", path: "release-file", change: func(b []byte) []byte { b[root+42+5+2] = 255; return b }},
		{name: "none asked", path: ""},
		{name: "missing", path: "other"},
		{name: "a file as directory", path: "ver.txt/x"},
		{name: "too deep", path: "a/b/c/d/e/f/g/h/i"},
		{name: "empty", change: func([]byte) []byte { return nil }, notISO: true},
		{name: "short", change: func(b []byte) []byte { return b[:17*2048-1] }, notISO: true},
		{name: "cut", change: func(b []byte) []byte { return b[:19*2048] }, notISO: true},
		{name: "padded", change: func(b []byte) []byte { return append(b, 0) }, path: "ver.txt", version: "7.0.5"},
		{name: "type", change: func(b []byte) []byte { b[16*2048] = 2; return b }, notISO: true},
		{name: "magic", change: func(b []byte) []byte { b[16*2048+1] = 'X'; return b }, notISO: true},
		{name: "block size", change: func(b []byte) []byte { b[16*2048+129] = 4; return b }, notISO: true},
		{name: "volume too large", change: func(b []byte) []byte { b[16*2048+83] = 0xff; return b }, notISO: true},
		{name: "no blocks", change: func(b []byte) []byte { b[16*2048+80] = 0; return b }, notISO: true},
		{name: "root outside", path: "ver.txt", change: func(b []byte) []byte { b[16*2048+156+5] = 0xff; return b }},
		{name: "root huge", path: "ver.txt", change: func(b []byte) []byte { b[16*2048+156+12] = 0x20; return b }},
		{name: "file outside", path: "ver.txt", change: func(b []byte) []byte { b[root+3] = 1; return b }},
		{name: "file too long", path: "ver.txt", change: func(b []byte) []byte { b[root+12] = 1; return b }},
		{name: "file is the root", path: "ver.txt", change: func(b []byte) []byte { b[root+2] = 17; return b }},
		{name: "record too short", path: "ver.txt", change: func(b []byte) []byte { b[root] = 1; return b }},
		{name: "name too long", path: "ver.txt", change: func(b []byte) []byte { b[root+32] = 255; return b }},
		{name: "extended attributes to the end", path: "ver.txt", change: func(b []byte) []byte { b[root+1] = 255; return b }},
		{name: "loop", path: "d/d/ver.txt", change: func(b []byte) []byte { record(b[root:], 17, 2048, 2, "D"); return b }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := smallISO()
			if tt.change != nil {
				b = tt.change(b)
			}
			label, version, err := slots.InspectISO(bytes.NewReader(b), int64(len(b)), tt.path)
			if tt.notISO {
				wantErr(t, err, slots.ErrNotISO)
				return
			}
			if err != nil || label != "LABEL" || version != tt.version {
				t.Errorf("label %q, version %q, %v", label, version, err)
			}
		})
	}
}

func TestInspect(t *testing.T) {
	for _, tt := range []struct {
		name, file, version string
		image               []byte
	}{
		{"fw.iso", "ver.txt", "7.0.5", smallISO()},
		{"fw.iso", "", "LABEL", smallISO()},
		{"path/fw-7.0.5.img", "", "fw-7.0.5", []byte("x")},
		{"fw-7.0.5", "", "fw-7.0.5", []byte("x")},
		{"", "", "unknown", []byte("x")},
	} {
		s := openIn(t, t.TempDir(), func(c *slots.Config) { c.VersionFile = tt.file })
		w := reserve(t, s, key(1), nil, 0)
		put(t, w, tt.image)
		m := slots.Manifest{Name: tt.name}
		if err := w.Inspect(&m); err != nil || m.Version != tt.version || m.ISO != (len(tt.image) > 1) {
			t.Errorf("%q: %+v, %v", tt.name, m, err)
		}
	}
	s := openIn(t, t.TempDir(), func(c *slots.Config) { c.RequireISO = true })
	wantErr(t, reserve(t, s, key(1), nil, 0).Inspect(&slots.Manifest{Name: "a"}), slots.ErrNotISO)
}

func TestRealISO(t *testing.T) {
	if _, err := exec.LookPath("xorriso"); err != nil {
		t.Skip("no xorriso")
	}
	src, out := t.TempDir(), filepath.Join(t.TempDir(), "a.iso")
	must(t, os.MkdirAll(filepath.Join(src, "etc", "release"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "etc", "release", "version.txt"), []byte(" 24.04.1-build7 \nmore\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(src, "etc", "release", "a-long-name-of-a-version.txt"), []byte("24.04.1-long\n"), 0o600))
	for i := range 100 { // so that the directory has several sectors
		must(t, os.WriteFile(filepath.Join(src, "etc", "release", strings.Repeat("a", 20)+key(i)[30:]), nil, 0o600))
	}
	for _, level := range []string{"1", "3"} {
		if msg, err := exec.CommandContext(t.Context(), "xorriso", "-as", "mkisofs", "-quiet", "-iso-level", level, "-V", "FW_24", "-R", "-J", "-o", out, src).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, msg)
		}
		data, err := os.ReadFile(out)
		must(t, err)
		s := openIn(t, t.TempDir(), func(c *slots.Config) { c.RequireISO, c.VersionFile = true, "/etc/release/version.txt" })
		w := reserve(t, s, key(1), nil, 0)
		put(t, w, data)
		m := slots.Manifest{Name: "a.iso"}
		s2 := openIn(t, t.TempDir(), func(c *slots.Config) { c.VersionFile = "/etc/release/a-long-name-of-a-version.txt" })
		w2 := reserve(t, s2, key(1), nil, 0)
		put(t, w2, data)
		if m := (slots.Manifest{}); w2.Inspect(&m) != nil || m.Version != "24.04.1-long" {
			t.Errorf("level %s, by Rock Ridge: %+v", level, m)
		}
		if err := w.Inspect(&m); err != nil || !m.ISO || m.VolumeID != "FW_24" || m.Version != "24.04.1-build7" {
			t.Errorf("level %s: %+v, %v", level, m, err)
		}
	}
}

func FuzzISO(f *testing.F) {
	const system = 16 * 2048 // bytes before the descriptors, which nobody reads: not worth fuzzing
	f.Add(smallISO()[system:], "ver.txt")
	f.Add(smallISO()[system:18*2048], "a/b")
	f.Add([]byte("CD001"), "")
	f.Fuzz(func(t *testing.T, tail []byte, path string) {
		b := append(make([]byte, system, system+len(tail)), tail...)
		label, version, err := slots.InspectISO(bytes.NewReader(b), int64(len(b)), path)
		if len(label) > 32*4 || len([]rune(version)) > 64 || strings.ContainsAny(label+version, "\x00\n\r\x1b") {
			t.Errorf("label %q, version %q", label, version)
		}
		if err != nil && label+version != "" {
			t.Errorf("an error and %q", label+version)
		}
	})
}

// FuzzManifest puts the bytes where a manifest is: whatever they are, Open must go well, and what it takes for
// a manifest must be for this image.
func FuzzManifest(f *testing.F) {
	good := `{"format":1,"key":"` + key(1) + `","name":"a","source":"","sha256":"` + sum([]byte("x")) +
		`","size":1,"fetched_at":"2026-01-02T03:04:05Z","volume_id":"","version":"1","iso":false}`
	f.Add([]byte(good))
	f.Add([]byte(good + "{}"))
	f.Add([]byte(strings.Replace(good, `"format":1`, `"format":2`, 1)))
	f.Add([]byte(strings.Replace(good, `"size":1`, `"size":-1`, 1)))
	f.Add([]byte(strings.Replace(good, `"iso"`, `"other"`, 1)))
	f.Add([]byte(strings.Replace(good, key(1), "../x", 1)))
	f.Add(bytes.Repeat([]byte(" "), 65<<10))
	dir := f.TempDir()
	must(f, os.Mkdir(filepath.Join(dir, "1"), 0o700))
	must(f, os.WriteFile(imageOf(dir, 1), []byte("x"), 0o600))
	must(f, os.WriteFile(filepath.Join(dir, "1", "manifest.json"), nil, 0o600))
	s := openIn(f, dir)
	f.Fuzz(func(t *testing.T, b []byte) {
		must(t, os.WriteFile(filepath.Join(dir, "1", "manifest.json"), b, 0o600))
		sl, err := s.Get(1)
		must(t, err)
		if sl.Damaged == (sl.Manifest != nil) {
			t.Errorf("%+v", sl)
		}
		if m := sl.Manifest; m != nil && (m.Size != 1 || len(m.Key) != 36 || len(m.SHA256) != 64 || len(b) > 64<<10) {
			t.Errorf("took %q", b)
		}
		if string(b) == good && sl.Manifest == nil || string(b) == good+"{}" && sl.Manifest != nil {
			t.Errorf("%q: %+v", b, sl)
		}
	})
}
