package slots

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode"
)

// Inspect looks into the bytes written so far, which should be all of them. The version is the first line of
// the configured version file, else the volume id, else name without its ending; it is never empty. The error
// wraps [ErrNotISO] if the configuration asks for an ISO and this is none.
func (w *Writer) Inspect(name string) (volumeID, version string, iso bool, err error) {
	if err := w.usable(); err != nil {
		return "", "", false, err
	}
	volumeID, version, err = InspectISO(w.f, w.off, w.s.cfg.VersionFile)
	iso = err == nil
	if err != nil && (w.s.cfg.RequireISO || !errors.Is(err, ErrNotISO)) {
		return "", "", false, fmt.Errorf("cannot inspect %s: %w", w.key, err)
	}
	for _, candidate := range []string{volumeID, withoutEnding(name), "unknown"} {
		if version == "" {
			version = printable(candidate, textMax)
		}
	}
	return volumeID, version, iso, nil
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
