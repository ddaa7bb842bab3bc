package slots

import "fmt"

// ComparableVersion tells whether version is made of numbers and dots, perhaps with something behind, such as 7.0.5.
func ComparableVersion(version string) bool {
	_, ok := compareVersions(version, version)
	return ok
}

// LowerVersion tells whether a is certainly lower than b: both can be compared, and what follows their numbers does not
// count.
func LowerVersion(a, b string) bool {
	order, ok := compareVersions(a, b)
	return ok && order < 0
}

// DowngradeError says that a version is lower than the current slot permits.
type DowngradeError struct {
	Version string
	// Current is the version that runs.
	Current string
	// Floor is the lowest that may replace it by the word of its own vendor; empty if that is not what is in the way.
	Floor string
}

func (e *DowngradeError) Error() string {
	if e.Floor != "" {
		return fmt.Sprintf("version %s is lower than %s, which version %s, the current one, asks for at least", e.Version, e.Floor, e.Current)
	}
	return fmt.Sprintf("version %s is lower than %s, the current one", e.Version, e.Current)
}

// Downgrade returns a [*DowngradeError] if version is lower than that of the current slot, unless allowed, or lower than
// the min_version that came with the current slot, allowed or not. Nothing is known of a slot that is unknown.
func (s *Slots) Downgrade(version string, allowed bool) error {
	b, err := s.boot()
	if err != nil {
		return err
	}
	if b.Current == nil || !s.Known(*b.Current) {
		return nil
	}
	sl, err := s.look(*b.Current)
	if err != nil || sl.Manifest == nil {
		return err
	}
	m := sl.Manifest
	switch {
	case LowerVersion(version, m.MinVersion):
		return &DowngradeError{Version: version, Current: m.Version, Floor: m.MinVersion}
	case !allowed && LowerVersion(version, m.Version):
		return &DowngradeError{Version: version, Current: m.Version}
	}
	return nil
}
