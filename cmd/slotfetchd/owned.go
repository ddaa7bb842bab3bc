package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const maxLinks = 40 // as the kernel

// owned refuses what others than these users could have written or put in place: the file or directory itself, and every
// directory and link on the way to it belongs to one of them, and nobody else may write it. A directory on the way may be
// sticky, as /tmp is, for nobody can move in it what is not his own. The error says which it is.
func owned(path string, users ...int) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%s is not absolute", path)
	}
	at, rest := "/", strings.Split(path, "/")
	for links := 0; ; {
		info, err := os.Lstat(at)
		if err != nil {
			return err
		}
		link := info.Mode()&fs.ModeSymlink != 0
		switch {
		case !slices.Contains(users, int(info.Sys().(*syscall.Stat_t).Uid)):
			return fmt.Errorf("%s belongs to another user", at)
		case !link && info.Mode().Perm()&0o022 != 0 && (len(rest) == 0 || info.Mode()&fs.ModeSticky == 0):
			return fmt.Errorf("others may write it: %s", at)
		case link && links == maxLinks:
			return errors.New("too many links on the way to " + path)
		case link:
			links++
			target, err := os.Readlink(at)
			if err != nil {
				return err
			}
			if at = filepath.Dir(at); filepath.IsAbs(target) {
				at = "/"
			}
			rest = append(strings.Split(target, "/"), rest...)
		case len(rest) == 0:
			return nil
		}
		if len(rest) > 0 {
			at, rest = filepath.Join(at, rest[0]), rest[1:]
		}
	}
}
