package source_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"slotfetch/fetch/source"
)

var (
	sumA = strings.Repeat("0a", 32)
	sumB = strings.Repeat("1b", 32)
)

func TestSumFor(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		bare       bool
		want       string
	}{
		{"GNU, text", sumA + "  image.iso\n", false, sumA},
		{"GNU, binary", sumA + " *image.iso\n", false, sumA},
		{"one blank", sumA + " image.iso", false, sumA},
		{"BSD", "SHA256 (image.iso) = " + sumA + "\r\n", false, sumA},
		{"upper case", strings.ToUpper(sumA) + "  image.iso\n", false, sumA},
		{"with a path", sumA + "  ./images/image.iso\n", false, sumA},
		{"among others", sumB + "  image.img\n" + sumA + "  image.iso\n" + sumB + "  image.iso.sig\n", false, sumA},
		{"others only", sumB + "  image.img\n", true, ""},
		{"bare in a sidecar", sumA + "\n", true, sumA},
		{"bare in a list", sumA + "\n", false, ""},
		{"said twice", sumA + "  image.iso\n" + sumA + " *image.iso\n", false, sumA},
		{"contradiction", sumA + "  image.iso\n" + sumB + "  image.iso\n", false, ""},
		{"with comments and signature", "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n" + sumA + "  image.iso\n-----BEGIN PGP SIGNATURE-----\nabc\n", false, sumA},
		{"too short", sumA[2:] + "  image.iso\n", false, ""},
		{"no hex", strings.Repeat("xy", 32) + "  image.iso\n", false, ""},
		{"a name with blanks is another", sumA + "  my image.iso\n", false, ""},
		{"BSD without a name", "SHA256 () = " + sumA, true, ""},
		{"HTML", "<!DOCTYPE html><title>Not found</title>", true, ""},
		{"empty", "", true, ""},
	} {
		if got := source.SumFor(tc.text, "image.iso", tc.bare); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestParseMetalink(t *testing.T) {
	const head = `<?xml version="1.0" encoding="UTF-8"?><metalink xmlns="urn:ietf:params:xml:ns:metalink">`
	got, err := source.ParseMetalink(strings.NewReader(head + `
<published>2026-05-04T08:00:01Z</published>
<file name="dir/image.iso">
 <size>1234</size>
 <hash type="md5">00</hash>
 <hash type="sha-256">` + strings.ToUpper(sumA) + `</hash>
 <url location="de">http://last.example/image.iso</url>
 <url priority="2"> https://second.example/image.iso </url>
 <url priority="1">ftp://first.example/image.iso</url>
 <metaurl mediatype="torrent">http://example.com/image.torrent</metaurl>
</file>
<file name="other"/>
</metalink>`))
	if err != nil {
		t.Fatal(err)
	}
	want := []source.MetaFile{
		{Name: "image.iso", Size: 1234, SHA256: sumA, URLs: []string{"ftp://first.example/image.iso", "https://second.example/image.iso", "http://last.example/image.iso"}},
		{Name: "other", Size: -1},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for name, text := range map[string]string{
		"no XML":              "hello",
		"another document":    "<html/>",
		"Metalink 3":          `<metalink version="3.0" xmlns="http://www.metalinker.org/"><files/></metalink>`,
		"no file":             head + "</metalink>",
		"cut off":             head + `<file name="x"><url>http://h/x</url>`,
		"too long":            head + "<!--" + strings.Repeat("x", source.MaxSidecar) + `--><file name="x"/></metalink>`,
		"entities that blow":  `<!DOCTYPE m [<!ENTITY a "aaaa">]>` + head + `<file name="&a;"/></metalink>`,
		"a size that is none": head + `<file name="x"><size>many</size></file></metalink>`,
	} {
		files, err := source.ParseMetalink(strings.NewReader(text))
		var e *source.Error
		if !errors.As(err, &e) || e.Class != source.Permanent {
			t.Errorf("%s: %+v, %v", name, files, err)
		}
	}
}

// FuzzSumFor: what is found is a SHA-256.
func FuzzSumFor(f *testing.F) {
	f.Add(sumA+"  image.iso\nSHA256 (image.iso) = "+sumB, "image.iso", true)
	f.Add(" *\n(", "", false)
	f.Fuzz(func(t *testing.T, text, name string, bare bool) {
		if got := source.SumFor(text, name, bare); got != "" && (len(got) != 64 || strings.Trim(got, "0123456789abcdef") != "") {
			t.Errorf("found %q", got)
		}
	})
}

// FuzzMetalink: what is accepted is bounded and well-formed.
func FuzzMetalink(f *testing.F) {
	f.Add(`<metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="a/b"><size>-1</size><hash type="sha-256">00</hash><url priority="x">u</url></file></metalink>`)
	f.Fuzz(func(t *testing.T, text string) {
		files, err := source.ParseMetalink(strings.NewReader(text))
		if (err == nil) != (len(files) > 0) {
			t.Errorf("%d files and %v", len(files), err)
		}
		for _, m := range files {
			if m.Size < -1 || m.SHA256 != "" && len(m.SHA256) != 64 || strings.Contains(m.Name, "/") {
				t.Errorf("accepted %+v", m)
			}
		}
	})
}
