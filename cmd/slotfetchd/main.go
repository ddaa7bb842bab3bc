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
	"syscall"

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
	var file string
	root := &cobra.Command{
		Use:           "slotfetchd",
		Short:         "The agent that brings firmware images from URLs into verified slots",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&file, "config", defaultConfig, "configuration `file`; drop-ins are read from conf.d beside it")
	load := func(cmd *cobra.Command) (config, error) {
		return loadConfig(file, cmd.Flags().Changed("config"))
	}
	serve := &cobra.Command{
		Use: "serve", Short: "Run the agent", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), cfg, cmd.ErrOrStderr())
		},
	}
	check := &cobra.Command{
		Use: "check", Short: "Tell whether the configuration is sound", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := load(cmd); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "The configuration is sound.")
			return nil
		},
	}
	configCmd := &cobra.Command{Use: "config", Short: "Look at the configuration"}
	configCmd.AddCommand(check)
	versionCmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), "slotfetchd", version) },
	}
	root.AddCommand(serve, configCmd, userCommand(load), versionCmd)
	return root
}

// serve runs the agent until a signal; SIGHUP loads the certificate again.
func serve(ctx context.Context, cfg config, stderr io.Writer) error {
	log := slog.New(slog.NewTextHandler(stderr, nil))
	d, err := openDaemon(cfg, log)
	if err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	go func() {
		for range hup {
			if err := d.cert.reload(); err != nil {
				log.Error("reload failed; the old certificate stays", "err", err)
			} else {
				log.Info("reloaded", "certificate", d.cert.fingerprint())
			}
		}
	}()
	err = d.serve(ctx)
	log.Info("agent stopping")
	return errors.Join(err, d.close())
}
