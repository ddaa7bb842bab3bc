package source

import (
	"strings"
)

// MaxSidecar is how much of a checksum file or Metalink is read, in bytes.
const MaxSidecar = 1 << 20

// SumFor finds the SHA-256 of the file name in text, which is a sidecar (image.iso.sha256) or a list (SHA256SUMS): lines
// "DIGEST", "DIGEST  name", "DIGEST *name" and "SHA256 (name) = DIGEST" count, in any order. A line without a name counts
// only if bare is true. It is empty if there is none, or if lines contradict each other. The digest is in lower case.
func SumFor(text, name string, bare bool) string {
	found := ""
	for line := range strings.Lines(text) {
		sum, of, ok := sumLine(strings.TrimRight(line, "\r\n"))
		if !ok || of != name && (of != "" || !bare) {
			continue
		}
		if found != "" && found != sum {
			return ""
		}
		found = sum
	}
	return found
}

// sumLine reads one line; of is the last segment of the name, empty if it has none.
func sumLine(line string) (sum, of string, ok bool) {
	if rest, found := strings.CutPrefix(line, "SHA256 ("); found {
		i := strings.LastIndex(rest, ") = ")
		if i < 0 {
			return "", "", false
		}
		sum, of = rest[i+len(") = "):], rest[:i]
		if of == "" {
			return "", "", false
		}
	} else {
		sum, of, _ = strings.Cut(strings.TrimLeft(line, " \t"), " ")
		of = strings.TrimPrefix(strings.TrimPrefix(of, " "), "*")
	}
	if sum = hexDigest(sum); sum == "" {
		return "", "", false
	}
	return sum, of[strings.LastIndexByte(of, '/')+1:], true
}
