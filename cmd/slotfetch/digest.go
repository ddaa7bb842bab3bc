package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

// digestFileLimit bounds a SHA256SUMS file; real ones have kilobytes.
const digestFileLimit = 4 << 20

// algorithm is what differs between --sha256 and --sha512.
type algorithm struct {
	name   string // as people write it
	flag   string
	tag    string // in the BSD form
	digits int
}

var (
	sha256Algorithm = algorithm{name: "SHA-256", flag: "--sha256", tag: "SHA256", digits: 64}
	sha512Algorithm = algorithm{name: "SHA-512", flag: "--sha512", tag: "SHA512", digits: 128}
)

// named is one line of a checksum file. The name is empty where the line has only the digest.
type named struct {
	digest string
	name   string
}

// gnuLine is "<hex>  name" or "<hex> *name", with a backslash in front when the name is escaped.
var gnuLine = regexp.MustCompile(`^(\\?)([0-9A-Fa-f]+)(?:[ \t]+\*?(.+))?$`)

// bsdLine is "SHA256 (name) = <hex>"; openssl dgst writes "SHA2-256(name)= <hex>".
var bsdLine = regexp.MustCompile(`^(\\?)([A-Za-z0-9-]+) ?\((.+)\) ?= ?([0-9A-Fa-f]+)$`)

// digest finds the hex digest in any of the forms that --sha256 takes: the digest, a line of sha256sum, or a file
// of such lines (- is stdin), of which the one for the image at rawURL counts.
func (g algorithm) digest(value, rawURL string, stdin io.Reader) (string, error) {
	value = strings.TrimSpace(value)
	if value == "" {
		return "", usage(g.flag+" is empty", "Give the digest, or the name of a checksum file.")
	}
	if g.isDigest(value) {
		return strings.ToLower(value), nil
	}
	if line, ok := g.parseLine(value); ok {
		return line.digest, nil
	}
	data, err := readDigestFile(value, stdin)
	if errors.Is(err, fs.ErrNotExist) {
		return "", g.explain(value)
	}
	if err != nil {
		return "", usage(fmt.Sprintf("cannot read the digest from %s: %v", value, err), "")
	}
	return g.choose(data, value, imageName(rawURL))
}

func (g algorithm) isDigest(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && len(s) == g.digits
}

// explain says what is wrong with a value that is neither a digest, nor a line, nor a file.
func (g algorithm) explain(value string) error {
	_, err := hex.DecodeString(value + strings.Repeat("0", len(value)%2))
	switch {
	case err == nil && len(value) == 32:
		return usage(g.flag+": 32 hex digits are an MD5", "The box checks "+g.name+" only.")
	case err == nil && len(value) == 40:
		return usage(g.flag+": 40 hex digits are a SHA-1", "The box checks "+g.name+" only.")
	case err == nil && len(value) == 128:
		return usage(g.flag+": 128 hex digits are a SHA-512", "Give the SHA-256 here, and this one with --sha512 in addition.")
	case err == nil && len(value) > 16:
		return usage(fmt.Sprintf("%s has %d hex digits, a %s has %d", g.flag, len(value), g.name, g.digits), "Was it copied completely?")
	}
	return usage(fmt.Sprintf("%s: %q is neither a digest nor a line of %ssum, and there is no such file", g.flag, value, strings.ToLower(g.tag)),
		fmt.Sprintf("Give %d hex digits, a line of %ssum, or a file of such lines.", g.digits, strings.ToLower(g.tag)))
}

func readDigestFile(name string, stdin io.Reader) ([]byte, error) {
	r := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || len(name) > 255 || strings.ContainsAny(name, "\n\x00") {
				return nil, fs.ErrNotExist
			}
			return nil, err
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, digestFileLimit+1))
	if err == nil && len(data) > digestFileLimit {
		err = errors.New("it is longer than 4 MiB: is that the image itself?")
	}
	return data, err
}

// parseLine reads one line of either form; ok is false for comments, other algorithms and anything else.
func (g algorithm) parseLine(line string) (named, bool) {
	line = strings.TrimSpace(line)
	if m := bsdLine.FindStringSubmatch(line); m != nil {
		tag := strings.Replace(strings.ToUpper(m[2]), "SHA2-", "SHA", 1)
		if tag != g.tag || !g.isDigest(m[4]) {
			return named{}, false
		}
		return named{digest: strings.ToLower(m[4]), name: unescape(m[1], m[3])}, true
	}
	m := gnuLine.FindStringSubmatch(line)
	if m == nil || !g.isDigest(m[2]) {
		return named{}, false
	}
	return named{digest: strings.ToLower(m[2]), name: unescape(m[1], m[3])}, true
}

// unescape undoes what sha256sum does to names with a backslash or a line end in them.
func unescape(mark, name string) string {
	if mark == "" {
		return name
	}
	return strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\r`, "\r").Replace(name)
}

// choose takes the line for the image, or the only line there is.
func (g algorithm) choose(data []byte, file, image string) (string, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	var lines []named
	for _, text := range splitLines(data) {
		if line, ok := g.parseLine(text); ok && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return "", usage(fmt.Sprintf("%s: no %s line in %s", g.flag, g.name, file),
			fmt.Sprintf("Lines look like this: %s  NAME", strings.Repeat("0", 8)+"…"))
	}
	if len(lines) == 1 {
		return lines[0].digest, nil
	}
	match := slices.DeleteFunc(slices.Clone(lines), func(l named) bool { return l.name != image })
	if len(match) == 0 {
		match = slices.DeleteFunc(slices.Clone(lines), func(l named) bool { return l.name == "" || path.Base(l.name) != image })
	}
	digests := map[string]bool{}
	for _, l := range match {
		digests[l.digest] = true
	}
	if image != "" && len(digests) == 1 {
		return match[0].digest, nil
	}
	why := fmt.Sprintf("no line in %s is for %q", file, image)
	if len(digests) > 1 {
		why = fmt.Sprintf("%s has %d different digests for %q", file, len(digests), image)
		lines = match
	}
	return "", usage(g.flag+": "+why, "Give the digest itself. There are:\n"+listing(lines))
}

// listing shows the candidates, not all of a long file.
func listing(lines []named) string {
	var b strings.Builder
	for i, l := range lines {
		if i == 10 {
			fmt.Fprintf(&b, "  … and %d more\n", len(lines)-i)
			break
		}
		fmt.Fprintf(&b, "  %s  %s\n", l.digest, l.name)
	}
	return strings.TrimRight(b.String(), "\n")
}
