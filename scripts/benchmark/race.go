package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// contestant is one way to bring the image to the disk.
type contestant struct {
	name string
	// run returns when the image is durable, with what it took of the processor; 0 if unknown.
	run func(context.Context) (time.Duration, error)
	// reset removes what run left; it is not timed.
	reset func(context.Context) error

	took, busy []time.Duration
}

func (c *contestant) seconds() float64 { return median(c.took).Seconds() }

// race runs each contestant once a round, in an order that rotates. Before each run nothing of an earlier one is left: files
// are removed, with their pages in the cache, and the file system is synced.
func (b *bench) race(ctx context.Context, title string, rounds int, all ...*contestant) error {
	for round := range rounds {
		for i := range all {
			c := all[(i+round)%len(all)]
			fmt.Fprintf(os.Stderr, "%s, round %d of %d: %s: ", title, round+1, rounds, c.name)
			if err := syncFS(b.dir); err != nil {
				return err
			}
			b.runs++
			if !quiet(ctx, b.patience) {
				b.loud++
			}
			began := time.Now()
			busy, err := c.run(ctx)
			took := time.Since(began)
			if err != nil {
				return fmt.Errorf("cannot run %s: %w", c.name, err)
			}
			c.took, c.busy = append(c.took, took), append(c.busy, busy)
			fmt.Fprintf(os.Stderr, "%.2f s\n", took.Seconds())
			if err := c.reset(ctx); err != nil {
				return err
			}
		}
	}
	b.races = append(b.races, race{title, all})
	return nil
}

// race is what came of one, for the report.
type race struct {
	title string
	all   []*contestant
}

// fetching is the agent a as a contestant.
func (b *bench) fetching(name string, a *agent, s served) *contestant {
	return &contestant{name: name,
		run: func(ctx context.Context) (time.Duration, error) {
			before, err := a.processor()
			if err != nil {
				return 0, err
			}
			if err := a.fetch(ctx, s.url, s.image.sha256, s.ca); err != nil {
				return 0, err
			}
			after, err := a.processor()
			return after - before, err
		},
		reset: func(ctx context.Context) error {
			if n, ok := cached(a.slotImage()); ok {
				b.left = append(b.left, float64(n)/float64(s.image.size))
			}
			return a.emptySlot(ctx)
		}}
}

// piping is a shell script as a contestant. It has to print the digest, unless want is empty.
func (b *bench) piping(name, want, script string) *contestant {
	return &contestant{name: name,
		run: func(ctx context.Context) (time.Duration, error) {
			cmd := b.peers.command("sh", "-c", script)
			cmd.Stderr = os.Stderr
			return shell(ctx, cmd, want)
		},
		reset: func(context.Context) error { return os.RemoveAll(b.file) }}
}

// shell runs a pipeline, all of it in one process group.
func shell(ctx context.Context, cmd *exec.Cmd, want string) (time.Duration, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	err := cmd.Wait()
	stop()
	if err == nil && !strings.Contains(out.String(), want) {
		err = fmt.Errorf("got digest %q, want %s", out.String(), want)
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), err
}

// cached is how many bytes of a file are in the page cache.
func cached(path string) (int64, bool) {
	out, err := exec.Command("fincore", "-b", "-n", "-r", "-o", "RES", path).Output()
	var n int64
	if err == nil {
		_, err = fmt.Sscan(string(out), &n)
	}
	return n, err == nil
}

// syncFS writes out what is dirty in the file system of dir, so that nobody pays for somebody else.
func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}
