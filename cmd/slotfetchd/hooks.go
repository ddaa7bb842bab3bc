package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// errNoHook says that the vendor has no program for this.
var errNoHook = errors.New("there is no such hook")

const healthPause = 2 * time.Second

// hooks are the vendor's programs that know the boot loader. Only the root side runs them.
type hooks struct {
	dir     string
	timeout time.Duration
	log     *slog.Logger
	env     environment
}

// newHooks looks whether the programs are such as root may run.
func newHooks(cfg config, log *slog.Logger) (hooks, error) {
	h := hooks{dir: cfg.Activate.Hooks, timeout: time.Duration(cfg.Activate.HookTimeout), log: log}
	if err := trusted(h.dir, fs.ModeDir); err != nil {
		return h, err
	}
	if err := os.MkdirAll(cfg.Activate.StateDir, 0o700); err != nil {
		return h, fmt.Errorf("cannot make the directory for the hooks' state: %w", err)
	}
	h.env = newEnvironment()
	h.env.set("STATE", cfg.Activate.StateDir)
	return h, nil
}

// errUntrusted is about programs that root must not run. It names files, which are for the journal.
type errUntrusted struct{ error }

func (e errUntrusted) Unwrap() error { return e.error }

// trusted refuses what others than root, or than the user who runs us, could have written or put there.
func trusted(path string, kind fs.FileMode) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Type() != kind {
		return errUntrusted{fmt.Errorf("refusing to use %s: it has the wrong kind", path)}
	}
	if err := owned(path, 0, os.Geteuid()); err != nil {
		return errUntrusted{fmt.Errorf("refusing to use %s: %w", path, err)}
	}
	return nil
}

// run runs one hook. The error is what it said last.
func (h *hooks) run(ctx context.Context, name string) error {
	_, err := h.output(ctx, name)
	return err
}

// output runs one hook and gives what it wrote, up to a bound. The error wraps [errNoHook] if there is none.
func (h *hooks) output(ctx context.Context, name string) (string, error) {
	path := filepath.Join(h.dir, name)
	err := trusted(path, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("hook %s: %w", name, errNoHook)
	}
	if err != nil {
		return "", err
	}
	start := time.Now()
	stdout, stderr, err := program{path: path, env: h.env, limit: h.timeout}.run(ctx)
	h.log.Info("hook", "hook", name, "duration_ms", time.Since(start).Milliseconds(), "err", err, "stderr", string(stderr.text))
	if err != nil {
		return "", fmt.Errorf("hook %s: %w", name, err)
	}
	return string(stdout.text), nil
}

// healthy asks the hook health until it is content, or for so long. No hook is content.
func (h *hooks) healthy(ctx context.Context, limit time.Duration) error {
	ctx, stop := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the box was not healthy within %s", limit))
	defer stop()
	for {
		err := h.run(ctx, "health")
		if err == nil || errors.Is(err, errNoHook) {
			return nil
		}
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(err, cause) {
				err = fmt.Errorf("%w: %w", cause, err)
			}
			return err
		case <-time.After(healthPause):
		}
	}
}

// reboot restarts the box, as the vendor does it or by systemd.
func (h *hooks) reboot(ctx context.Context) error {
	err := h.run(ctx, "reboot")
	if errors.Is(err, errNoHook) {
		var out []byte
		if out, err = exec.CommandContext(ctx, "systemctl", "reboot").CombinedOutput(); err != nil {
			err = fmt.Errorf("cannot reboot: %w: %s", err, strings.TrimSpace(string(out)))
		}
	}
	return err
}
