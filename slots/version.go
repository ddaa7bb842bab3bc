package slots

import (
	"regexp"
	"strings"
)

var versionStart = regexp.MustCompile(`^[vV]?([0-9]+(?:\.[0-9]+)+)(?:[^0-9.]|$)`)

// compareVersions is negative if a is lower than b, and positive if it is higher; ok is false if one of them is not made
// of numbers and dots. What follows the numbers does not count, nor do zeros at their end.
func compareVersions(a, b string) (order int, ok bool) {
	x, y := versionStart.FindStringSubmatch(a), versionStart.FindStringSubmatch(b)
	if x == nil || y == nil {
		return 0, false
	}
	xs, ys := strings.Split(x[1], "."), strings.Split(y[1], ".")
	for i := range max(len(xs), len(ys)) {
		p, q := "", "" // without leading zeros, the longer is the higher
		if i < len(xs) {
			p = strings.TrimLeft(xs[i], "0")
		}
		if i < len(ys) {
			q = strings.TrimLeft(ys[i], "0")
		}
		if len(p) != len(q) {
			return len(p) - len(q), true
		}
		if order := strings.Compare(p, q); order != 0 {
			return order, true
		}
	}
	return 0, true
}
