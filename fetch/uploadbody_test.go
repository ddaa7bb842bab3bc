package fetch_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"slotfetch/api"
	"slotfetch/fetch"
)

// readUpload reads body in one piece and byte by byte, which must not make a difference.
func readUpload(t *testing.T, body string, header ...string) (image, name string, err error) {
	t.Helper()
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	b, name, err := fetch.ReadUpload(strings.NewReader(body), h)
	b1, name1, err1 := fetch.ReadUpload(iotest.OneByteReader(strings.NewReader(body)), h)
	if (err == nil) != (err1 == nil) || err == nil && (!bytes.Equal(b, b1) || name != name1) {
		t.Fatalf("in one piece %q %q %v, byte by byte %q %q %v", b, name, err, b1, name1, err1)
	}
	return string(b), name, err
}

const (
	form   = `Content-Disposition: form-data; name="firmware"; filename="sps.iso"` + "\r\nContent-Type: application/octet-stream\r\n\r\n"
	asForm = "multipart/form-data; boundary=X"
)

func TestUploadBody(t *testing.T) {
	long := strings.Repeat("\r\n--", 40_000)
	for _, c := range []struct{ name, kind, body, image, file string }{
		{"raw", "application/x-iso9660-image", "an image", "an image", ""},
		{"raw without a type", "", "\x00\x01", "\x00\x01", ""},
		{"raw that begins with dashes", "application/octet-stream", "--", "--", ""},
		{"raw that looks like a part", "application/json", "--X\r\nContent-Type: a/b\r\n\r\nz\r\n--X--", "--X\r\nContent-Type: a/b\r\n\r\nz\r\n--X--", ""},
		{"raw of a long first line", "", "--" + strings.Repeat("x", 70_000), "--" + strings.Repeat("x", 70_000), ""},
		{"raw of form type", "multipart/form-data", "an image", "an image", ""},
		{"form", asForm, "--X\r\n" + form + "an image\r\n--X--\r\n", "an image", "sps.iso"},
		{"form without the last line end", asForm, "--X\r\n" + form + "an image\r\n--X--", "an image", "sps.iso"},
		{"quoted boundary", `Multipart/Form-Data; charset=utf-8; boundary="a b':=?/"`, "--a b':=?/\r\n" + form + "z\r\n--a b':=?/--\r\n", "z", "sps.iso"},
		{"boundary of dashes", "multipart/form-data; boundary=----", "------\r\n" + form + "--\r\n---\r\n--\r\n--------\r\n", "--\r\n---\r\n--", "sps.iso"},
		{"mislabelled", "application/json", "--X-_1\r\nContent-Disposition: form-data; name=\"firmware\"; filename=\"a.iso\"\r\nContent-Type: multipart/form-data\r\n\r\nan image\r\n--X-_1--\r\n", "an image", "a.iso"},
		{"other header first", "application/json", "--X\r\nContent-Type: a/b\r\ncontent-disposition: form-data; name=firmware\r\n\r\nz\r\n--X--\r\n", "z", ""},
		{"another multipart", "multipart/mixed; boundary=Y", "--X\r\n" + form + "z\r\n--X--\r\n", "z", "sps.iso"},
		{"preamble", asForm, "nothing\r\n--XX\r\n--X\r\n" + form + "z\r\n--X--\r\n", "z", "sps.iso"},
		{"blanks behind boundaries", asForm, "--X \t\r\n" + form + "z\r\n--X \r\n" + strings.Replace(form, "firmware", "x", 1) + "\r\n--X--  \r\n", "z", "sps.iso"},
		{"other parts", asForm, "--X\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--X\r\n" + form + "z\r\n--X\r\nContent-Disposition: form-data; name=\"b\"\r\n\r\n\r\n--X--\r\n", "z", "sps.iso"},
		{"line ends in the image", asForm, "--X\r\n" + form + "\r\n\n\rz\r\n\r\n\r\n--X--\r\n", "\r\n\n\rz\r\n\r\n", "sps.iso"},
		{"what is like a boundary", asForm, "--X\r\n" + form + "--X\r\n--X--\r\n--XY\r\n--X-\r\n--X\n\r\n--\r\n--x\r\n\r\n--X--\r\n", "--X", ""},
		{"almost boundaries", asForm, "--X\r\n" + form + "--X--\r\n--XY\r\n--X-\r\n--X\n--X--\r\n--X \t z\n--X\r\r\n--X--", "--X--\r\n--XY\r\n--X-\r\n--X\n--X--\r\n--X \t z\n--X\r", "sps.iso"},
		{"many almost boundaries", asForm, "--X\r\n" + form + long + "\r\n--X--\r\n", long, "sps.iso"},
		{"bare line ends", asForm, strings.ReplaceAll("--X\n"+form, "\r", "") + "a\r\n\r\n--X--\n", "a\r\n\r", "sps.iso"},
		{"path as a name", asForm, "--X\r\n" + strings.Replace(form, "sps.iso", `C:\\fw\\a b.iso`, 1) + "z\r\n--X--\r\n", "z", "a b.iso"},
		{"URL as a name", asForm, "--X\r\n" + strings.Replace(form, "sps.iso", "https://ann:secret@host/a/b.iso?token=1", 1) + "z\r\n--X--\r\n", "z", "b.iso"},
		{"odd name", asForm, "--X\r\n" + strings.Replace(form, "sps.iso", "f\xff\u202e\u0085ü.iso", 1) + "z\r\n--X--\r\n", "z", "fü.iso"},
		{"malformed name", asForm, "--X\r\nContent-Disposition: form-data; name=\"firmware\"; filename=a b.iso\r\n\r\nz\r\n--X--\r\n", "z", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			image, name, err := readUpload(t, c.body, "Content-Type", c.kind)
			if c.name == "what is like a boundary" { // one of them is: the body has more behind it
				if err == nil {
					t.Errorf("accepted as %q", image)
				}
				return
			}
			if err != nil || image != c.image || name != c.file {
				t.Errorf("got %.200q, %q, %v", image, name, err)
			}
		})
	}
	if _, name, err := readUpload(t, "z", "Content-Disposition", `attachment; filename="sps-7.iso"`); name != "sps-7.iso" || err != nil {
		t.Errorf("raw with a name: %q, %v", name, err)
	}
}

func TestUploadBodyRefused(t *testing.T) {
	for _, c := range []struct{ name, kind, body, kindOfError string }{
		{"empty", "application/octet-stream", "", "IncompleteRequestBodyError"},
		{"empty object", "application/json", " {}\n", "IncompleteRequestBodyError"},
		{"empty form", asForm, "", "IncompleteRequestBodyError"},
		{"no parts", asForm, "--X--\r\n", "IncompleteRequestBodyError"},
		{"no form", asForm, "an image", "IncompleteRequestBodyError"},
		{"another boundary", asForm, "--Y\r\n" + form + "z\r\n--Y--\r\n", "IncompleteRequestBodyError"},
		{"no last boundary", asForm, "--X\r\n" + form + "an image", "IncompleteRequestBodyError"},
		{"cut in the boundary", asForm, "--X\r\n" + form + "an image\r\n--X", "IncompleteRequestBodyError"},
		{"cut behind it", asForm, "--X\r\n" + form + "an image\r\n--X-", "IncompleteRequestBodyError"},
		{"cut behind its line", asForm, "--X\r\n" + form + "an image\r\n--X\r\n", "IncompleteRequestBodyError"},
		{"cut in the header", asForm, "--X\r\nContent-Disp", "IncompleteRequestBodyError"},
		{"no such part", asForm, "--X\r\nContent-Disposition: form-data; name=\"Firmware\"\r\n\r\nz\r\n--X--\r\n", "IncompleteRequestBodyError"},
		{"two images", asForm, "--X\r\n" + form + "a\r\n--X\r\n" + form + "b\r\n--X--\r\n", "IncompleteRequestBodyError"},
		{"something behind", asForm, "--X\r\n" + form + "a\r\n--X--\r\nb\r\n--X--\r\n", "IncompleteRequestBodyError"},
		{"much behind", asForm, "--X\r\n" + form + "a\r\n--X--" + strings.Repeat("\n", 100), "IncompleteRequestBodyError"},
		{"base64", asForm, "--X\r\nContent-Transfer-Encoding: base64\r\n" + form + "eg==\r\n--X--\r\n", "SemanticError"},
		{"malformed header", asForm, "--X\r\n: x\r\n" + form + "z\r\n--X--\r\n", "IncompleteRequestBodyError"},
		{"long header", asForm, "--X\r\n" + strings.Repeat("A: b\r\n", 5000) + form + "z\r\n--X--\r\n", "IncompleteRequestBodyError"},
		{"long preamble", asForm, strings.Repeat("a\n", 1<<20) + "--X\r\n" + form + "z\r\n--X--\r\n", "IncompleteRequestBodyError"},
		{"long other part", asForm, "--X\r\n" + strings.Replace(form, "firmware", "x", 1) + strings.Repeat("a", 2<<20) + "\r\n--X\r\n" + form + "z\r\n--X--\r\n", "IncompleteRequestBodyError"},
		{"long boundary", "multipart/form-data; boundary=" + strings.Repeat("a", 201), "", "IncompleteRequestBodyError"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := readUpload(t, c.body, "Content-Type", c.kind)
			var e *api.Error
			if !errors.As(err, &e) || e.Type != c.kindOfError || e.Status != 400 || !strings.HasSuffix(e.Message, ".") {
				t.Errorf("got %v", err)
			}
		})
	}
	// What the connection has to say comes through.
	broken := errors.New("broken")
	for _, body := range []string{"", "--", "--X\r\n", "--X\r\n" + form, "--X\r\n" + form + "z", "--X\r\n" + form + "z\r\n--X--", "an image"} {
		_, _, err := fetch.ReadUpload(io.MultiReader(strings.NewReader(body), iotest.ErrReader(broken)), http.Header{})
		if !errors.Is(err, broken) {
			t.Errorf("after %q: %v", body, err)
		}
	}
}

// FuzzUploadBody puts any bytes into a part and wants them back; and no body makes the reader hang or fall over.
func FuzzUploadBody(f *testing.F) {
	f.Add([]byte("an image"), "X", 3)
	f.Add([]byte("\r\n--X--\r\n--X\r\n\r\n--XY"), "X", 1)
	f.Add([]byte("--\r\n----"), "--", 2)
	f.Add([]byte(strings.Repeat("\r\n--", 300)), "-_1a", 4095)
	f.Fuzz(func(t *testing.T, image []byte, boundary string, piece int) {
		if _, _, err := fetch.ReadUpload(&pieces{image, piece}, http.Header{"Content-Type": {boundary}}); err != nil && !errors.As(err, new(*api.Error)) {
			t.Errorf("as a body: %v", err)
		}
		if boundary == "" || len(boundary) > 70 || strings.TrimRight(boundary, " ") != boundary ||
			strings.ContainsFunc(boundary, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }) {
			return
		}
		body := fmt.Appendf(nil, "--%s\r\n%s%s\r\n--%[1]s--\r\n", boundary, form, image)
		for _, kind := range []string{`multipart/form-data; boundary="` + boundary + `"`, "application/json"} {
			got, name, err := fetch.ReadUpload(&pieces{body, piece}, http.Header{"Content-Type": {kind}})
			if bytes.Contains(image, []byte("\r\n--"+boundary)) {
				// It breaks RFC 2046; only what is no whole line of a boundary comes back as it was.
				if err == nil && !bytes.HasPrefix(image, got) {
					t.Errorf("%s: got %q, %q, %v", kind, got, name, err)
				}
				continue
			}
			if err != nil || !bytes.Equal(got, image) || name != "sps.iso" {
				t.Errorf("%s: got %q, %q, %v", kind, got, name, err)
			}
		}
	})
}

// pieces reads b so many bytes at a time.
type pieces struct {
	b     []byte
	piece int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.b[:min(len(p.b), 1+max(p.piece, 0)%8192)])
	p.b = p.b[n:]
	return n, nil
}
