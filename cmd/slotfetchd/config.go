package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/pelletier/go-toml/v2"
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
}

type apiConfig struct {
	Listen  string `toml:"listen"`
	TLSCert string `toml:"tls_cert"`
	TLSKey  string `toml:"tls_key"`
}

type localConfig struct {
	Socket string `toml:"socket"`
}

type slotsConfig struct {
	Dir         string `toml:"dir"`
	First       int    `toml:"first"`
	Count       int    `toml:"count"`
	Reserve     int64  `toml:"reserve"`
	RequireISO  bool   `toml:"require_iso"`
	VersionFile string `toml:"version_file"`
}

type fetchConfig struct {
	Workers      int      `toml:"workers"`
	FileRoots    []string `toml:"file_roots"`
	IdleTimeout  duration `toml:"idle_timeout"`
	RetryRounds  int      `toml:"retry_rounds"`
	RetryInitial duration `toml:"retry_initial"`
	RetryMax     duration `toml:"retry_max"`
}

type egressConfig struct {
	Allow []netip.Prefix `toml:"allow"`
	Deny  []netip.Prefix `toml:"deny"`
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

// MarshalText writes the form that UnmarshalText reads.
func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

const defaultConfig = "/etc/slotfetch/config.toml"

func defaults() config {
	return config{
		StateDir: "/var/lib/slotfetch",
		API:      apiConfig{Listen: ":8443"},
		Local:    localConfig{Socket: "/run/slotfetch/api.sock"},
		Slots:    slotsConfig{First: 1, Count: 5, Reserve: 64 << 20},
		Fetch: fetchConfig{Workers: 1, IdleTimeout: duration(time.Minute), RetryRounds: 8,
			RetryInitial: duration(time.Second), RetryMax: duration(2 * time.Minute)},
	}
}

// loadConfig reads file and then the drop-ins in conf.d beside it, by name, over the defaults. A missing file is fine
// only where it was not asked for.
func loadConfig(file string, asked bool) (config, error) {
	c := defaults()
	drop, err := filepath.Glob(filepath.Join(filepath.Dir(file), "conf.d", "*.toml"))
	if err != nil {
		return c, err
	}
	for i, name := range append([]string{file}, drop...) {
		text, err := os.ReadFile(name)
		if i == 0 && !asked && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return c, fmt.Errorf("cannot read configuration: %w", err)
		}
		if err := decodeConfig(text, &c); err != nil {
			return c, fmt.Errorf("cannot read configuration %s:\n%w", name, err)
		}
	}
	if c.Slots.Dir == "" {
		c.Slots.Dir = filepath.Join(c.StateDir, "slots")
	}
	return c, c.check()
}

func decodeConfig(text []byte, c *config) error {
	d := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	err := d.Decode(c)
	var strict *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		return errors.New(strict.String())
	case errors.As(err, &bad):
		return errors.New(bad.String())
	}
	return err
}

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
	want(c.Fetch.Workers >= 1 && c.Fetch.Workers <= 16, "fetch.workers must be between 1 and 16, not %d", c.Fetch.Workers)
	want(c.Fetch.RetryRounds >= 1, "fetch.retry_rounds must be at least 1, not %d", c.Fetch.RetryRounds)
	want((c.API.TLSCert == "") == (c.API.TLSKey == ""), "api.tls_cert and api.tls_key belong together: give both or neither")
	for _, root := range c.Fetch.FileRoots {
		want(filepath.IsAbs(root), "fetch.file_roots must hold absolute paths, not %q", root)
	}
	return errors.Join(errs...)
}
