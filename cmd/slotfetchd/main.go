// Command slotfetchd is the on-box agent: it brings firmware images from URLs into verified slots.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"slotfetch/store"
)

// version is set by the linker.
var version = "dev"

// exitState is for a database that a newer version wrote: starting again cannot help, and the unit knows it.
const exitState = 78

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(stderr, "slotfetchd:", err)
		if errors.Is(err, store.ErrNewer) {
			return exitState
		}
		return 1
	}
	return 0
}

func rootCommand() *cobra.Command {
	src := sources{vendor: vendorConfig, env: os.Environ()}
	root := &cobra.Command{
		Use:   "slotfetchd",
		Short: "The agent that brings firmware images from URLs into verified slots",
		Long: `slotfetchd brings firmware images from URLs into verified slots.

Configuration, later wins: /usr/lib/slotfetch/*.toml, the file of --config, conf.d/*.toml beside it, environment
variables such as SLOTFETCH_SLOTS__COUNT=3, --set slots.count=3. "slotfetchd config show --origin" shows the outcome.`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&src.file, "config", defaultConfig, "configuration `file`; drop-ins are read from conf.d beside it")
	root.PersistentFlags().StringArrayVar(&src.set, "set", nil, "set one `section.key=value` of the configuration; may be repeated")
	settings := func(cmd *cobra.Command) (settings, error) {
		src.asked = cmd.Flags().Changed("config")
		return loadSettings(src)
	}
	load := func(cmd *cobra.Command) (config, error) {
		s, err := settings(cmd)
		if err == nil {
			err = s.check()
		}
		return s.config, err
	}
	serve := &cobra.Command{
		Use: "serve", Short: "Run the agent", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd)
			if err != nil {
				return err
			}
			log, backlog := newLog(cmd.ErrOrStderr())
			defer backlog.Close()
			return serve(cmd.Context(), cfg, log)
		},
	}
	versionCmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), "slotfetchd", version) },
	}
	root.AddCommand(serve, configCommand(settings), userCommand(load), dbCommand(load), activateCommand(load), versionCmd)
	return root
}

// serve runs the agent until a signal; SIGHUP loads the certificate again.
func serve(ctx context.Context, cfg config, log *slog.Logger) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50) // the heap is small and mostly idle; what it does not grow by is the appliance's
	}
	d, err := openDaemon(cfg, log)
	if err != nil {
		return err
	}
	tell := newNotifier(log)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	var group sync.WaitGroup
	helpers, stop := context.WithCancel(ctx)
	group.Go(func() { tell.status(helpers, d.fetch) })
	group.Go(func() { tell.watchdog(helpers, d.health) })
	group.Go(func() {
		for {
			select {
			case <-hup:
				tell.reloading(d.reload)
			case <-helpers.Done():
				return
			}
		}
	})
	tell.send(systemd.SdNotifyReady)
	err = d.serve(ctx)
	tell.send(systemd.SdNotifyStopping)
	log.Info("agent stopping")
	stop()
	group.Wait()
	return errors.Join(err, d.close())
}

// group is a command that only holds others. Without RunE cobra would help, and succeed, where one is misspelt.
func group(name, short string) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
}
