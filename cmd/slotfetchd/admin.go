package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"slotfetch/store"
)

// loader reads the configuration as the flags of a command say, and checks it.
type loader func(*cobra.Command) (config, error)

// configCommand looks at the configuration.
func configCommand(load func(*cobra.Command) (settings, error)) *cobra.Command {
	root := group("config", "Look at the configuration")
	check := &cobra.Command{
		Use: "check", Short: "Tell whether the configuration is sound", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load(cmd)
			if err == nil {
				err = s.check()
			}
			if err == nil && s.API.TLSCert != "" {
				_, err = openCertificate(s.config)
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "The configuration is sound.")
			return nil
		},
	}
	var origin bool
	show := &cobra.Command{
		Use: "show", Short: "Print the configuration as the agent would use it, without secrets", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load(cmd)
			if err != nil {
				return err
			}
			text, err := s.show(origin)
			if err != nil {
				return err
			}
			fmt.Fprint(cmd.OutOrStdout(), text)
			return s.check()
		},
	}
	show.Flags().BoolVar(&origin, "origin", false, "say behind each value where it is from")
	root.AddCommand(check, show)
	return root
}

// dbCommand cares for the database, also while the agent runs.
func dbCommand(load loader) *cobra.Command {
	root := group("db", "Care for the database")
	with := func(f func(cmd *cobra.Command, s *store.Store, args []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			s, err := openDatabase(cmd, load)
			if err != nil {
				return err
			}
			defer s.Close() //nolint:errcheck // nothing was changed
			return f(cmd, s, args)
		}
	}
	check := &cobra.Command{
		Use: "check", Short: "Read the whole database and tell whether it is sound", Args: cobra.NoArgs,
		RunE: with(func(cmd *cobra.Command, s *store.Store, _ []string) error {
			if err := s.Check(); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "The database is sound.")
			return nil
		}),
	}
	backup := &cobra.Command{
		Use: "backup FILE", Short: "Write a consistent copy to FILE, which must not exist", Args: cobra.ExactArgs(1),
		Long: `Write a consistent copy of the database to FILE, which must not exist. It holds users with their hashed
passwords and the queue; credentials of sources in it can be read only with the agent's seal.key, slots are not in it.
To restore: stop the agent, remove slotfetch.db-wal and slotfetch.db-shm, put the copy in place of slotfetch.db with
the same owner, start the agent.`,
		RunE: with(func(cmd *cobra.Command, s *store.Store, args []string) error {
			if err := s.Backup(args[0]); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "The database is backed up to", args[0])
			return nil
		}),
	}
	root.AddCommand(check, backup)
	return root
}

// openDatabase opens the agent's database, which has to be there.
func openDatabase(cmd *cobra.Command, load loader) (*store.Store, error) {
	cfg, err := load(cmd)
	if err != nil {
		return nil, err
	}
	return store.Open(databaseFile(cfg), store.Options{MustExist: true})
}

func databaseFile(cfg config) string { return filepath.Join(cfg.StateDir, "slotfetch.db") }
