package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// login is the command of that name with its flags.
type login struct {
	app          *app
	user         string
	passwordFile string
	pin          string
	firstUse     bool
}

func (a *app) loginCommand() *cobra.Command {
	l := &login{app: a}
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Log in to a box and keep the session",
		Long: `Log in to a box. The session is kept in a cookie file that only you can read and that
curl -b understands; it ends 20 minutes after its last use, and in any case after 12 hours.

The password is read from --password-file, else asked for on the terminal, else taken
from the first line of stdin. It is never given on the command line, because other users
could see it there, and it is never stored.

The certificate of the box must verify. When it does not, its fingerprint is shown at the
first contact: compare it with the one that slotfetchd logs on the box at every start
(journalctl -u slotfetchd). Scripts give it with --pin.`,
		Example: `  slotfetch login -H 10.0.0.5:8443 --user admin
  slotfetch login -H lab1 --password-file ~/.lab1-password --pin SHA256:5D:41:…
  pass show lab1 | slotfetch login -H lab1 --user admin`,
		Args: wants(0, 0),
		RunE: a.act(l.run),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&l.user, "user", "u", "", "log in as `NAME` (default: user of the box in the configuration)")
	f.StringVar(&l.passwordFile, "password-file", "", "read the password from the first line of `FILE`; - is stdin")
	f.StringVar(&l.pin, "pin", "", "trust only the certificate with this SHA-256 `FINGERPRINT`, and remember it")
	f.BoolVar(&l.firstUse, "trust-on-first-use", false, "at the first contact, trust the certificate without a question")
	cmd.MarkFlagsMutuallyExclusive("pin", "trust-on-first-use")
	return cmd
}

// loggedIn is what login -o json prints.
type loggedIn struct {
	Box     string     `json:"box"`
	User    string     `json:"user"`
	Expires *time.Time `json:"expires"`
	Cookies string     `json:"cookies"`
}

func (l *login) run(ctx context.Context, _ []string) error {
	a := l.app
	b, err := a.resolveBox()
	if err != nil {
		return err
	}
	if b.local() {
		a.note("No login is needed over %s: the agent knows who you are.", b.socket)
		return nil
	}
	if l.user == "" {
		l.user = b.user
	}
	if a.curl {
		return a.printLoginCurl(b, l.user)
	}
	c, err := a.openBox(b)
	if err != nil {
		return err
	}
	defer c.close()
	if err := l.meet(ctx, c); err != nil {
		return err
	}
	password, err := l.credentials(ctx, b)
	if err != nil {
		return err
	}
	s, err := c.login(ctx, l.user, password)
	if err != nil {
		return err
	}
	return l.store(b, s)
}

// meet settles whether the box is trusted before anybody types a password.
func (l *login) meet(ctx context.Context, c *client) error {
	if l.pin != "" {
		want, err := parseFingerprint(l.pin)
		if err != nil {
			return err
		}
		c.verifier.want = want
	}
	if l.firstUse {
		c.firstUse = firstUsePin
	}
	if l.pin != "" && !l.app.insecure {
		chain, err := c.certificate(ctx)
		if err != nil {
			return err
		}
		if err := c.remember(chain[0]); err != nil {
			return err
		}
	}
	_, err := c.call(ctx, http.MethodGet, pathMethods, nil, nil)
	if f, ok := errors.AsType[*failure](err); ok && f.status != 0 && !f.temporary {
		return nil // It answers; whatever it thinks of this question, the login will tell.
	}
	return err
}

// credentials completes user and password.
func (l *login) credentials(ctx context.Context, b box) (string, error) {
	a := l.app
	if l.user == "" {
		if !a.canAsk() {
			return "", usage("no user is given", "Give one with --user NAME.")
		}
		name, err := a.ask(ctx, fmt.Sprintf("User on %s: ", b))
		if err != nil {
			return "", fmt.Errorf("cannot read the user: %w", err)
		}
		l.user = strings.TrimSpace(name)
	}
	if l.user == "" || strings.Contains(l.user, ":") {
		return "", usage("a user name is not empty and has no colon in it", "")
	}
	password, err := l.password(ctx, b)
	if err != nil {
		return "", err
	}
	if password == "" {
		return "", usage("the password is empty", "")
	}
	return password, nil
}

func (l *login) password(ctx context.Context, b box) (string, error) {
	a := l.app
	switch {
	case l.passwordFile != "" && l.passwordFile != "-":
		f, err := os.Open(l.passwordFile)
		if err != nil {
			return "", usage(fmt.Sprintf("cannot read the password: %v", err), "")
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
			a.note("note: other users can read %s; mend it with: chmod 600 %s", l.passwordFile, l.passwordFile)
		}
		return firstLine(f, l.passwordFile)
	case l.passwordFile == "" && isTerminal(a.stdin):
		if a.noInput {
			return "", usage("no password is given", "Give it with --password-file FILE, or on stdin.")
		}
		password, err := a.askSecret(ctx, fmt.Sprintf("Password of %s on %s: ", l.user, b))
		if err != nil && ctx.Err() == nil {
			return "", fmt.Errorf("cannot read the password: %w", err)
		}
		return password, err
	}
	return firstLine(a.stdin, "stdin")
}

func firstLine(r io.Reader, name string) (string, error) {
	line, err := readLine(r)
	if errors.Is(err, io.EOF) {
		return "", usage("no password on the first line of "+name, "Give it with --password-file FILE, or on stdin.")
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the password from %s: %w", name, err)
	}
	return line, nil
}

// login asks for a new session. The client has none yet: with a live one the agent would make no new one.
func (c *client) login(ctx context.Context, user, password string) (session, error) {
	c.session = ""
	req, err := c.request(ctx, http.MethodGet, pathLogin, nil)
	if err != nil {
		return session{}, err
	}
	req.SetBasicAuth(user, password)
	resp, err := c.perform(req, nil)
	if f, ok := errors.AsType[*failure](err); ok && f.status == http.StatusUnauthorized {
		f.hint = "Check user and password. After 20 failures within 10 minutes the box refuses this user, or this address, for 10 minutes."
		return session{}, f
	}
	if err != nil {
		return session{}, err
	}
	s, ok := sessionOf(resp, c.app.now())
	if !ok {
		return session{}, c.stranger("it gave no session")
	}
	return s, nil
}

func (l *login) store(b box, s session) error {
	a := l.app
	j, err := jarFor(b)
	if err != nil {
		return err
	}
	if err := j.save(s); err != nil {
		return err
	}
	if os.Getenv("SLOTFETCH_SESSION") != "" {
		a.note("note: $SLOTFETCH_SESSION is set and goes before this login.")
	}
	doc := loggedIn{Box: b.name, User: l.user, Cookies: j.path}
	until := ""
	if !s.expires.IsZero() {
		expires := s.expires.UTC().Truncate(time.Second)
		doc.Expires = &expires
		until = ", until " + s.expires.Local().Format("2006-01-02 15:04") + " or 20 minutes without use"
	}
	return a.show(view{doc: doc, ids: []string{l.user}, text: func(t *page) {
		t.say("Logged in to %s as %s%s.", b, l.user, until)
	}})
}

func (a *app) logoutCommand() *cobra.Command {
	var local bool
	cmd := &cobra.Command{
		Use:   "logout",
		Short: "End the session on a box and forget it",
		Long: `End the session on the box and remove it from this machine.

When the box cannot be reached the session stays, unless --local is given: then it is only
removed from this machine, and ends on the box after 20 minutes without use.`,
		Example: "  slotfetch logout -H lab1",
		Args:    wants(0, 0),
		RunE:    a.act(func(ctx context.Context, _ []string) error { return a.logout(ctx, local) }),
	}
	cmd.Flags().BoolVar(&local, "local", false, "remove the session from this machine only")
	return cmd
}

func (a *app) logout(ctx context.Context, local bool) error {
	b, err := a.resolveBox()
	if err != nil {
		return err
	}
	if b.local() {
		a.note("There is no login over %s.", b.socket)
		return nil
	}
	j, err := jarFor(b)
	if err != nil {
		return err
	}
	if local {
		return j.remove()
	}
	c, err := a.open()
	if err != nil {
		return err
	}
	defer c.close()
	if a.curl {
		return c.printCurl(http.MethodDelete, pathLogin, nil)
	}
	if c.session == "" {
		a.note("Not logged in to %s.", b)
		return j.remove()
	}
	_, err = c.call(ctx, http.MethodDelete, pathLogin, nil, nil)
	if f, ok := errors.AsType[*failure](err); ok && f.status == http.StatusUnauthorized {
		err = nil // It had ended already.
	}
	if err != nil {
		return err
	}
	a.note("Logged out of %s.", b)
	return j.remove()
}

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "whoami",
		Short:   "Show as whom and with which role you are logged in",
		Long:    "Show as whom you are logged in, and with which role: a viewer looks, an operator also\nfetches, cancels and empties slots, an admin may do everything.",
		Example: "  slotfetch whoami\n  slotfetch whoami -o json | jq .endpoints",
		Args:    wants(0, 0),
		RunE:    a.act(a.whoami),
	}
}

func (a *app) whoami(ctx context.Context, _ []string) error {
	c, err := a.open()
	if err != nil {
		return err
	}
	defer c.close()
	if a.curl {
		return c.printCurl(http.MethodGet, pathUserInfo, nil)
	}
	u, err := c.userInfo(ctx)
	if err != nil {
		return err
	}
	return a.show(view{doc: u, ids: []string{u.User.Name}, text: func(t *page) {
		role := u.User.Role
		if role == "" {
			role = "unknown"
		}
		t.line("%s, role %s, on %s", u.User.Name, role, c.box)
	}})
}
