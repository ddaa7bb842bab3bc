package slots

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode"
)

// Inspect looks into the bytes written so far, which should be all of them, and fills in what m can tell of them. The
// version is that of the manifest inside the image, else the first line of the configured version file, else the volume id,
// else m.Name without its ending; it is never empty. The error wraps [ErrNotISO] if the configuration asks for an ISO and this
// is none.
func (w *Writer) Inspect(m *Manifest) error {
	if err := w.usable(); err != nil {
		return err
	}
	volumeID, version, err := InspectISO(w.f, w.off, w.s.cfg.VersionFile)
	m.VolumeID, m.Version, m.ISO = volumeID, version, err == nil
	if err != nil && (w.s.cfg.RequireISO || !errors.Is(err, ErrNotISO)) {
		return fmt.Errorf("cannot inspect %s: %w", w.key, err)
	}
	for _, candidate := range []string{volumeID, withoutEnding(m.Name), "unknown"} {
		if m.Version == "" {
			m.Version = printable(candidate, textMax)
		}
	}
	id, _, err := ISOIdentity(w.f, w.off, w.s.cfg.ManifestFile)
	if bad := (badIdentity{}); errors.As(err, &bad) {
		w.s.cfg.Log.Warn("cannot use the manifest inside the image, so it cannot be activated", "key", w.key, "err", bad)
	} else if err != nil {
		return fmt.Errorf("cannot inspect %s: %w", w.key, err)
	}
	m.Vouch(id)
	return nil
}

// withoutEnding drops the directory and the ending of a file name. What has no letter is no ending: the .5 of
// fw-7.0.5 is part of the version.
func withoutEnding(name string) string {
	if name = path.Base(name); name == "." || name == "/" {
		return ""
	}
	ext := path.Ext(name)
	if strings.ContainsFunc(ext, unicode.IsLetter) {
		name = strings.TrimSuffix(name, ext)
	}
	return name
}

// printable drops what a terminal or a browser might trip over, and cuts to limit characters.
func printable(s string, limit int) string {
	s = strings.ToValidUTF8(s, "")
	s = strings.Map(func(c rune) rune {
		if c == '\t' {
			return ' '
		}
		if !unicode.IsPrint(c) {
			return -1
		}
		return c
	}, s)
	s = strings.TrimSpace(s)
	if r := []rune(s); len(r) > limit {
		s = strings.TrimSpace(string(r[:limit]))
	}
	return s
}
