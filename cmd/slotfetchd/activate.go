package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"slotfetch/slots"
)

// activateDir is where agent and root side meet, below state_dir.
const activateDir = "activate"

const (
	// lockWait is for the agent, which has the lock until its request is durable; systemd may start us sooner.
	lockWait  = 30 * time.Second
	lockPause = 20 * time.Millisecond
	// failPause is how long a failure lasts that leaves the request for another try, which systemd begins at once.
	failPause = 3 * time.Second
)

// activateCommand is the root side of an upgrade: systemd starts it when the agent has left a request.
func activateCommand(load loader) *cobra.Command {
	return &cobra.Command{
		Use: "activate", Short: "Do as root what the agent has asked for: tell the boot loader, confirm, go back",
		Long: `Do as root what the agent has asked for in state_dir/activate/request.json: let the boot loader boot a slot once,
make the slot that runs the default when the box is healthy, or go back to the previous one. Nothing in the request is
taken on trust. The work is done by the programs in activate.hooks. Without a request nothing happens.

slotfetch-activate.path starts it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd)
			if err != nil {
				pause(cmd.Context(), failPause) // the request is still there
				return err
			}
			log, backlog := newLog(cmd.ErrOrStderr())
			defer backlog.Close()
			return (&rootSide{cfg: cfg, log: log}).run(cmd.Context())
		},
	}
}

// rootSide does one request.
type rootSide struct {
	cfg     config
	log     *slog.Logger
	hooks   hooks
	running *int // the slot that runs, once it was looked for
}

// run answers the request that is there. An error is also what the request came to.
func (r *rootSide) run(ctx context.Context) error {
	stays, err := r.answer(ctx)
	if stays {
		pause(ctx, failPause)
	}
	return err
}

// pause keeps systemd, which starts the root side as long as there is a request, from doing so all the time.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// errUncertain marks what has failed half-way.
type errUncertain struct{ error }

func (e errUncertain) Unwrap() error { return e.error }

// answer answers the request and tells whether it is there all the same, because of an error. The result is durable before
// the request goes, and that before a reboot; so a power cut in between has it answered once more, which the hooks allow.
func (r *rootSide) answer(ctx context.Context) (stays bool, err error) {
	handover, err := slots.OpenHandover(r.cfg.StateDir, activateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("cannot open the directory of requests: %w", err)
	}
	defer handover.Close() //nolint:errcheck // it was only looked into
	unlock, err := r.lock(ctx, handover)
	if err != nil {
		return true, fmt.Errorf("cannot lock the directory of requests: %w", err)
	}
	defer unlock()

	request, err := handover.Request()
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	result := slots.Result{ID: request.ID, Action: request.Action}
	reboot := false
	if err == nil {
		if last, lerr := handover.Result(); lerr == nil && last.ID == request.ID && last.Action == request.Action {
			r.log.Info("the request was answered before", "request", request.ID, "action", request.Action)
			err = handover.RemoveRequest()
			return err != nil, err
		}
		r.log.Info("request", "request", request.ID, "action", request.Action, "slot", request.SlotID, "reboot", request.Reboot)
		reboot, err = r.perform(ctx, request)
	}
	if ctx.Err() != nil {
		return true, fmt.Errorf("interrupted; the request stays: %w", ctx.Err())
	}
	result.OK, result.Time = err == nil, time.Now().UTC().Truncate(time.Second)
	if err != nil {
		result.Message = r.told(err)
		result.Uncertain = errors.As(err, new(errUncertain))
	}
	result.Running = r.running
	result.BootID = bootID(r.cfg)
	if result.ID != "" {
		if werr := handover.WriteResult(result); werr != nil {
			return true, errors.Join(err, fmt.Errorf("cannot write the result: %w", werr))
		}
	}
	if rerr := handover.RemoveRequest(); rerr != nil {
		return true, errors.Join(err, fmt.Errorf("cannot remove the request: %w", rerr))
	}
	r.log.Info("answered", "request", result.ID, "action", result.Action, "ok", result.OK, "err", err, "reboot", reboot)
	if reboot {
		unlock()
		err = errors.Join(err, r.hooks.reboot(ctx))
	}
	return false, err
}

// told is err for the agent, whose callers read it: with the keys of the configuration for the paths of the box.
func (r *rootSide) told(err error) string {
	if errors.As(err, new(errUntrusted)) {
		return "The programs in activate.hooks were not used, for they are not what they should be, or others than root could change them. The journal of slotfetch-activate names the file."
	}
	text := err.Error()
	for _, at := range []struct{ path, key string }{ // the ones inside others first
		{r.cfg.Activate.Hooks, "activate.hooks"}, {r.cfg.Activate.StateDir, "activate.state_dir"}, {r.cfg.Slots.Dir, "slots.dir"}, {r.cfg.StateDir, "state_dir"},
	} {
		text = strings.ReplaceAll(text, at.path, at.key)
	}
	return text
}

// lock takes the directory when the agent is done with it.
func (r *rootSide) lock(ctx context.Context, h *slots.Handover) (unlock func(), err error) {
	ctx, stop := context.WithTimeout(ctx, lockWait)
	defer stop()
	if unlock, err = h.Lock(); errors.Is(err, slots.ErrLocked) {
		r.log.Info("waiting for the lock of the agent")
	}
	for errors.Is(err, slots.ErrLocked) && ctx.Err() == nil {
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
		}
		unlock, err = h.Lock()
	}
	return unlock, err
}

// perform checks the request and runs its hooks. It tells whether the box is to reboot, also with an error.
func (r *rootSide) perform(ctx context.Context, request slots.Request) (reboot bool, err error) {
	known := func(id int) bool { return id >= r.cfg.Slots.First && id < r.cfg.Slots.First+r.cfg.Slots.Count }
	switch {
	case !known(request.SlotID):
		return false, fmt.Errorf("there is no slot %d", request.SlotID)
	case request.Previous != nil && !known(*request.Previous):
		return false, fmt.Errorf("there is no slot %d", *request.Previous)
	}
	if r.hooks, err = newHooks(r.cfg, r.log); err != nil {
		return false, err
	}
	r.hooks.env.set("SLOT", strconv.Itoa(request.SlotID))
	r.hooks.env.set("SHA256", request.SHA256)
	r.hooks.env.set("PREVIOUS", "")
	if request.Previous != nil {
		r.hooks.env.set("PREVIOUS", strconv.Itoa(*request.Previous))
	}
	r.hooks.env.set("IMAGE", filepath.Join(r.cfg.Slots.Dir, strconv.Itoa(request.SlotID), "image"))
	r.hooks.env.set("VERSION", "")
	err = r.verify(ctx, request)
	switch request.Action {
	case slots.ActionActivate:
		if err != nil {
			return false, err
		}
		return r.activate(ctx, request)
	case slots.ActionConfirm:
		return r.confirm(ctx, request)
	}
	if err := r.hooks.run(ctx, "rollback"); err != nil {
		return false, err
	}
	return request.Reboot == slots.RebootNow, nil
}

// verify compares the slot with the request; for what is to be booted it reads all of the image.
func (r *rootSide) verify(ctx context.Context, request slots.Request) error {
	img, err := slots.OpenImage(r.cfg.Slots.Dir, request.SlotID)
	if err != nil {
		return err
	}
	defer img.Close() //nolint:errcheck // it was only read
	if err := img.Manifest.Plain(); err != nil {
		return fmt.Errorf("cannot use slot %d: %w", request.SlotID, err)
	}
	r.hooks.env.set("VERSION", img.Manifest.Version)
	if img.Manifest.SHA256 != request.SHA256 {
		return fmt.Errorf("slot %d holds another image than the one that was asked for", request.SlotID)
	}
	if request.Action != slots.ActionActivate {
		return nil
	}
	digest, err := img.Digest(ctx, nil)
	if err != nil {
		return err
	}
	if digest != request.SHA256 {
		return fmt.Errorf("the image in slot %d is damaged: its SHA-256 is not the one of its manifest", request.SlotID)
	}
	return nil
}

// activate lets the slot boot once. If that fails half-way, the previous one is made sure of.
func (r *rootSide) activate(ctx context.Context, request slots.Request) (reboot bool, err error) {
	if id, ok := runningSlot(r.cfg); ok && id == request.SlotID {
		return false, nil // the power was cut after the hook, and before the result
	}
	if err := r.hooks.run(ctx, "activate"); err != nil {
		if back := r.hooks.run(ctx, "rollback"); back != nil {
			err = errUncertain{fmt.Errorf("%w; nor could it be taken back: %w", err, back)}
		}
		return false, err
	}
	return request.Reboot == slots.RebootNow, nil
}

// confirm makes the slot that runs the default if it is the right one and healthy; else the previous one boots next.
func (r *rootSide) confirm(ctx context.Context, request slots.Request) (reboot bool, err error) {
	err = r.runs(ctx, request.SlotID)
	right := err == nil
	if right {
		err = r.hooks.healthy(ctx, time.Duration(r.cfg.Activate.HealthTimeout))
	}
	if err == nil {
		err = r.hooks.run(ctx, "confirm")
	}
	if err == nil || ctx.Err() != nil {
		return false, err
	}
	if back := r.hooks.run(ctx, "rollback"); back != nil {
		err = fmt.Errorf("%w; nor could it be taken back: %w", err, back)
	}
	return right && request.Reboot != slots.RebootNone, err
}

// runs is nil if slot id runs now: the kernel's command line says so, or the vendor's hook where that says nothing.
func (r *rootSide) runs(ctx context.Context, id int) error {
	running, ok := runningSlot(r.cfg)
	if !ok {
		text, err := r.hooks.output(ctx, "current")
		if err != nil && !errors.Is(err, errNoHook) {
			return err
		}
		if running, err = strconv.Atoi(strings.TrimSpace(text)); err != nil {
			return errors.New("the box does not say which slot it runs")
		}
	}
	r.running = &running
	if running != id {
		return fmt.Errorf("the box runs slot %d", running)
	}
	return nil
}

// runningSlot is the number after slotfetch.slot= on the kernel's command line, which the boot loader's entry has.
func runningSlot(cfg config) (id int, ok bool) {
	text, err := os.ReadFile(cfg.Activate.CmdlineFile)
	if err != nil {
		return 0, false
	}
	for _, word := range strings.Fields(string(text)) {
		if number, found := strings.CutPrefix(word, "slotfetch.slot="); found {
			n, err := strconv.Atoi(number)
			id, ok = n, err == nil && n >= 0 // as the kernel does, the last word wins
		}
	}
	return id, ok
}

// bootID is different after each boot; empty if it cannot be read.
func bootID(cfg config) string {
	text, err := os.ReadFile(cfg.Activate.BootIDFile)
	if err != nil || len(text) > 128 {
		return ""
	}
	return strings.TrimSpace(string(text))
}
