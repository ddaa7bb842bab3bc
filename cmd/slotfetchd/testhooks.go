package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"slotfetch/slots"
)

// testHooks are the vendor's own checks of an image, upgrade.test_hooks. The agent runs them as its own user.
type testHooks struct {
	dir   string
	limit time.Duration // for each
	log   *slog.Logger
}

// hookName is what run-parts takes: no backups and no leftovers of packages.
var hookName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// run runs all of them, one after the other, by name. The error says why none can be; an absent directory has none.
func (h testHooks) run(ctx context.Context, subject slots.HookSubject) (verdicts []slots.HookVerdict, err error) {
	info, err := os.Stat(h.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err == nil && !info.IsDir():
		return nil, errors.New("upgrade.test_hooks is no directory")
	case err == nil:
		if err := onlyRoots(info); err != nil {
			return nil, fmt.Errorf("the directory upgrade.test_hooks %w", err)
		}
		if err := owned(h.dir, 0); err != nil {
			h.log.Error("refusing the directory of test hooks", "err", err)
			return nil, errors.New("others than root may put another directory in the place of upgrade.test_hooks")
		}
	}
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		h.log.Error("cannot read the directory of test hooks", "err", err)
		return nil, errors.New("the directory upgrade.test_hooks cannot be read")
	}
	env := newEnvironment()
	env.set("SLOT", strconv.Itoa(subject.Slot))
	env.set("IMAGE", subject.Image)
	env.set("VERSION", subject.Version)
	env.set("SHA256", subject.SHA256)
	env.set("PRODUCT", subject.Product)
	env.set("CURRENT_VERSION", subject.Current)
	for _, e := range entries {
		if !hookName.MatchString(e.Name()) || e.Type()&^fs.ModeSymlink != 0 {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 == 0 {
			continue
		}
		if os.Geteuid() == 0 {
			return nil, errors.New("the agent runs as root, which these programs must not")
		}
		if ctx.Err() != nil {
			break
		}
		v := slots.HookVerdict{Name: e.Name(), Err: err}
		if err == nil {
			v.Err = runnable(info)
		}
		if v.Err == nil {
			v.Remark, v.Err = h.one(ctx, e.Name(), env)
		}
		verdicts = append(verdicts, v)
	}
	return verdicts, nil
}

// one runs one of them.
func (h testHooks) one(ctx context.Context, name string, env environment) (remark string, err error) {
	began := time.Now()
	stdout, stderr, err := program{path: filepath.Join(h.dir, name), env: env, limit: h.limit, tidy: true}.run(ctx)
	h.log.Info("test hook", "hook", name, "duration_ms", time.Since(began).Milliseconds(), "err", err, "stderr", string(stderr.text))
	var start *fs.PathError
	if errors.As(err, &start) {
		err = fmt.Errorf("it cannot be started: %w", start.Err) // without the path
	}
	return stdout.lastLine(), err
}

// runnable tells whether a hook is such as the agent may run.
func runnable(info fs.FileInfo) error {
	switch {
	case !info.Mode().IsRegular():
		return errors.New("it is a link; put the program itself there")
	case info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0:
		return errors.New("it would run as another user")
	}
	if err := onlyRoots(info); err != nil {
		return fmt.Errorf("it %w", err)
	}
	return nil
}

// onlyRoots refuses what others than root could have written, and the agent above all: a check that whoever has taken over
// the agent can change says nothing.
func onlyRoots(info fs.FileInfo) error {
	switch {
	case info.Sys().(*syscall.Stat_t).Uid != 0:
		return errors.New("does not belong to root")
	case info.Mode().Perm()&0o022 != 0:
		return errors.New("may be written by others than root")
	}
	return nil
}
