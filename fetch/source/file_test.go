package source_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

// TestFile: only regular files below a root, whatever leads to them.
func TestFile(t *testing.T) {
	base := t.TempDir()
	root, sibling, outside := filepath.Join(base, "a"), filepath.Join(base, "ab"), filepath.Join(base, "secret")
	for _, dir := range []string{root, sibling, outside, filepath.Join(root, "dir"), filepath.Join(root, "locked")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{root, sibling, outside, filepath.Join(root, "dir"), filepath.Join(root, "locked")} {
		image.WriteFile(t, dir, "x.iso", time.Now())
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Symlink("dir/x.iso", filepath.Join(root, "inside")))
	must(os.Symlink("../secret/x.iso", filepath.Join(root, "outside")))
	must(os.Symlink(filepath.Join(outside, "x.iso"), filepath.Join(root, "absolute")))
	must(os.Symlink("../secret", filepath.Join(root, "outdir")))
	must(os.Symlink("/dev/zero", filepath.Join(root, "zerolink")))
	must(os.Symlink("loop", filepath.Join(root, "loop")))
	must(syscall.Mkfifo(filepath.Join(root, "fifo"), 0o644))
	must(syscall.Mkfifo(filepath.Join(root, "dir", "fifo"), 0o644))

	escaped := failure(source.Human, "file", "The file cannot be opened below its root. Move the file, not a link to it, below its root.")
	irregular := failure(source.Human, "file_type", "The file is not a regular file. Check the URL.")
	missing := failure(source.Permanent, "file_missing", "No such file.")
	noRoot := failure(source.Human, "file_root", "The file lies below no configured root. Add one to fetch.file_roots, or move the file.")
	for _, tc := range []struct {
		name  string
		roots []string
		path  string
		want  outcome
	}{
		{"good", []string{root}, root + "/x.iso", good(image)},
		{"root with a slash", []string{root + "/"}, root + "/x.iso", good(image)},
		{"in a directory", []string{root}, root + "/dir/x.iso", good(image)},
		{"second root", []string{"/nonexistent", root}, root + "/x.iso", good(image)},
		{"root is /", []string{"/"}, root + "/x.iso", good(image)},
		{"escaped name", []string{root}, root + "/%78.iso", good(image)},
		{"dots that stay inside", []string{root}, root + "/dir/../x.iso", good(image)},
		{"symlink inside", []string{root}, root + "/inside", good(image)},
		{"no roots", nil, root + "/x.iso", noRoot},
		{"other root", []string{root}, sibling + "/x.iso", noRoot},
		{"dots", []string{root}, root + "/../secret/x.iso", noRoot},
		{"escaped dots", []string{root}, root + "/%2e%2e/secret/x.iso", noRoot},
		{"the root itself", []string{root}, root, noRoot},
		{"symlink out", []string{root}, root + "/outside", escaped},
		{"absolute symlink", []string{root}, root + "/absolute", escaped},
		{"symlinked directory out", []string{root}, root + "/outdir/x.iso", escaped},
		{"symlink to /dev/zero", []string{root}, root + "/zerolink", escaped},
		{"symlink loop", []string{root}, root + "/loop", escaped},
		{"FIFO", []string{root}, root + "/fifo", irregular},
		{"FIFO in a directory", []string{root}, root + "/dir/fifo", irregular},
		{"directory", []string{root}, root + "/dir", irregular},
		{"/dev/zero", []string{"/dev"}, "/dev/zero", irregular},
		{"/dev/null", []string{"/dev"}, "/dev/null", irregular},
		{"file as a directory", []string{root}, root + "/x.iso/y", escaped},
		{"missing", []string{root}, root + "/y.iso", missing},
		{"root missing", []string{"/nonexistent"}, "/nonexistent/x.iso", missing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := source.Config{FileRoots: tc.roots}
			u := parse(t, "file://"+tc.path)
			got, _ := attempt(t, cfg, source.Request{URL: u}, image, 0, source.Validator{})
			wantOutcome(t, tc.want, got)
			if in := client(t, cfg).InRoots(u); in != (tc.want.Code != "file_root") {
				t.Errorf("InRoots: %v", in)
			}
			if strings.Contains(got.Message, base) {
				t.Errorf("the message shows a path of the box: %s", got.Message)
			}
		})
	}
}

func TestFilePermission(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may read everything")
	}
	dir := t.TempDir()
	if err := os.Chmod(image.WriteFile(t, dir, "x.iso", time.Now()), 0); err != nil {
		t.Fatal(err)
	}
	got, _ := attempt(t, source.Config{FileRoots: []string{dir}}, source.Request{URL: parse(t, "file://"+dir+"/x.iso")}, image, 0, source.Validator{})
	wantOutcome(t, failure(source.Human, "file_permission", "The agent may not read the file. Give its user (slotfetch) read access."), got)
}

// TestFileResume: a file is the same if it is the same inode, of the same time and size.
func TestFileResume(t *testing.T) {
	dir := t.TempDir()
	when := time.Now().Add(-time.Hour)
	req := source.Request{URL: parse(t, "file://"+dir+"/x.iso")}
	cfg := source.Config{FileRoots: []string{dir}}
	start := func() source.Validator {
		image.WriteFile(t, dir, "x.iso", when)
		_, v := attempt(t, cfg, req, image, 0, source.Validator{})
		return v
	}
	tail := func(from int64) outcome {
		n := image.Size() - from
		return outcome{Offset: from, Bytes: n, Head: n > 0, Whole: true}
	}
	for _, tc := range []struct {
		name   string
		offset int64
		change func() error
		want   outcome
	}{
		{"same", 1000, func() error { return nil }, tail(1000)},
		{"at the end", image.Size(), func() error { return nil }, tail(image.Size())},
		{"past the end", image.Size() + 1, func() error { return nil }, good(image)},
		{"touched", 1000, func() error { return os.Chtimes(req.URL.Path, when, when.Add(time.Second)) }, good(image)},
		{"replaced", 1000, func() error { image.WriteFile(t, dir, "x.iso", when); return nil }, good(image)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := start()
			if err := tc.change(); err != nil {
				t.Fatal(err)
			}
			got, _ := attempt(t, cfg, req, image, tc.offset, v)
			wantOutcome(t, tc.want, got)
		})
	}
	t.Run("grown", func(t *testing.T) {
		v := start()
		bigger := fetchtest.NewImage(8, 70*kib)
		bigger.WriteFile(t, dir, "x.iso", when)
		got, _ := attempt(t, cfg, req, bigger, 1000, v)
		wantOutcome(t, good(bigger), got)
	})
}
