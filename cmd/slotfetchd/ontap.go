package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"slotfetch/ontap"
	"slotfetch/slots"
	"slotfetch/store"
)

// ontapConfig is about the dialect of NetApp's ONTAP.
type ontapConfig struct {
	Enabled         bool   `toml:"enabled"`
	RequireChecksum bool   `toml:"require_checksum"`
	ReadOnly        bool   `toml:"read_only"`
	Version         string `toml:"version"`
}

var ontapVersion = regexp.MustCompile(`^([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})$`)

func (c ontapConfig) check(want func(bool, string, ...any)) {
	want(ontapVersion.MatchString(c.Version), "ontap.version must be of three numbers, such as 9.16.1, not %q", c.Version)
}

// release is the version that clients of ONTAP take the box for.
func (c ontapConfig) release() ontap.Version {
	v := ontap.Version{Full: "slotfetch " + version}
	if m := ontapVersion.FindStringSubmatch(c.Version); m != nil {
		for i, to := range []*int{&v.Generation, &v.Major, &v.Minor} {
			*to, _ = strconv.Atoi(m[i+1]) // digits, by the pattern
		}
	}
	return v
}

func (d *daemon) openOntap() error {
	id, err := boxID(filepath.Join(d.cfg.StateDir, "uuid"))
	if err != nil {
		return err
	}
	d.ontap, err = ontap.Open(ontap.Config{Fetch: d.fetch, Slots: d.slots, Store: d.store, Updates: ontapUpdates{d}, Tester: d.tester, Log: d.log,
		Name: os.Hostname, UUID: id, Version: d.cfg.Ontap.release(), RequireChecksum: d.cfg.Ontap.RequireChecksum, ReadOnly: d.cfg.Ontap.ReadOnly,
		InRoots: d.fetch.Source().InRoots})
	return err
}

// boxID is the uuid of the box, made once.
func boxID(file string) (string, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		text = []byte(uuid.NewString() + "\n")
		err = writeSecret(file, text)
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the uuid of the box: %w", err)
	}
	id, err := uuid.Parse(strings.TrimSpace(string(text)))
	if err != nil {
		return "", fmt.Errorf("%s holds no uuid; remove it to have another made: %w", file, err)
	}
	return id.String(), nil
}

// ontapUpdates activates slots for the dialect.
type ontapUpdates struct{ d *daemon }

// Possible implements [ontap.Updates].
func (o ontapUpdates) Possible() bool { return o.d.upgrades.bootID != "" }

// Begin implements [ontap.Updates].
func (o ontapUpdates) Begin(ctx context.Context, id string, slot int, sha256 string, by store.Actor) error {
	_, _, err := o.d.upgrades.begin(ctx, order{id: id, slot: slot, sha256: sha256, message: "PATCH /api/cluster/software", reboot: slots.RebootNow, by: by})
	return err
}

// Answered implements [ontap.Updates].
func (o ontapUpdates) Answered(id string) { o.d.upgrades.answered(id) }

// List implements [ontap.Updates].
func (o ontapUpdates) List(ctx context.Context) ([]store.Upgrade, error) {
	return o.d.store.Upgrades(ctx)
}
