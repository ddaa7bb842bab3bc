// Command slotfetch is the client of slotfetchd. It tells a box to fetch a firmware image into a slot, follows the
// fetch to its end, and looks after fetches and slots. It speaks the SPS dialect over HTTPS, or over the box's own
// unix socket, and keeps its login in a cookie jar that curl can read.
//
// Data goes to stdout; progress, notes, questions and errors go to stderr. The exit codes are in exit.go.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// version is set by -ldflags "-X main.version=…".
var version = "dev"

func main() {
	cobra.EnableCommandSorting = false // the help lists them in the order of their use
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the default comes back, so that a second Ctrl-C ends the program at once.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program without the process around it; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, now: time.Now}
	root := a.rootCommand()
	// Given nil, cobra would read the arguments of the process.
	root.SetArgs(append([]string{}, args...))
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.InitDefaultCompletionCmd()
	if c, _, err := root.Find([]string{"completion"}); err == nil { // it would answer an unknown shell with its help, and 0
		c.Args, c.RunE = wantsCommand, func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	if err := root.ExecuteContext(ctx); err != nil {
		return a.report(err)
	}
	return exitOK
}

// app holds the streams and the global flags of one run.
type app struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	now    func() time.Time

	box      string
	output   string
	progress string
	noInput  bool
	quiet    bool
	verbose  bool
	curl     bool
	timeout  time.Duration
	cacert   string
	insecure bool
}

const (
	outputForms   = "table, json, ndjson, yaml, id"
	progressForms = "auto, bar, line, json, none"
)

const rootLong = `slotfetch tells a box that runs slotfetchd to fetch a firmware image into one of its slots.

The box downloads the image itself, checks its SHA-256 and installs it into a slot;
slotfetch starts that, follows it, and looks after fetches and slots. A fetch goes on
when slotfetch is stopped or the connection breaks.

Which box: --box, else $SLOTFETCH_BOX, else "default" in the configuration file,
else the socket /run/slotfetch/api.sock if this machine is a box itself.

Exit codes: 0 ok, 1 failed, 2 usage, 3 box not reachable or not trusted, 4 login needed
or not allowed, 5 not found, 6 the state forbids it, 7 wrong SHA-256, 8 still going at
--timeout, 9 no space or no slot, 130 interrupted.

Environment: SLOTFETCH_BOX (the box), SLOTFETCH_SESSION (a session, instead of the stored
login), NO_COLOR (no colours).

Files: $XDG_CONFIG_HOME/slotfetch/config.toml (named boxes, see below),
$XDG_STATE_HOME/slotfetch/cookies/ (logins, usable with curl -b),
$XDG_STATE_HOME/slotfetch/known_hosts.toml (pinned certificates).

  default = "lab1"
  [boxes.lab1]
  address = "10.0.0.5:8443"
  user    = "admin"         # for login, optional
  cacert  = "/etc/lab.pem"  # as --cacert, optional`

const rootExample = `  slotfetch login -H 10.0.0.5:8443 --user admin
  slotfetch fetch https://example.com/sps.iso --sha256 SHA256SUMS
  slotfetch ls
  slotfetch slots`

// rootCommand builds the command tree afresh, so that runs share nothing.
func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:               "slotfetch",
		Short:             "Fetch firmware images into the slots of a box",
		Long:              rootLong,
		Example:           rootExample,
		Version:           version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              wantsCommand,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.checkFlags() },
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("slotfetch {{.Version}}\n")
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(badFlag)
	a.globalFlags(root)
	root.AddGroup(
		&cobra.Group{ID: "fetches", Title: "Fetches:"},
		&cobra.Group{ID: "slots", Title: "Slots:"},
		&cobra.Group{ID: "upgrades", Title: "Upgrades:"},
		&cobra.Group{ID: "access", Title: "Access to a box:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("fetches", a.fetchCommand(), a.probeCommand(), a.lsCommand(), a.showCommand(), a.attemptsCommand(), a.watchCommand(), a.waitCommand(),
		a.pauseCommand(), a.resumeCommand(), a.changeCommand(), a.cancelCommand(), a.pruneCommand())
	add("slots", a.slotsCommand(), a.uploadCommand())
	add("upgrades", a.testCommand(), a.upgradeCommand(), a.rollbackCommand(), a.pendingCommand(), a.historyCommand())
	add("access", a.loginCommand(), a.logoutCommand(), a.whoamiCommand(), a.trustCommand())
	root.AddCommand(a.versionCommand())
	return root
}

func (a *app) globalFlags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.SortFlags = false
	f.StringVarP(&a.box, "box", "H", "", "the box: `NAME` from the configuration, HOST[:PORT], https://HOST[:PORT] or unix:///PATH")
	f.StringVarP(&a.output, "output", "o", "table", "`FORM` of the data on stdout: "+outputForms)
	f.StringVar(&a.progress, "progress", "auto", "`FORM` of the progress on stderr: "+progressForms)
	f.DurationVar(&a.timeout, "timeout", 0, "when waiting for a fetch, stop after `DURATION` (90s, 1h30m) with exit code 8; the fetch goes on")
	f.BoolVar(&a.noInput, "no-input", false, "never ask; fail where a question would be asked")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print data and errors only")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "print each request and its status to stderr")
	f.BoolVar(&a.curl, "curl", false, "print the call as a curl command line and do not perform it")
	f.StringVar(&a.cacert, "cacert", "", "accept only certificates signed by the CAs in `FILE` (PEM)")
	f.BoolVar(&a.insecure, "insecure", false, "do not check the certificate of the box (dangerous)")
	complete := func(flag string, values string) {
		_ = root.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(strings.Split(values, ", "), cobra.ShellCompDirectiveNoFileComp))
	}
	complete("output", outputForms)
	complete("progress", progressForms)
	_ = root.RegisterFlagCompletionFunc("box", a.completeBoxes)
}

// checkFlags refuses what no command can work with, before anything is done.
func (a *app) checkFlags() error {
	if !slices.Contains(strings.Split(outputForms, ", "), a.output) {
		bad := a.output
		a.output = "table"
		return usage(fmt.Sprintf("unknown output form %q", bad), "Choose one of: "+outputForms+".")
	}
	if !slices.Contains(strings.Split(progressForms, ", "), a.progress) {
		return usage(fmt.Sprintf("unknown progress form %q", a.progress), "Choose one of: "+progressForms+".")
	}
	if a.timeout < 0 {
		return usage("--timeout must not be negative", "")
	}
	if a.insecure && a.cacert != "" {
		return usage("--insecure and --cacert exclude each other", "")
	}
	return nil
}

// act makes a cobra RunE of f: what f returns without an exit code of its own is an ordinary failure.
func (a *app) act(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := f(cmd.Context(), args)
		if err == nil {
			return nil
		}
		return asFailure(err)
	}
}
