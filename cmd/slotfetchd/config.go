package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"time"

	"slotfetch/api"
	"slotfetch/fetch"
	"slotfetch/fetch/source"
)

// config is the whole configuration; slotfetchd.conf(5) describes each key. Only this package reads it.
type config struct {
	StateDir string       `toml:"state_dir"`
	API      apiConfig    `toml:"api"`
	Local    localConfig  `toml:"local"`
	Slots    slotsConfig  `toml:"slots"`
	Fetch    fetchConfig  `toml:"fetch"`
	Egress   egressConfig `toml:"egress"`
	Proxy    proxyConfig  `toml:"proxy"`
	Info     infoConfig   `toml:"info"`
	Trust    trustConfig  `toml:"trust"`

	Upgrade  upgradeConfig  `toml:"upgrade"`
	Activate activateConfig `toml:"activate"`
	Ontap    ontapConfig    `toml:"ontap"`
}

type apiConfig struct {
	Listen  string `toml:"listen"`
	TLSCert string `toml:"tls_cert"`
	TLSKey  string `toml:"tls_key"`

	Connections           int `toml:"connections"`
	ConnectionsPerAddress int `toml:"connections_per_address"`
}

type localConfig struct {
	Socket string `toml:"socket"`
}

type slotsConfig struct {
	Dir           string   `toml:"dir"`
	First         int      `toml:"first"`
	Count         int      `toml:"count"`
	Reserve       int64    `toml:"reserve"`
	RequireISO    bool     `toml:"require_iso"`
	VersionFile   string   `toml:"version_file"`
	ManifestFile  string   `toml:"manifest_file"`
	ScrubInterval optional `toml:"scrub_interval"`
	ScrubRate     int64    `toml:"scrub_rate"`
	Evict         string   `toml:"evict"`
}

type fetchConfig struct {
	Workers      int      `toml:"workers"`
	Connections  int      `toml:"connections"`
	MaxSize      int64    `toml:"max_size"`
	FileRoots    []string `toml:"file_roots"`
	IdleTimeout  duration `toml:"idle_timeout"`
	RetryRounds  int      `toml:"retry_rounds"`
	RetryInitial duration `toml:"retry_initial"`
	RetryMax     duration `toml:"retry_max"`
	RetryKeep    optional `toml:"retry_keep"`
	Deadline     optional `toml:"deadline"`
	MaxTraffic   float64  `toml:"max_traffic"`
	ResumeVerify string   `toml:"resume_verify"`
	RateLimit    int64    `toml:"rate_limit"`
	Window       window   `toml:"window"`
	KeepAge      optional `toml:"keep_age"`
	KeepCount    int      `toml:"keep_count"`

	CheckpointBytes    int64    `toml:"checkpoint_bytes"`
	CheckpointInterval duration `toml:"checkpoint_interval"`
}

type egressConfig struct {
	Allow []prefix `toml:"allow"`
	Deny  []prefix `toml:"deny"`
}

func (e egressConfig) policy() source.Egress {
	plain := func(list []prefix) (out []netip.Prefix) {
		for _, p := range list {
			out = append(out, netip.Prefix(p))
		}
		return out
	}
	return source.Egress{Allow: plain(e.Allow), Deny: plain(e.Deny)}
}

type proxyConfig struct {
	HTTP    string `toml:"http"`
	HTTPS   string `toml:"https"`
	NoProxy string `toml:"no_proxy"`
}

type infoConfig struct {
	Nickname    string `toml:"nickname"`
	SupportLink string `toml:"support_link"`
}

type upgradeConfig struct {
	AllowDowngrade   bool `toml:"allow_downgrade"`
	RequireCommitLog bool `toml:"require_commit_log"`

	Products []string `toml:"products"`
	Versions []string `toml:"versions"`

	TestHooks       string   `toml:"test_hooks"`
	TestHookTimeout duration `toml:"test_hook_timeout"`
}

type activateConfig struct {
	Hooks         string   `toml:"hooks"`
	HookTimeout   duration `toml:"hook_timeout"`
	HealthTimeout duration `toml:"health_timeout"`
	StateDir      string   `toml:"state_dir"`
	BootIDFile    string   `toml:"boot_id_file"`
	CmdlineFile   string   `toml:"cmdline_file"`
}

// prefix is a netip.Prefix; an address without a length stands for itself alone.
type prefix netip.Prefix

func (p *prefix) UnmarshalText(text []byte) error {
	v, err := netip.ParsePrefix(string(text))
	if a, bad := netip.ParseAddr(string(text)); bad == nil && a.Zone() == "" {
		v, err = a.Prefix(a.BitLen())
	}
	if err != nil {
		return fmt.Errorf("%q is no address or prefix, such as 10.0.0.5, 10.0.0.0/8 or fd00::/8", text)
	}
	*p = prefix(v)
	return nil
}

// MarshalText writes the form that UnmarshalText reads.
func (p prefix) MarshalText() ([]byte, error) { return netip.Prefix(p).MarshalText() }

// window is a fetch.Window.
type window fetch.Window

func (w *window) UnmarshalText(text []byte) error {
	v, err := fetch.ParseWindow(string(text))
	if err != nil {
		return fmt.Errorf("%q: %w", text, err)
	}
	*w = window(v)
	return nil
}

// MarshalText writes the form that UnmarshalText reads.
func (w window) MarshalText() ([]byte, error) { return []byte(fetch.Window(w).String()), nil }

// duration is a time.Duration written as "90s".
type duration time.Duration

func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v <= 0 {
		return fmt.Errorf("%q is no duration above zero, such as 30s or 5m", text)
	}
	*d = duration(v)
	return nil
}

// optional is a duration that may be "", for none.
type optional time.Duration

func (o *optional) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*o = 0
		return nil
	}
	return (*duration)(o).UnmarshalText(text)
}

// MarshalText writes the form that UnmarshalText reads.
func (o optional) MarshalText() ([]byte, error) {
	if o == 0 {
		return nil, nil
	}
	return duration(o).MarshalText()
}

// MarshalText writes the form that UnmarshalText reads.
func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func defaults() config {
	return config{
		StateDir: "/var/lib/slotfetch",
		API:      apiConfig{Listen: ":8443", Connections: api.MaxConns, ConnectionsPerAddress: api.MaxConnsAddress},
		Local:    localConfig{Socket: "/run/slotfetch/api.sock"},
		Slots:    slotsConfig{First: 1, Count: 5, Reserve: 64 << 20, ScrubInterval: optional(168 * time.Hour), ScrubRate: 20 << 20, Evict: "never"},
		Fetch: fetchConfig{Workers: 1, IdleTimeout: duration(time.Minute), RetryRounds: 10,
			RetryInitial: duration(time.Second), RetryMax: duration(2 * time.Minute), RetryKeep: optional(time.Hour), MaxTraffic: 5, ResumeVerify: "unclean",
			CheckpointBytes: 128 << 20, CheckpointInterval: duration(10 * time.Second)},
		Upgrade: upgradeConfig{TestHooks: "/usr/lib/slotfetch/test.d", TestHookTimeout: duration(time.Minute)},
		Activate: activateConfig{Hooks: "/usr/lib/slotfetch/hooks/null", HookTimeout: duration(5 * time.Minute), HealthTimeout: duration(5 * time.Minute),
			StateDir: "/var/lib/slotfetch-activate", BootIDFile: "/proc/sys/kernel/random/boot_id", CmdlineFile: "/proc/cmdline"},
		Ontap: ontapConfig{Enabled: true, RequireChecksum: true, Version: "9.16.1"},
	}
}

var resumeVerify = map[string]fetch.ResumeVerify{"unclean": fetch.VerifyUnclean, "always": fetch.VerifyAlways, "never": fetch.VerifyNever}

// check finds everything that is wrong at once.
func (c config) check() error {
	var errs []error
	want := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	want(filepath.IsAbs(c.StateDir), "state_dir must be an absolute path, not %q", c.StateDir)
	want(filepath.IsAbs(c.Slots.Dir), "slots.dir must be an absolute path, not %q", c.Slots.Dir)
	want(c.Slots.Count >= 1 && c.Slots.Count <= 64, "slots.count must be between 1 and 64, not %d", c.Slots.Count)
	want(c.Slots.First >= 0 && c.Slots.First <= 1000, "slots.first must be between 0 and 1000, not %d", c.Slots.First)
	want(c.Slots.Reserve >= 0, "slots.reserve must not be negative")
	c.checkCare(want)
	c.Ontap.check(want)
	_, kerr := c.Trust.policy(c.Upgrade)
	want(kerr == nil, "%w", kerr)
	want(c.Fetch.Workers >= 1 && c.Fetch.Workers <= 16, "fetch.workers must be between 1 and 16, not %d", c.Fetch.Workers)
	want(c.Fetch.Connections >= 0 && c.Fetch.Connections <= 16, "fetch.connections must be between 0 and 16, not %d", c.Fetch.Connections)
	want(c.Fetch.MaxSize >= 0, "fetch.max_size must not be negative")
	want(c.Fetch.MaxTraffic >= 1 || c.Fetch.MaxTraffic == 0, "fetch.max_traffic must be at least 1, or 0 for no bound, not %g", c.Fetch.MaxTraffic)
	_, known := resumeVerify[c.Fetch.ResumeVerify]
	want(known, "fetch.resume_verify must be unclean, always or never, not %q", c.Fetch.ResumeVerify)
	want(c.Fetch.CheckpointBytes >= 1<<20, "fetch.checkpoint_bytes must be at least 1048576, not %d", c.Fetch.CheckpointBytes)
	want(c.Fetch.RateLimit == 0 || c.Fetch.RateLimit >= fetch.MinRate, "fetch.rate_limit must be at least %d bytes a second, or 0 for none, not %d", fetch.MinRate, c.Fetch.RateLimit)
	want(c.Fetch.RetryRounds >= 1, "fetch.retry_rounds must be at least 1, not %d", c.Fetch.RetryRounds)
	_, port, err := net.SplitHostPort(c.API.Listen)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	want(err == nil, "api.listen must be ADDRESS:PORT or :PORT, not %q", c.API.Listen)
	want(c.API.Connections >= 8 && c.API.Connections <= 65536, "api.connections must be between 8 and 65536, not %d", c.API.Connections)
	want(c.API.ConnectionsPerAddress >= 1 && c.API.ConnectionsPerAddress <= c.API.Connections,
		"api.connections_per_address must be between 1 and api.connections, not %d", c.API.ConnectionsPerAddress)
	want(c.Local.Socket == "" || filepath.IsAbs(c.Local.Socket), "local.socket must be an absolute path or empty, not %q", c.Local.Socket)
	for name, raw := range map[string]string{"http": c.Proxy.HTTP, "https": c.Proxy.HTTPS} {
		u, err := url.Parse(raw)
		// Without the value: it may hold a password.
		want(raw == "" || err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https" || u.Scheme == "socks5"),
			"proxy.%s must be a URL such as http://proxy.example.com:3128", name)
	}
	want((c.API.TLSCert == "") == (c.API.TLSKey == ""), "api.tls_cert and api.tls_key belong together: give both or neither")
	if _, err := source.New(source.Config{Egress: c.Egress.policy()}); err != nil {
		errs = append(errs, fmt.Errorf("egress.allow or egress.deny: %w", err))
	}
	for name, path := range map[string]string{"hooks": c.Activate.Hooks, "state_dir": c.Activate.StateDir, "boot_id_file": c.Activate.BootIDFile,
		"cmdline_file": c.Activate.CmdlineFile} {
		want(filepath.IsAbs(path), "activate.%s must be an absolute path, not %q", name, path)
	}
	for name, patterns := range map[string][]string{"products": c.Upgrade.Products, "versions": c.Upgrade.Versions} {
		for _, pattern := range patterns {
			_, err := path.Match(pattern, "")
			want(err == nil && pattern != "", "upgrade.%s must hold patterns such as 7.*, not %q", name, pattern)
		}
	}
	want(filepath.IsAbs(c.Upgrade.TestHooks), "upgrade.test_hooks must be an absolute path, not %q", c.Upgrade.TestHooks)
	for _, root := range c.Fetch.FileRoots {
		want(filepath.IsAbs(root), "fetch.file_roots must hold absolute paths, not %q", root)
	}
	return errors.Join(errs...)
}
