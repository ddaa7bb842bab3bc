package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"slotfetch/auth"
	"slotfetch/store"
)

const minPassword = 8

// userCommand manages users in the database, also while the agent runs.
func userCommand(load loader) *cobra.Command {
	user := group("user", "Manage who may log in")
	with := func(f func(cmd *cobra.Command, s *store.Store, by store.Actor, args []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			s, err := openDatabase(cmd, load)
			if err != nil {
				return err
			}
			defer s.Close()
			err = f(cmd, s, store.Actor{Name: "slotfetchd user", Address: "local"}, args)
			if errors.Is(err, store.ErrNotFound) {
				return fmt.Errorf("there is no user %q", args[0])
			}
			return err
		}
	}
	var role string
	add := &cobra.Command{Use: "add NAME", Short: "Add a user; the password is read from the terminal or standard input", Args: cobra.ExactArgs(1),
		RunE: with(func(cmd *cobra.Command, s *store.Store, by store.Actor, args []string) error {
			if err := checkName(args[0]); err != nil {
				return err
			}
			if !auth.ValidRole(role) {
				return badRole(role)
			}
			password, err := readPassword(cmd)
			if err != nil {
				return err
			}
			err = s.AddUser(store.User{Name: args[0], PasswordHash: auth.HashPassword(password), Role: role}, by)
			if errors.Is(err, store.ErrExists) {
				return fmt.Errorf("there is a user %q already: change it with passwd or role", args[0])
			}
			return err
		})}
	add.Flags().StringVar(&role, "role", "viewer", "admin, operator or viewer")
	passwd := &cobra.Command{Use: "passwd NAME", Short: "Change a password; it ends the user's sessions", Args: cobra.ExactArgs(1),
		RunE: with(func(cmd *cobra.Command, s *store.Store, by store.Actor, args []string) error {
			password, err := readPassword(cmd)
			if err != nil {
				return err
			}
			return s.SetPassword(args[0], auth.HashPassword(password), by)
		})}
	roleCmd := &cobra.Command{Use: "role NAME ROLE", Short: "Make a user admin, operator or viewer", Args: cobra.ExactArgs(2),
		RunE: with(func(_ *cobra.Command, s *store.Store, by store.Actor, args []string) error {
			if !auth.ValidRole(args[1]) {
				return badRole(args[1])
			}
			return s.SetRole(args[0], args[1], by)
		})}
	list := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the users", Args: cobra.NoArgs,
		RunE: with(func(cmd *cobra.Command, s *store.Store, _ store.Actor, _ []string) error {
			users, err := s.Users(cmd.Context())
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tROLE\tSINCE\tSTATE")
			for _, u := range users {
				state := map[bool]string{true: "disabled", false: "enabled"}[u.Disabled]
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", u.Name, u.Role, u.CreatedAt.UTC().Format("2006-01-02"), state)
			}
			return w.Flush()
		})}
	rm := &cobra.Command{Use: "rm NAME", Short: "Remove a user and the user's sessions", Args: cobra.ExactArgs(1),
		RunE: with(func(_ *cobra.Command, s *store.Store, by store.Actor, args []string) error {
			return s.RemoveUser(args[0], by)
		})}
	disable := &cobra.Command{Use: "disable NAME", Short: "Shut a user out, which ends the user's sessions", Args: cobra.ExactArgs(1),
		RunE: with(func(_ *cobra.Command, s *store.Store, by store.Actor, args []string) error {
			return s.SetDisabled(args[0], true, by)
		})}
	enable := &cobra.Command{Use: "enable NAME", Short: "Let a user in again", Args: cobra.ExactArgs(1),
		RunE: with(func(_ *cobra.Command, s *store.Store, by store.Actor, args []string) error {
			return s.SetDisabled(args[0], false, by)
		})}
	user.AddCommand(add, passwd, roleCmd, disable, enable, list, rm)
	return user
}

func badRole(role string) error {
	return fmt.Errorf("%q is no role: use admin, operator or viewer", role)
}

func checkName(name string) error {
	if name == "" || len(name) > 64 || strings.Contains(name, ":") || strings.ContainsFunc(name, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }) {
		return fmt.Errorf("%q is no user name: use 1 to 64 bytes without blanks and colons", name)
	}
	return nil
}

// readPassword asks on a terminal, else takes one line of standard input. It is never an argument, which every
// process could see.
func readPassword(cmd *cobra.Command) (string, error) {
	var password string
	if f, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprint(cmd.ErrOrStderr(), "Password: ")
		raw, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		if err != nil {
			return "", fmt.Errorf("cannot read password: %w", err)
		}
		password = string(raw)
	} else {
		line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		if err != nil && err != io.EOF {
			return "", fmt.Errorf("cannot read password: %w", err)
		}
		password = strings.TrimRight(line, "\r\n")
	}
	if len(password) < minPassword || strings.ContainsFunc(password, unicode.IsControl) {
		return "", fmt.Errorf("a password needs at least %d bytes and no control characters", minPassword)
	}
	return password, nil
}
