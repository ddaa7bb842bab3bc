package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// xdgDir is the slotfetch directory below an XDG base; the XDG rules say that a relative base is to be ignored.
func xdgDir(variable, fallback string) (string, error) {
	base := os.Getenv(variable)
	if !filepath.IsAbs(base) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("cannot find the home directory: set $%s: %w", variable, err)
		}
		base = filepath.Join(home, fallback)
	}
	return filepath.Join(base, "slotfetch"), nil
}

// stateDir holds logins and pins.
func stateDir() (string, error) { return xdgDir("XDG_STATE_HOME", filepath.Join(".local", "state")) }

// readPrivate reads a file of ours and refuses it when a permission bit of forbidden is set. A missing file is
// fs.ErrNotExist.
func readPrivate(path string, forbidden fs.FileMode, remedy string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	// Windows has no such bits; there the profile directory protects the file.
	if runtime.GOOS != "windows" && info.Mode().Perm()&forbidden != 0 {
		return nil, &failure{code: exitAuth, kind: "UnsafeFile", hint: remedy,
			message: fmt.Sprintf("%s has mode %04o: other users can get at it", path, info.Mode().Perm())}
	}
	return os.ReadFile(path)
}

// writePrivate replaces a file atomically; only the owner can read it.
func writePrivate(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot create %s: %w", dir, err)
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}
