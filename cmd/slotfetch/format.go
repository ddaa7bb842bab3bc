package main

import (
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"

	"slotfetch/api"
)

// clean makes foreign text safe for a terminal: a box or an image name must not move the cursor.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, s)
}

// cleanLines is clean for text that may have several lines.
func cleanLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	return strings.Join(lines, "\n")
}

// quote makes s one word of a POSIX shell.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:@%+=,", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// text reads an optional string.
func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// size writes bytes in binary units with three digits or so.
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), 0
	for value >= 1023.95 && unit < 6 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %s", value, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}[unit])
}

func rate(bytesPerSecond int64) string { return size(bytesPerSecond) + "/s" }

// span writes a duration to the second.
func span(d time.Duration) string { return d.Round(time.Second).String() }

// moment writes a time of the agent in the admin's zone.
func moment(s *string) string {
	if s == nil {
		return "-"
	}
	t, err := time.Parse(api.TimeLayout, *s)
	if err != nil {
		return *s
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// imageName is the last segment of a URL's path, decoded; empty when there is none.
func imageName(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	name := path.Base(u.Path)
	if name == "/" || name == "." {
		return ""
	}
	return name
}

// stage is the phase of a fetch in progress, else its status.
func stage(b api.FetchBody) string {
	if b.Status == "in-progress" && b.Phase != nil {
		return *b.Phase
	}
	return b.Status
}

// percent is how much of the image is on the box; ok is false while its size is unknown.
func percent(b api.FetchBody) (p int, ok bool) {
	if b.BytesTotal <= 0 {
		return 0, false
	}
	return int(float64(b.BytesDownloaded) / float64(b.BytesTotal) * 100), true
}

// amount is what there is of the image: "12%", or bytes while the size is unknown.
func amount(b api.FetchBody) string {
	if p, ok := percent(b); ok {
		return fmt.Sprintf("%d%% of %s", p, size(b.BytesTotal))
	}
	if b.BytesDownloaded > 0 {
		return size(b.BytesDownloaded)
	}
	return "-"
}

// progressText is one line about a fetch that is not final: phase, amount, rate and time left.
func progressText(b api.FetchBody) string {
	parts := []string{stage(b)}
	if t := turn(b); t != "" {
		parts = append(parts, t)
	}
	if a := amount(b); a != "-" {
		parts = append(parts, a)
	}
	if b.BytesPerSecond != nil && !final(b.Status) {
		parts = append(parts, rate(*b.BytesPerSecond))
	}
	if b.ETASeconds != nil && !final(b.Status) {
		parts = append(parts, "ETA "+span(time.Duration(*b.ETASeconds)*time.Second))
	}
	return strings.Join(parts, ", ")
}

// trouble is what went wrong with a fetch that failed, or with the last attempt of one that waits for the next; else empty.
func trouble(b api.FetchBody) string {
	if b.Error != nil {
		return *b.Error
	}
	return text(b.RetryReason)
}

// finishedText is the sentence at the end of a good fetch.
func finishedText(f api.Fetch) string {
	if f.Body.Deduplicated && f.Body.SlotID != nil {
		return fmt.Sprintf("Fetch %s finished: slot %d has this image already; nothing was downloaded.", f.Key, *f.Body.SlotID)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Fetch %s finished: ", f.Key)
	if f.Body.SlotID != nil {
		fmt.Fprintf(&b, "slot %d holds ", *f.Body.SlotID)
	}
	name := imageName(f.Body.URL)
	if name == "" {
		name = f.Body.URL
	}
	fmt.Fprintf(&b, "%s, %s", name, size(f.Body.BytesTotal))
	if took, ok := duration(f.Body); ok {
		fmt.Fprintf(&b, " in %s", span(took))
	}
	if f.Body.BytesPerSecond != nil {
		fmt.Fprintf(&b, " (%s)", rate(*f.Body.BytesPerSecond))
	}
	return b.String() + "."
}

// duration is how long a fetch took.
func duration(b api.FetchBody) (time.Duration, bool) {
	if b.StartTime == nil || b.EndTime == nil {
		return 0, false
	}
	start, err1 := time.Parse(api.TimeLayout, *b.StartTime)
	end, err2 := time.Parse(api.TimeLayout, *b.EndTime)
	return end.Sub(start), err1 == nil && err2 == nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
