package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDigest(t *testing.T) {
	a, b := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	file := func(t *testing.T, lines ...string) string {
		path := filepath.Join(t.TempDir(), "SHA256SUMS")
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct {
		name  string
		value string
		lines []string // of a file that is given instead of value
		stdin string
		url   string
		want  string
		bad   string // part of the error
	}{
		{name: "hex", value: a, want: a},
		{name: "upper case and blanks around", value: " " + strings.ToUpper(a) + "\n", want: a},
		{name: "sha256sum line", value: a + "  sps.iso", want: a},
		{name: "sha256sum line, binary", value: a + " *sps.iso", want: a},
		{name: "line with another name", value: a + "  other.iso", want: a},
		{name: "BSD line", value: "SHA256 (sps.iso) = " + a, want: a},
		{name: "openssl line", value: "SHA2-256(sps.iso)= " + a, want: a},
		{name: "openssl 1 line", value: "SHA256(sps.iso)= " + a, want: a},
		{name: "escaped name", lines: []string{b + "  x", `\` + a + `  sps\\.iso`}, url: "https://h/sps%5C.iso", want: a},
		{name: "file, one line", lines: []string{a + "  whatever"}, want: a},
		{name: "file, one bare digest", lines: []string{a, ""}, want: a},
		{name: "file, line of the image", lines: []string{"# comment", b + "  other.iso", a + " *sps.iso", ""}, want: a},
		{name: "file, path in the name", lines: []string{b + "  ./other.iso", a + "  ./images/sps.iso"}, want: a},
		{name: "file, whole name before base name", lines: []string{b + "  old/sps.iso", a + "  sps.iso"}, want: a},
		{name: "file, CRLF and byte order mark", lines: []string{"\ufeff" + b + "  x\r", a + "  sps.iso\r"}, want: a},
		{name: "file, BSD with other algorithms", lines: []string{"SHA512 (sps.iso) = " + a + a, "MD5 (sps.iso) = " + a[:32], "SHA256 (sps.iso) = " + a, "SHA256 (x) = " + b}, want: a},
		{name: "file, signed in clear", lines: []string{"-----BEGIN PGP SIGNED MESSAGE-----", "Hash: SHA512", "", b + "  x", a + "  sps.iso", "-----BEGIN PGP SIGNATURE-----", "iQIz"}, want: a},
		{name: "file, the same line twice", lines: []string{a + "  sps.iso", a + "  sps.iso"}, want: a},
		{name: "stdin", value: "-", stdin: a + "  sps.iso\n" + b + "  x\n", want: a},
		{name: "encoded name in the URL", lines: []string{b + "  x", a + "  my image.iso"}, url: "https://h/my%20image.iso?v=1", want: a},

		{name: "empty", value: " ", bad: "empty"},
		{name: "63 digits", value: a[:63], bad: "63 hex digits"},
		{name: "MD5", value: a[:32], bad: "MD5"},
		{name: "SHA-1", value: a[:40], bad: "SHA-1"},
		{name: "SHA-512", value: a + a, bad: "SHA-512"},
		{name: "no such file", value: "nowhere/SHA256SUMS", bad: "no such file"},
		{name: "file without lines", lines: []string{"hello"}, bad: "no SHA-256 line"},
		{name: "file, image not there", lines: []string{a + "  x", b + "  y"}, bad: `is for "sps.iso"`},
		{name: "file, two digests for the image", lines: []string{a + "  sps.iso", b + "  sps.iso"}, bad: "2 different digests"},
		{name: "file, URL without a name", lines: []string{a + "  x", b + "  y"}, url: "https://h/", bad: `is for ""`},
		{name: "directory", value: t.TempDir(), bad: "cannot read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			value, url := tt.value, tt.url
			if tt.lines != nil {
				value = file(t, tt.lines...)
			}
			if url == "" {
				url = testURL
			}
			got, err := sha256Algorithm.digest(value, url, strings.NewReader(tt.stdin))
			if tt.bad != "" {
				if err == nil || !strings.Contains(err.Error(), tt.bad) {
					t.Fatalf("got %q, %v; want an error with %q", got, err, tt.bad)
				}
				if asFailure(err).code != exitUsage {
					t.Errorf("exit code %d, want %d", asFailure(err).code, exitUsage)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Fatalf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestDigestCandidates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "SHA256SUMS")
	a, b := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	if err := os.WriteFile(path, []byte(a+"  one.iso\n"+b+"  two.iso\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := sha256Algorithm.digest(path, testURL, nil)
	hint := asFailure(err).hint
	for _, want := range []string{"one.iso", "two.iso", a, b} {
		if !strings.Contains(hint, want) {
			t.Errorf("the hint lacks %q:\n%s", want, hint)
		}
	}
}

func TestDigestSHA512(t *testing.T) {
	want := strings.Repeat("ab", 64)
	got, err := sha512Algorithm.digest("SHA512 (sps.iso) = "+want, testURL, nil)
	if err != nil || got != want {
		t.Fatalf("got %q, %v", got, err)
	}
}

func FuzzDigestLine(f *testing.F) {
	f.Add(strings.Repeat("ab", 32) + "  name")
	f.Add("SHA256 (a) b) = " + strings.Repeat("ab", 32))
	f.Add(`\` + strings.Repeat("ab", 32) + `  a\nb`)
	f.Fuzz(func(t *testing.T, line string) {
		got, ok := sha256Algorithm.parseLine(line)
		if ok && !(sha256Algorithm.isDigest(got.digest) && got.digest == strings.ToLower(got.digest)) {
			t.Fatalf("%q gave the digest %q", line, got.digest)
		}
	})
}
