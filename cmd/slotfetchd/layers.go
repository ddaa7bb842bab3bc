package main

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

const (
	defaultConfig = "/etc/slotfetch/config.toml"
	vendorConfig  = "/usr/lib/slotfetch"
	envPrefix     = "SLOTFETCH_"
)

// sources says where configuration may come from. What is read later wins: vendor, file, conf.d, env, set.
type sources struct {
	vendor string   // a directory of *.toml
	file   string   // with conf.d/*.toml beside it
	asked  bool     // file was named by the user, so it has to be there
	env    []string // NAME=VALUE, of which SLOTFETCH_SECTION__KEY and SLOTFETCH_KEY count
	set    []string // section.key=value
}

// settings is the configuration and where each value is from.
type settings struct {
	config
	origin map[string]string // by "section.key"
}

// loadSettings reads all layers over the defaults. It does not check the result.
func loadSettings(src sources) (settings, error) {
	s := settings{config: defaults(), origin: map[string]string{}}
	for _, k := range configKeys() {
		s.origin[k.name] = "default"
	}
	vendor, err1 := filepath.Glob(filepath.Join(src.vendor, "*.toml"))
	drop, err2 := filepath.Glob(filepath.Join(filepath.Dir(src.file), "conf.d", "*.toml"))
	if err := errors.Join(err1, err2); err != nil {
		return s, err
	}
	for _, name := range slices.Concat(vendor, []string{src.file}, drop) {
		text, err := os.ReadFile(name)
		if name == src.file && !src.asked && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return s, fmt.Errorf("cannot read configuration: %w", err)
		}
		if err := s.apply(name, text, true); err != nil {
			return s, err
		}
	}
	for _, pair := range src.env {
		name, value, _ := strings.Cut(pair, "=")
		if err := s.applyOne(name, envKey(name), value); err != nil {
			return s, err
		}
	}
	for _, pair := range src.set {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return s, fmt.Errorf("--set wants section.key=value, not %q", pair)
		}
		if err := s.applyOne("--set "+key, key, value); err != nil {
			return s, err
		}
	}
	if s.Slots.Dir == "" {
		s.Slots.Dir = filepath.Join(s.StateDir, "slots")
	}
	return s, nil
}

// envKey is the key that an environment variable stands for; empty if none. Without a section it must be a known
// one, since others use the prefix too.
func envKey(name string) string {
	rest, ok := strings.CutPrefix(name, envPrefix)
	if !ok {
		return ""
	}
	key := strings.ToLower(rest)
	if !strings.Contains(rest, "__") && !slices.ContainsFunc(configKeys(), func(k configKey) bool { return k.name == key }) {
		return ""
	}
	return strings.Replace(key, "__", ".", 1)
}

// applyOne sets a single key; an empty one is no key of ours. Strings and durations come bare, all else as in TOML.
func (s *settings) applyOne(origin, key, value string) error {
	if key == "" {
		return nil
	}
	all := configKeys()
	i := slices.IndexFunc(all, func(k configKey) bool { return k.name == key })
	if i < 0 {
		return fmt.Errorf("cannot use %s: there is no key %q", origin, key)
	}
	if u, err := url.Parse(value); strings.HasPrefix(key, "proxy.") && err == nil && u.User != nil {
		return fmt.Errorf("cannot take %s from %s, where others can read the proxy's password: put it into a file in conf.d", key, origin)
	}
	section, name, ok := strings.Cut(key, ".")
	if !ok {
		section, name = "", key
	}
	text := []byte(name + " = " + value + "\n")
	if all[i].text {
		var err error
		if text, err = toml.Marshal(map[string]string{name: value}); err != nil {
			return err
		}
	}
	if section != "" {
		text = append([]byte("["+section+"]\n"), text...)
	}
	return s.apply(origin, text, false)
}

// apply decodes one layer over what is there and notes which keys it has. lines tells whether those of text mean
// something to the user.
func (s *settings) apply(origin string, text []byte, lines bool) error {
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&s.config)
	if err != nil {
		return fmt.Errorf("cannot use the configuration in %s: %s", origin, mistakes(err, lines))
	}
	var there map[string]any
	if err := toml.Unmarshal(text, &there); err != nil {
		return err
	}
	for _, k := range configKeys() {
		section, name, ok := strings.Cut(k.name, ".")
		in := there
		if ok {
			in, _ = there[section].(map[string]any)
		} else {
			name = section
		}
		if _, ok := in[name]; ok {
			s.origin[k.name] = origin
		}
	}
	return nil
}

// mistakes says where err of the decoder is and what is wrong. The library would print the lines around it too, and with
// them the password of a proxy.
func mistakes(err error, lines bool) string {
	var strict *toml.StrictMissingError
	var bad *toml.DecodeError
	where := func(e *toml.DecodeError) string {
		var at []string
		if row, _ := e.Position(); lines {
			at = append(at, fmt.Sprint("line ", row))
		}
		if key := strings.Join(e.Key(), "."); bareKey.MatchString(key) {
			at = append(at, key)
		}
		return strings.Join(append(at, ""), ": ")
	}
	switch {
	case errors.As(err, &strict):
		var out []string
		for _, e := range strict.Errors {
			out = append(out, where(&e)+"there is no such key")
		}
		return strings.Join(out, "; ")
	case errors.As(err, &bad):
		return where(bad) + strings.TrimPrefix(bad.Error(), "toml: ")
	}
	return err.Error()
}

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// configKey is one key of the configuration.
type configKey struct {
	name  string // "section.key", or "key" without a section
	index []int  // of the field in config
	text  bool   // a string, or something that is written as one
}

// configKeys are all keys in the order of the struct.
func configKeys() []configKey {
	var keys []configKey
	var walk func(t reflect.Type, prefix string, index []int)
	walk = func(t reflect.Type, prefix string, index []int) {
		for f := range t.Fields() {
			name, at := prefix+f.Tag.Get("toml"), append(slices.Clone(index), f.Index...)
			written := reflect.PointerTo(f.Type).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
			if f.Type.Kind() == reflect.Struct && !written {
				walk(f.Type, name+".", at)
				continue
			}
			keys = append(keys, configKey{name: name, index: at, text: written || f.Type.Kind() == reflect.String})
		}
	}
	walk(reflect.TypeFor[config](), "", nil)
	return keys
}

// show renders the settings as a configuration file, with the origin of each value if asked for. Secrets are left out.
func (s settings) show(origin bool) (string, error) {
	var b strings.Builder
	section := ""
	for _, k := range configKeys() {
		in, name, ok := strings.Cut(k.name, ".")
		if !ok {
			in, name = "", k.name
		}
		if in != section {
			fmt.Fprintf(&b, "\n[%s]\n", in)
			section = in
		}
		value := reflect.ValueOf(s.config).FieldByIndex(k.index).Interface()
		if k.name == "proxy.http" || k.name == "proxy.https" {
			value = redactProxy(fmt.Sprint(value))
		}
		line, err := toml.Marshal(map[string]any{name: value})
		if err != nil {
			return "", err
		}
		b.WriteString(strings.TrimSpace(string(line)))
		if origin {
			b.WriteString(" # " + s.origin[k.name])
		}
		b.WriteByte('\n')
	}
	return b.String(), nil
}

// redactProxy is a proxy without its login. What cannot be told apart is not shown at all.
func redactProxy(raw string) string {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return ""
	case err != nil || u.Scheme == "" || u.Host == "":
		return "REDACTED, not a URL with a scheme and a host"
	case u.User != nil:
		u.User = url.User("REDACTED")
	}
	return u.String()
}
