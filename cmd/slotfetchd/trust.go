package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"slotfetch/fetch"
)

type trustConfig struct {
	Keys    []string `toml:"keys"`
	Require bool     `toml:"require"`
	Product string   `toml:"product"`
}

// policy reads the keys, of which each is itself or the absolute name of a file.
func (t trustConfig) policy(u upgradeConfig) (fetch.Trust, error) {
	p := fetch.Trust{Require: t.Require, Product: t.Product, AllowDowngrade: u.AllowDowngrade}
	for i, text := range t.Keys {
		if filepath.IsAbs(text) {
			name := text
			data, err := os.ReadFile(name)
			if cause := (*fs.PathError)(nil); errors.As(err, &cause) {
				return p, fmt.Errorf("trust.keys: cannot read %s: %w", name, cause.Err)
			}
			text = string(data)
		}
		k, err := fetch.ParseKey(text)
		if err != nil {
			return p, fmt.Errorf("trust.keys: entry %d: %w, and no absolute name of a file with one", i+1, err)
		}
		p.Keys = append(p.Keys, k)
	}
	if t.Require && len(p.Keys) == 0 {
		return p, errors.New("trust.require needs at least one key in trust.keys")
	}
	return p, nil
}
