package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
)

// localSocket is where the agent of this very machine listens.
const localSocket = "/run/slotfetch/api.sock"

// config is $XDG_CONFIG_HOME/slotfetch/config.toml.
type config struct {
	Default string                `toml:"default"`
	Boxes   map[string]configured `toml:"boxes"`
}

// configured is one [boxes.NAME] table.
type configured struct {
	Address string `toml:"address"`
	User    string `toml:"user"`
	CACert  string `toml:"cacert"`
}

// box is where to call and how the admin calls it.
type box struct {
	name   string // as given: a name from the configuration or an address
	host   string // lower case, IPv6 without brackets
	port   string
	socket string // path of a unix socket; then host and port are empty
	user   string
	cacert string
	// anyPort tells that no port was given.
	anyPort bool
}

func (b box) local() bool { return b.socket != "" }

// hostPort is the key of pins and what is dialled.
func (b box) hostPort() string { return net.JoinHostPort(b.host, b.port) }

// baseURL is what every path is appended to.
func (b box) baseURL() string {
	if b.local() {
		return "http://localhost"
	}
	host := b.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if b.port != "443" {
		host += ":" + b.port
	}
	return "https://" + host
}

// portHint is for when nobody or somebody else answers at the port.
func (b box) portHint() string {
	if !b.anyPort {
		return ""
	}
	return "No port is given, so it was 443; slotfetchd listens on 8443 where nobody has changed that."
}

// nameHint is for when the host is not known to the DNS: the name of a box may be misspelt.
func (b box) nameHint(dns *net.DNSError) string {
	c, err := loadConfig()
	if _, configured := c.Boxes[b.name]; err != nil || configured || !dns.IsNotFound {
		return ""
	}
	path, err := configFile()
	switch {
	case err != nil:
		return ""
	case len(c.Boxes) == 0:
		return fmt.Sprintf("No box is named so in %s either.", path)
	}
	return fmt.Sprintf("The boxes in %s are: %s.", path, strings.Join(sortedKeys(c.Boxes), ", "))
}

// String names the box in messages.
func (b box) String() string {
	switch {
	case b.local():
		return "the box at " + b.socket
	case b.name == b.host, b.name == b.hostPort(), strings.Contains(b.name, "://"):
		return strings.TrimPrefix(b.baseURL(), "https://")
	}
	return fmt.Sprintf("%s (%s)", b.name, strings.TrimPrefix(b.baseURL(), "https://"))
}

// configDir honours the XDG rule that a relative path counts as unset.
func configDir() (string, error) { return xdgDir("XDG_CONFIG_HOME", ".config") }

func configFile() (string, error) {
	dir, err := configDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "config.toml"), nil
}

// loadConfig reads the configuration strictly; a missing file is an empty one.
func loadConfig() (config, error) {
	var c config
	path, err := configFile()
	if err != nil {
		return c, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("cannot read the configuration: %w", err)
	}
	defer f.Close()
	err = toml.NewDecoder(f).DisallowUnknownFields().Decode(&c)
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		return c, usage(fmt.Sprintf("unknown key in %s:\n%s", path, strict.String()), "")
	}
	if bad, ok := errors.AsType[*toml.DecodeError](err); ok {
		return c, usage(fmt.Sprintf("cannot read %s:\n%s", path, bad.String()), "")
	}
	if err != nil {
		return c, usage(fmt.Sprintf("cannot read %s: %v", path, err), "")
	}
	return c, nil
}

// resolveBox finds the box to talk to: flag, environment, configuration, the socket of this machine.
func (a *app) resolveBox() (box, error) {
	c, err := loadConfig()
	if err != nil {
		return box{}, err
	}
	name := a.box
	if name == "" {
		name = os.Getenv("SLOTFETCH_BOX")
	}
	if name == "" {
		name = c.Default
	}
	if name == "" {
		if info, err := os.Stat(localSocket); err == nil && info.Mode()&fs.ModeSocket != 0 {
			name = "unix://" + localSocket
		}
	}
	if name == "" {
		return box{}, usage("no box is given", "Give one with --box HOST[:PORT] or $SLOTFETCH_BOX, or set \"default\" in the configuration file.")
	}
	b, err := c.lookup(name)
	if err != nil {
		return box{}, err
	}
	if a.cacert != "" {
		b.cacert = a.cacert
	}
	return b, nil
}

// lookup takes a name of the configuration or an address.
func (c config) lookup(name string) (box, error) {
	known, ok := c.Boxes[name]
	if !ok {
		return parseAddress(name)
	}
	if known.Address == "" {
		return box{}, usage(fmt.Sprintf("box %q has no address in the configuration", name), "Add: address = \"HOST:PORT\"")
	}
	b, err := parseAddress(known.Address)
	if err != nil {
		return box{}, err
	}
	b.name, b.user, b.cacert = name, known.User, known.CACert
	return b, nil
}

// parseAddress reads HOST[:PORT], https://HOST[:PORT][/] or unix:///PATH.
func parseAddress(s string) (box, error) {
	const forms = "Write HOST, HOST:PORT, https://HOST[:PORT] or unix:///PATH."
	bad := func(why string) (box, error) {
		return box{}, usage(fmt.Sprintf("bad box %q: %s", s, why), forms)
	}
	if path, ok := strings.CutPrefix(s, "unix://"); ok {
		if !filepath.IsAbs(path) {
			return bad("the path of the socket is not absolute")
		}
		return box{name: s, socket: filepath.Clean(path)}, nil
	}
	address := s
	if strings.Contains(s, "://") {
		u, err := url.Parse(s)
		switch {
		case err != nil:
			return bad("not a URL")
		case u.Scheme != "https":
			return bad("a box speaks https only")
		case u.User != nil:
			return box{}, usage("the box must not carry a user or a password", "Say who you are with: slotfetch login --user NAME")
		case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
			return bad("there is something after the host")
		}
		address = u.Host
	}
	host, port, anyPort := address, "443", true
	switch {
	case strings.HasPrefix(address, "[") && strings.HasSuffix(address, "]"):
		host = address[1 : len(address)-1]
	case net.ParseIP(address) != nil: // also IPv6 without brackets
	case strings.Contains(address, ":"):
		var err error
		anyPort = false
		if host, port, err = net.SplitHostPort(address); err != nil {
			return bad("not HOST:PORT")
		}
	}
	if host == "" || strings.HasPrefix(host, ".") || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`/\@?#"'`, r) }) {
		return bad("not a host name")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return bad("the port is not between 1 and 65535")
	}
	return box{name: s, host: strings.ToLower(host), port: strconv.FormatUint(n, 10), anyPort: anyPort}, nil
}

func (a *app) completeBoxes(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	c, err := loadConfig()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for name, b := range c.Boxes {
		names = append(names, cobra.CompletionWithDesc(name, b.Address))
	}
	slices.Sort(names)
	return names, cobra.ShellCompDirectiveNoFileComp
}
