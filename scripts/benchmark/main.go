// Benchmark measures slotfetchd against other ways to bring an image to the disk, and against what the machine allows. It is
// what scripts/bench runs; see there and docs/performance.md.
//
// What is compared runs interleaved, each contestant once a round, against the same server, a process of its own, and into
// the same file system.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		exit(serve(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx)
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

const mib = 1 << 20

// parts are what is measured, in order. How much memory the agent took at most is asked before several connections take theirs.
var parts = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"compare", (*bench).compare},
	{"logins", (*bench).logins},
	{"warm", (*bench).warm},
	{"ranges", (*bench).ranges},
	{"link", (*bench).gigabit},
	{"rates", (*bench).rates},
	{"pollers", (*bench).crowded},
}

// options are what was asked for.
type options struct {
	short        bool
	size, memory int64 // MiB; no memory: no limit
	rounds       int
	patience     time.Duration
	dir          string
	keep         bool
	program      string
	only         string
}

func run(ctx context.Context) (err error) {
	var o options
	flag.BoolVar(&o.short, "short", false, "256 MiB instead of 2 GiB, and less of everything")
	flag.Int64Var(&o.size, "size", 0, "size of the image in `MiB`")
	flag.Int64Var(&o.memory, "memory", 1024, "memory in `MiB` for each contestant with its page cache; 0: no limit")
	flag.IntVar(&o.rounds, "rounds", 0, "how often everything is run")
	flag.StringVar(&o.only, "only", "", "measure these `parts` only, by comma: compare, logins, warm, ranges, link, rates, pollers")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "slots and files go below this `directory`")
	flag.DurationVar(&o.patience, "patience", 0, "how long to wait for an idle processor before each run")
	flag.BoolVar(&o.keep, "keep", false, "keep the slots and the agent's state")
	flag.StringVar(&o.program, "agent", "", "the slotfetchd to measure")
	flag.Parse()
	if o.size == 0 {
		o.size = 2048
		if o.short {
			o.size = 256
		}
	}
	if o.rounds == 0 {
		o.rounds = 5
		if o.short {
			o.rounds = 3
		}
	}
	if flag.NArg() > 0 || o.size < 1 || o.rounds < 1 || o.memory < 0 || o.program == "" {
		return errors.New("usage: scripts/bench [--short] [--size MIB] [--memory MIB] [--rounds N] [--patience TIME] [--only PARTS] [--dir DIR] [--keep]")
	}
	b := &bench{options: o, load: loadAverage()}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.setUp(ctx); err != nil {
		return err
	}
	for _, part := range parts {
		if o.only != "" && !slices.Contains(strings.Split(o.only, ","), part.name) {
			continue
		}
		if err := part.run(b, ctx); err != nil {
			return err
		}
	}
	return b.report(os.Stdout)
}

// bench is one run of everything.
type bench struct {
	options
	load string // when it began

	image                    *image
	file, script             string
	cert, certFile, bothFile string
	own, peers               *group // of the agent, and of each of the others
	python                   string
	aria                     bool
	agent                    *agent

	cleanup []func() error
	without []string // what was left out, and why

	runs, loud int // all, and those that began while others were at work

	races   []race
	figures []figure
	left    []float64 // parts of the image in the page cache after each fetch
	facts   []string  // without a bar
}

// later registers what close does, last first.
func (b *bench) later(f func() error) { b.cleanup = append(b.cleanup, f) }

func (b *bench) close() error {
	var errs []error
	for i := len(b.cleanup) - 1; i >= 0; i-- {
		errs = append(errs, b.cleanup[i]())
	}
	return errors.Join(errs...)
}

// leaveOut says aloud, and in the report, what is not measured.
func (b *bench) leaveOut(what string, why error) {
	text := fmt.Sprintf("%s: %v", what, why)
	fmt.Fprintln(os.Stderr, "LEFT OUT:", text)
	b.without = append(b.without, text)
}

// setUp makes the image and starts the agent.
func (b *bench) setUp(ctx context.Context) error {
	parent := b.dir
	dir, err := os.MkdirTemp(parent, "slotfetch-bench")
	if err != nil {
		return err
	}
	b.dir = dir
	b.later(func() error {
		if b.keep {
			fmt.Fprintln(os.Stderr, "kept:", dir)
			return nil
		}
		return os.RemoveAll(dir)
	})
	at := func(name string) string { return filepath.Join(dir, name) }
	b.file, b.script, b.certFile, b.bothFile = at("file"), at("fetch.py"), at("server.crt"), at("server.pem")

	fmt.Fprintln(os.Stderr, "making the image")
	if b.image, err = makeImage(b.size * mib); err != nil {
		return err
	}
	b.later(b.image.remove)
	if err := makeCertificate(b.certFile, b.bothFile); err != nil {
		return err
	}
	text, err := os.ReadFile(b.certFile)
	if err != nil {
		return err
	}
	b.cert = string(text)
	if err := os.WriteFile(b.script, []byte(python), 0o644); err != nil {
		return err
	}
	b.limitMemory()
	if !b.short {
		if b.python, err = pythonWithRequests(); err != nil {
			b.leaveOut("Python", err)
		}
		if _, err := exec.LookPath("aria2c"); err != nil {
			b.leaveOut("aria2c", err)
		}
		b.aria = err == nil
	}
	// The first start makes the database and the first user, which takes memory that later ones do not take.
	first, err := startAgent(ctx, b.program, at("agent"), b.own, 0)
	if err != nil {
		return err
	}
	first.stop()
	b.agent, err = b.start(ctx, "agent", b.own, 0)
	return err
}

// start starts an agent that runs until the end.
func (b *bench) start(ctx context.Context, name string, g *group, connections int) (*agent, error) {
	a, err := startAgent(ctx, b.program, filepath.Join(b.dir, name), g, connections)
	if err != nil {
		return nil, err
	}
	b.later(func() error {
		a.stop()
		return nil
	})
	return a, nil
}

// limitMemory makes the groups, where it can.
func (b *bench) limitMemory() {
	for name, g := range map[string]**group{"agent": &b.own, "peers": &b.peers} {
		made, err := newGroup(name)
		if err != nil {
			b.leaveOut("memory control groups; peers may fill the page cache", err)
			b.own, b.peers = nil, nil
			return
		}
		b.later(made.remove)
		*g = made
	}
	if err := b.limit(b.memory); err != nil {
		b.leaveOut("the limit of memory", err)
		b.own, b.peers = nil, nil
	}
}

// limit gives each group so many MiB; 0: no limit.
func (b *bench) limit(mibs int64) error {
	if b.own == nil {
		return nil
	}
	return errors.Join(b.own.limit(mibs*mib), b.peers.limit(mibs*mib))
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
