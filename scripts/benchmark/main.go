// Benchmark measures slotfetchd against pipelines of curl. It is what scripts/bench runs; see there.
//
// Each round runs every contestant once, in an order that rotates, against the same server, a process of its own, and into the
// same file system. Before each run nothing of an earlier one is left: files are removed, with their pages in the cache,
// and the file system is synced.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "serve" {
		exit(serve(os.Args[2]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// contestant is one way to bring the image to the disk.
type contestant struct {
	name string
	// run returns when the image is durable.
	run func(context.Context) error
	// reset removes what run left; it is not timed.
	reset func(context.Context) error

	took []time.Duration
}

func run(ctx context.Context) (err error) {
	short := flag.Bool("short", false, "256 MiB instead of 2 GiB")
	size := flag.Int64("size", 0, "size of the image in `MiB`")
	rounds := flag.Int("rounds", 3, "how often everything is run")
	parent := flag.String("dir", "/var/tmp", "slots and files go below this `directory`")
	keep := flag.Bool("keep", false, "keep the slots and the agent's log")
	program := flag.String("agent", "", "the slotfetchd to measure")
	flag.Parse()
	if *size == 0 {
		*size = 2048
		if *short {
			*size = 256
		}
	}
	if flag.NArg() > 0 || *size < 1 || *rounds < 1 || *program == "" {
		return errors.New("usage: scripts/bench [--short] [--size MIB] [--rounds N] [--dir DIR] [--keep]")
	}
	dir, err := os.MkdirTemp(*parent, "slotfetch-bench")
	if err != nil {
		return err
	}
	defer func() {
		if *keep {
			fmt.Fprintln(os.Stderr, "kept:", dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()

	fmt.Fprintln(os.Stderr, "making the image")
	img, err := makeImage(*size << 20)
	if err != nil {
		return err
	}
	defer img.remove()
	server, url, err := startServer(img.path)
	if err != nil {
		return err
	}
	defer server.stop()
	// The first start makes the database and the first user, which takes memory that later ones do not take.
	first, err := startAgent(ctx, *program, dir)
	if err != nil {
		return err
	}
	first.stop()
	a, err := startAgent(ctx, *program, dir)
	if err != nil {
		return err
	}
	defer a.stop()
	if *keep {
		fmt.Fprintln(os.Stderr, "the agent's process:", a.pid())
	}

	b := &bench{image: img, dir: dir, url: url, agent: a, file: filepath.Join(dir, "file")}
	if err := b.measure(ctx, *rounds); ctx.Err() != nil {
		return errors.New("interrupted")
	} else if err != nil {
		return errors.Join(err, a.lastWords())
	}
	return b.report(os.Stdout)
}

// bench is one run of everything.
type bench struct {
	image     *image
	dir, file string
	url       string
	agent     *agent

	all                                   []*contestant
	fetch, tee, sums, netHash, directSync *contestant
	idle, peak                            int64   // bytes of RSS
	cpu                                   []int64 // clock ticks of the agent in each round
	cached                                []int64 // bytes of the slot's image in the page cache
}

func (b *bench) measure(ctx context.Context, rounds int) error {
	shell := func(name, format string, args ...any) *contestant {
		script := fmt.Sprintf(format, args...)
		c := &contestant{name: name, run: func(ctx context.Context) error { return b.shell(ctx, script) },
			reset: func(context.Context) error { return os.RemoveAll(b.file) }}
		b.all = append(b.all, c)
		return c
	}
	b.fetch = &contestant{name: "slotfetchd, POST to finished", run: b.fetchOnce, reset: b.emptySlot}
	b.all = append(b.all, b.fetch)
	b.tee = shell("curl | tee | openssl, then sync", "curl -sN %s | tee %s | openssl dgst -sha256 && sync -d %[2]s", b.url, b.file)
	b.sums = shell("curl -o, then sha256sum, then sync", "curl -s -o %[2]s %[1]s && sha256sum %[2]s && sync -d %[2]s", b.url, b.file)
	b.netHash = &contestant{name: "limit: network and hash, no disk", run: b.hashOnly, reset: func(context.Context) error { return nil }}
	b.all = append(b.all, b.netHash)
	b.directSync = shell("limit: direct write and sync, no hash",
		"dd if=%s of=%s bs=1M oflag=direct conv=fdatasync status=none && echo %s", b.image.path, b.file, b.image.sha256)

	var err error
	if b.idle, err = b.agent.memory("VmRSS"); err != nil {
		return err
	}
	for round := range rounds {
		for i := range b.all {
			c := b.all[(i+round)%len(b.all)]
			fmt.Fprintf(os.Stderr, "round %d: %s: ", round+1, c.name)
			if err := syncFS(b.dir); err != nil {
				return err
			}
			began := time.Now()
			if err := c.run(ctx); err != nil {
				return fmt.Errorf("cannot run %s: %w", c.name, err)
			}
			c.took = append(c.took, time.Since(began))
			fmt.Fprintf(os.Stderr, "%.2f s\n", time.Since(began).Seconds())
			if err := c.reset(ctx); err != nil {
				return err
			}
		}
	}
	b.peak, err = b.agent.memory("VmHWM")
	return err
}

// shell runs a pipeline, which has to print the digest.
func (b *bench) shell(ctx context.Context, script string) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // the whole pipeline
	out, err := cmd.Output()
	if err == nil && !strings.Contains(string(out), b.image.sha256) {
		err = fmt.Errorf("got digest %q, want %s", out, b.image.sha256)
	}
	return err
}

func (b *bench) fetchOnce(ctx context.Context) error {
	before, err := b.agent.ticks()
	if err != nil {
		return err
	}
	if err := b.agent.fetch(ctx, b.url, b.image.sha256); err != nil {
		return err
	}
	after, err := b.agent.ticks()
	b.cpu = append(b.cpu, after-before)
	return err
}

// hashOnly reads into one of four buffers while the others are hashed, and writes nothing.
func (b *bench) hashOnly(ctx context.Context) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	free, full, sum := make(chan []byte, 4), make(chan []byte, 4), make(chan string)
	for range cap(free) {
		free <- make([]byte, 1<<20)
	}
	go func() {
		h := sha256.New()
		for p := range full {
			h.Write(p)
			free <- p[:cap(p)]
		}
		sum <- fmt.Sprintf("%x", h.Sum(nil))
	}()
	for err == nil {
		var n int
		p := <-free
		n, err = io.ReadFull(resp.Body, p)
		full <- p[:n]
	}
	close(full)
	if got := <-sum; got != b.image.sha256 {
		return fmt.Errorf("got digest %s, want %s: %w", got, b.image.sha256, err)
	}
	return nil
}

// emptySlot also looks what the fetch left in the page cache.
func (b *bench) emptySlot(ctx context.Context) error {
	if out, err := exec.CommandContext(ctx, "fincore", "-b", "-n", "-r", "-o", "RES", b.agent.slotImage()).Output(); err == nil {
		var n int64
		if _, err := fmt.Sscan(string(out), &n); err == nil {
			b.cached = append(b.cached, n)
		}
	}
	return b.agent.emptySlot(ctx)
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

// process is a child that is stopped in order.
type process struct{ cmd *exec.Cmd }

// start runs a program whose standard output, or error where toErr, is given to the caller. Ctrl-C does not reach it.
func start(cmd *exec.Cmd, toErr bool) (*process, io.Reader, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe := cmd.StdoutPipe
	if toErr {
		pipe = cmd.StderrPipe
	}
	out, err := pipe()
	if err != nil {
		return nil, nil, err
	}
	return &process{cmd}, out, cmd.Start()
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait() // killed, or ended in order: both will do
}
