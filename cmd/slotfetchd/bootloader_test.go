package main_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// loader is a box's boot loader as the hooks of systemd/hooks/grub or bls find it: a directory, and programs of ours in
// place of those that would touch this machine.
type loader struct {
	dir, hooks string
	env        []string
}

func newLoader(t *testing.T, set, conf string, programs map[string]string) *loader {
	t.Helper()
	for _, name := range []string{"grub-editenv", "xorriso"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED %s: %v", t.Name(), err)
		}
	}
	hooks, err := filepath.Abs("../../systemd/hooks/" + set)
	check(t, err)
	l := &loader{dir: t.TempDir(), hooks: hooks}
	for _, dir := range []string{"bin", "boot/loader/entries", "state", "slots"} {
		check(t, os.MkdirAll(filepath.Join(l.dir, dir), 0o755))
	}
	for name, text := range programs {
		check(t, os.WriteFile(filepath.Join(l.dir, "bin", name), []byte("#!/bin/sh\n"+text+"\n"), 0o755))
	}
	file := filepath.Join(l.dir, "conf")
	check(t, os.WriteFile(file, []byte(strings.ReplaceAll(conf, "@DIR@", l.dir)), 0o600))
	l.env = []string{"PATH=" + filepath.Join(l.dir, "bin") + ":" + os.Getenv("PATH"), "LANG=C", "DIR=" + l.dir, "SLOTFETCH_STATE=" + filepath.Join(l.dir, "state"),
		"SLOTFETCH_GRUB_CONF=" + file, "SLOTFETCH_BLS_CONF=" + file, "SLOTFETCH_EFIVARS=" + filepath.Join(l.dir, "efivars")}
	return l
}

// image puts an ISO with these files, each of which has its path as content, into a slot.
func (l *loader) image(t *testing.T, slot int, paths ...string) {
	t.Helper()
	tree := t.TempDir()
	for _, path := range paths {
		check(t, os.MkdirAll(filepath.Join(tree, filepath.Dir(path)), 0o755))
		check(t, os.WriteFile(filepath.Join(tree, path), []byte(path), 0o644))
	}
	file := filepath.Join(l.dir, "slots", fmt.Sprint(slot), "image")
	check(t, os.MkdirAll(filepath.Dir(file), 0o755))
	if out, err := exec.Command("xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", file, tree).CombinedOutput(); err != nil {
		t.Fatalf("xorriso: %v %s", err, out)
	}
}

// hook runs one as the root side does. It gives the last line on stderr, if it fails.
func (l *loader) hook(t *testing.T, name, slot, previous string) (reason string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(l.hooks, name))
	cmd.Dir = "/"
	cmd.Env = append(l.env, "SLOTFETCH_SLOT="+slot, "SLOTFETCH_PREVIOUS="+previous, "SLOTFETCH_VERSION=1.0",
		"SLOTFETCH_IMAGE="+filepath.Join(l.dir, "slots", slot, "image"), "SLOTFETCH_SHA256="+strings.Repeat(slot, 64)[:64])
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	text := strings.TrimSpace(stderr.String())
	if (err != nil) != (text != "") {
		t.Fatalf("hook %s: %v, and says %q", name, err, text)
	}
	return text[strings.LastIndexByte(text, '\n')+1:]
}

func (l *loader) ok(t *testing.T, name, slot, previous string) {
	t.Helper()
	for range 2 { // as after a power cut in the middle
		if reason := l.hook(t, name, slot, previous); reason != "" {
			t.Fatalf("hook %s %s from %q: %s", name, slot, previous, reason)
		}
	}
}

func (l *loader) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(l.dir, name))
	if os.IsNotExist(err) {
		return ""
	}
	check(t, err)
	return string(text)
}

const grubConf = "GRUB_DIR=@DIR@/boot\nSEARCH='--label slots'\nSLOTS_PATH=/slots\n"

// grubPrograms have everything on an ext4 whose journal is written back only by fsfreeze, which notes what GRUB would
// have found then.
var grubPrograms = map[string]string{
	"stat": `echo ext2/ext3`,
	"fsfreeze": `env=absent
[ ! -e "$DIR/boot/slotfetch.env" ] || env=$(grub-editenv "$DIR/boot/slotfetch.env" list 2>&1 | sed -n 's/slotfetch_//p' | tr '\n' ' ')
echo "$1 ${2#"$DIR"} $env" >>"$DIR/frozen"`,
}

func (l *loader) wantEnv(t *testing.T, slot, next string) {
	t.Helper()
	text := l.read(t, "boot/slotfetch.env")
	if len(text) != 1024 || !strings.Contains(text, "\nslotfetch_slot="+slot+"\n") || !strings.Contains(text, "\nslotfetch_next="+next+"\n") {
		t.Errorf("the environment block has %d bytes, and is not for slot %q, next %q: %q", len(text), slot, next, strings.TrimRight(text, "#"))
	}
}

func TestGRUBHooks(t *testing.T) {
	t.Parallel()
	l := newLoader(t, "grub", grubConf+"KERNEL='/live/new /boot/vmlinuz'\nCMDLINE='quiet iso=$iso_path'\n", grubPrograms)
	l.image(t, 1, "/boot/vmlinuz", "/boot/initrd.img")
	l.image(t, 2, "/live/new", "/live/initrd.img")
	l.image(t, 3, "/boot/initrd.img")

	if reason := l.hook(t, "activate", "1", ""); reason != "" {
		t.Fatal(reason)
	}
	if frozen := strings.Fields(l.read(t, "frozen")); len(frozen) == 0 || frozen[len(frozen)-1] == "absent" {
		t.Errorf("GRUB cannot see the new environment block: %q", frozen)
	}
	l.ok(t, "activate", "1", "")
	if text := l.read(t, "boot/slotfetch.env"); strings.Contains(text, "slotfetch_slot=") {
		t.Errorf("there was no slot before: %q", text)
	}
	l.ok(t, "confirm", "1", "")
	l.wantEnv(t, "1", "")
	menu := l.read(t, "boot/slotfetch.cfg")
	for _, want := range []string{"search --no-floppy --set=slotfetch_fs --label slots\n", "for path in /live/new /boot/vmlinuz;", " quiet iso=$iso_path slotfetch.slot=$slot panic=10;"} {
		if !strings.Contains(menu, want) {
			t.Errorf("the menu lacks %q:\n%s", want, menu)
		}
	}

	check(t, os.Remove(filepath.Join(l.dir, "frozen")))
	l.ok(t, "activate", "2", "1")
	l.wantEnv(t, "1", "2")
	first, _, _ := strings.Cut(l.read(t, "frozen"), "slot=1 next=2")
	if !strings.Contains(first, "--freeze /slots/2 ") || !strings.Contains(first, "--unfreeze /slots/2 ") || !strings.Contains(first, "--freeze /boot ") {
		t.Errorf("GRUB was told of slot 2 before it could find its image:\n%s", l.read(t, "frozen"))
	}
	l.ok(t, "rollback", "2", "1")
	l.wantEnv(t, "1", "")
	l.ok(t, "activate", "2", "1")
	l.ok(t, "confirm", "2", "1")
	l.wantEnv(t, "2", "")
	l.ok(t, "activate", "1", "")
	l.wantEnv(t, "2", "1")
	l.ok(t, "rollback", "1", "") // nobody knows what to go back to: what boots still boots
	l.wantEnv(t, "2", "")

	l.ok(t, "confirm", "1", "")
	for _, refused := range []struct{ hook, slot, previous, want string }{
		{"activate", "3", "1", "the image has no kernel: looked for /live/new /boot/vmlinuz"},
		{"activate", "4", "1", "looked for"},
		{"confirm", "2; x", "", "SLOTFETCH_SLOT is no slot number"},
		{"rollback", "2", "-1", "SLOTFETCH_PREVIOUS is no slot number"},
	} {
		if reason := l.hook(t, refused.hook, refused.slot, refused.previous); !strings.Contains(reason, refused.want) {
			t.Errorf("%s %s: %q, want %q", refused.hook, refused.slot, reason, refused.want)
		}
		l.wantEnv(t, "1", "")
	}
}

func TestGRUBHooksAfterDamage(t *testing.T) {
	t.Parallel()
	l := newLoader(t, "grub", grubConf, grubPrograms)
	l.image(t, 1, "/boot/vmlinuz", "/boot/initrd.img")
	env := filepath.Join(l.dir, "boot", "slotfetch.env")
	check(t, os.WriteFile(env, nil, 0o600)) // somebody's truncation, and a power cut
	l.ok(t, "activate", "1", "2")
	l.wantEnv(t, "2", "1")

	// Past the first sector a write could be torn.
	if out, err := exec.Command("grub-editenv", env, "set", "other="+strings.Repeat("x", 600)).CombinedOutput(); err != nil {
		t.Fatalf("grub-editenv: %v %s", err, out)
	}
	if reason := l.hook(t, "confirm", "1", ""); !strings.Contains(reason, "has no room") {
		t.Errorf("a full environment block: %q", reason)
	}
	l.wantEnv(t, "2", "1")

	check(t, os.Remove(env))
	check(t, os.WriteFile(filepath.Join(l.dir, "bin", "fsfreeze"), []byte("#!/bin/sh\necho 'not permitted' >&2\nexit 1\n"), 0o755))
	check(t, os.WriteFile(filepath.Join(l.dir, "bin", "sleep"), []byte("#!/bin/sh\n"), 0o755))
	if reason := l.hook(t, "activate", "1", "2"); !strings.Contains(reason, "cannot write back the journal") {
		t.Errorf("a file system that cannot be frozen: %q", reason)
	}
	if text := l.read(t, "boot/slotfetch.env"); text != "" {
		t.Errorf("it goes on all the same: %q", text)
	}
}

// entries are the names in loader/entries.
func (l *loader) entries(t *testing.T) string {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(l.dir, "boot/loader/entries"))
	check(t, err)
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func (l *loader) wantEntries(t *testing.T, want string, copies int) {
	t.Helper()
	if got := l.entries(t); got != want {
		t.Errorf("entries %q, want %q", got, want)
	}
	if found, _ := filepath.Glob(filepath.Join(l.dir, "boot/slotfetch/*/linux")); len(found) != copies {
		t.Errorf("kernels %q, want %d", found, copies)
	}
}

func TestBLSHooks(t *testing.T) {
	t.Parallel()
	l := newLoader(t, "bls", "BOOT=@DIR@/boot\n", map[string]string{"stat": "echo msdos", "bootctl": `echo "$@" >>"$DIR/orders"`})
	l.image(t, 1, "/boot/vmlinuz", "/boot/initrd.img")
	l.image(t, 2, "/live/vmlinuz", "/live/initrd.img")
	l.image(t, 3, "/boot/vmlinuz")
	if reason := l.hook(t, "activate", "1", ""); !strings.Contains(reason, "loader.conf must say: default slotfetch-*") {
		t.Errorf("no EFI variables: %q", reason)
	}
	l.wantEntries(t, "", 0)
	check(t, os.WriteFile(filepath.Join(l.dir, "boot/loader/loader.conf"), []byte("timeout 1\ndefault slotfetch-*\n"), 0o600))
	l.ok(t, "activate", "1", "")
	l.wantEntries(t, "slotfetch-1+1.conf", 1)
	entries := filepath.Join(l.dir, "boot/loader/entries")
	check(t, os.Rename(filepath.Join(entries, "slotfetch-1+1.conf"), filepath.Join(entries, "slotfetch-1+0-1.conf"))) // as the loader does
	l.ok(t, "confirm", "1", "")
	l.wantEntries(t, "slotfetch-1.conf", 1)
	text := l.read(t, "boot/loader/entries/slotfetch-1.conf")
	if !strings.Contains(text, "\noptions quiet slotfetch.slot=1 panic=10\n") {
		t.Errorf("the entry is %s", text)
	}
	for key, want := range map[string]string{"linux": "/boot/vmlinuz", "initrd": "/boot/initrd.img"} {
		_, path, _ := strings.Cut(text, "\n"+key+" ")
		path, _, _ = strings.Cut(path, "\n")
		if got := l.read(t, "boot"+path); got != want {
			t.Errorf("%s %s is %q, want what is at %s in the image", key, path, got, want)
		}
	}
	l.ok(t, "activate", "2", "1")
	l.wantEntries(t, "slotfetch-1.conf slotfetch-2+1.conf", 2)
	l.ok(t, "rollback", "2", "1")
	l.wantEntries(t, "slotfetch-1.conf", 1)
	if reason := l.hook(t, "activate", "3", "1"); !strings.Contains(reason, "no initial RAM disk") {
		t.Errorf("no initial RAM disk: %q", reason)
	}
	if reason := l.hook(t, "confirm", "3", "1"); !strings.Contains(reason, "slot 3 has no entry") {
		t.Errorf("no entry: %q", reason)
	}
	l.wantEntries(t, "slotfetch-1.conf", 1)

	// From slot to slot there is never more than what runs and what is tried, while the new one is copied too.
	l.image(t, 3, "/boot/vmlinuz", "/boot/initrd.img")
	for _, step := range [][2]string{{"2", "1"}, {"3", "2"}, {"1", "3"}, {"2", "1"}, {"1", "2"}} {
		l.ok(t, "activate", step[0], step[1])
		if got := len(strings.Fields(l.entries(t))); got != 2 {
			t.Errorf("from %s to %s: entries %q", step[1], step[0], l.entries(t))
		}
		l.ok(t, "confirm", step[0], step[1])
	}
	check(t, os.WriteFile(filepath.Join(l.dir, "bin", "cp"), []byte(`#!/bin/sh
ls "$DIR/boot/slotfetch" >>"$DIR/copies"; exec /bin/cp "$@"
`), 0o755))
	l.ok(t, "activate", "3", "1")
	if copies := l.read(t, "copies"); copies == "" || strings.Contains(copies, "2222") {
		t.Errorf("while that of slot 3 was written there were %q", copies)
	}
	check(t, os.Remove(filepath.Join(l.dir, "bin", "cp")))
	l.wantEntries(t, "slotfetch-1.conf slotfetch-3+1.conf", 2)
	l.ok(t, "rollback", "3", "") // nobody knows what to go back to: what boots still boots
	l.ok(t, "rollback", "1", "")
	l.wantEntries(t, "slotfetch-1.conf", 1)

	// With EFI variables the loader is told as well.
	check(t, os.Mkdir(filepath.Join(l.dir, "efivars"), 0o755))
	check(t, os.WriteFile(filepath.Join(l.dir, "efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"), nil, 0o600))
	for _, step := range []struct{ hook, want string }{
		{"activate", "set-default slotfetch-1[.+]*\nset-oneshot slotfetch-2[.+]*\n"},
		{"confirm", "set-default slotfetch-2[.+]*\nset-oneshot \n"},
		{"rollback", "set-oneshot \nset-default slotfetch-1[.+]*\n"},
	} {
		l.ok(t, step.hook, "2", "1")
		if got := l.read(t, "orders"); got != step.want+step.want {
			t.Errorf("%s ordered %q, want %q", step.hook, got, step.want)
		}
		check(t, os.Remove(filepath.Join(l.dir, "orders")))
	}
	l.ok(t, "rollback", "2", "")
	if got := l.read(t, "orders"); got != "set-oneshot \nset-oneshot \n" {
		t.Errorf("a rollback to nothing ordered %q", got)
	}
	l.wantEntries(t, "slotfetch-1.conf", 1)
}
