package fetch

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"unicode"

	"slotfetch/api"
	"slotfetch/fetch/source"
)

// This file finds the image in the body of an upload (contract section 8): in the part "firmware" of a multipart body,
// whatever the Content-Type calls it, else the whole body is the image. Go's own mime/multipart takes a boundary for one
// that only looks like it, and its file names for whole.

const (
	uploadField = "firmware"
	bodyBuffer  = 64 << 10
	maxHead     = 16 << 10 // bytes of the header of a part
	maxBoundary = 200      // characters; RFC 2046, section 5.1.1, has 70
	maxPadding  = 64       // blanks behind a boundary
	maxOther    = 1 << 20  // bytes beside the image
	maxFileName = 255      // characters
)

// noImage says why a body holds no image that could be taken.
func noImage(why string) *api.Error {
	e := api.Missing(uploadField, "")
	e.Message = why
	return e
}

func cutShort() error {
	return noImage("The body ended before its last boundary: the upload was not complete.")
}

// uploadBody reads the image. It says EOF only if the body is whole.
type uploadBody struct {
	r     *bufio.Reader
	name  string // of the file, cleaned; empty if it was not told
	parts *parts // nil: the body is the image
}

// openUpload reads as far as the image. Its errors are *api.Error, or those of body.
func openUpload(body io.Reader, h http.Header, field string) (*uploadBody, error) {
	u := &uploadBody{r: bufio.NewReaderSize(body, bodyBuffer)}
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	boundary := ""
	if err == nil && kind == "multipart/form-data" {
		boundary = params["boundary"]
	}
	if boundary == "" {
		if boundary, err = findBoundary(u.r); err != nil {
			return nil, err
		}
	}
	if boundary == "" {
		_, name := disposition(h.Get("Content-Disposition"))
		u.name = fileName(name)
		return u, u.notNothing()
	}
	u.parts = &parts{r: u.r, field: field}
	if err := u.parts.begin(boundary); err != nil {
		return nil, err
	}
	found, err := u.parts.find()
	if err == nil && !found {
		err = noImage("The body has no part \"" + field + "\".")
	}
	u.name = u.parts.name
	return u, err
}

// notNothing refuses a raw body that is empty, or the {} that some clients send for it.
func (u *uploadBody) notNothing() error {
	head, err := u.r.Peek(16)
	switch text := string(bytes.TrimSpace(head)); {
	case err == io.EOF && (len(head) == 0 || text == "{}"):
		return noImage("The body is empty. Send the image, raw or as the part \"" + uploadField + "\" of multipart/form-data.")
	case err == io.EOF:
		return nil
	}
	return err
}

// Read reads the image.
func (u *uploadBody) Read(p []byte) (int, error) {
	if u.parts == nil {
		return u.r.Read(p)
	}
	n, err := u.parts.Read(p)
	if err == io.EOF {
		if ferr := u.parts.finish(); ferr != nil {
			err = ferr
		}
	}
	return n, err
}

// findBoundary looks whether the body is multipart by itself: a line --X, and below it headers of which one is
// Content-Disposition. It takes nothing from r; empty means that it is not.
func findBoundary(r *bufio.Reader) (string, error) {
	for n := 2; ; n = min(max(n*2, 256), maxHead) {
		head, err := r.Peek(n)
		if err != nil && err != io.EOF {
			return "", err
		}
		if !bytes.HasPrefix(head, []byte("--")) {
			return "", nil
		}
		text := strings.ReplaceAll(string(head), "\r\n", "\n")
		if block, _, whole := strings.Cut(text, "\n\n"); whole {
			first, headers, _ := strings.Cut(block, "\n")
			boundary := strings.TrimRight(first[2:], " \t")
			printable := !strings.ContainsFunc(boundary, func(c rune) bool { return c < ' ' || c > '~' })
			if printable && len(boundary) <= maxBoundary && strings.Contains("\n"+strings.ToLower(headers), "\ncontent-disposition:") {
				return boundary, nil
			}
			return "", nil
		}
		if err == io.EOF || n == maxHead {
			return "", nil
		}
	}
}

// parts reads the parts of a multipart body, of which one is the image.
type parts struct {
	r         *bufio.Reader
	field     string // of the part that is the image
	lineEnd   []byte // CRLF, or what the first boundary has instead
	delimiter []byte // line end, --, boundary
	name      string // of the file of the part
	ended     bool   // the part is over
	last      bool   // and there is no other
	other     int64  // bytes so far that are not the image
}

// begin reads as far as the first boundary; what is before it does not count (RFC 2046, section 5.1.1).
func (p *parts) begin(boundary string) error {
	if len(boundary) > maxBoundary {
		return noImage("The boundary of the body is too long.")
	}
	for {
		line, err := p.line()
		if err != nil {
			return err
		}
		rest, ok := bytes.CutPrefix(line, []byte("--"+boundary))
		if !ok {
			continue
		}
		switch end := string(bytes.TrimLeft(rest, " \t")); end {
		case "\r\n", "\n":
			p.lineEnd = []byte(end)
			p.delimiter = []byte(end + "--" + boundary)
			return nil
		case "--\r\n", "--\n":
			return noImage("The body has no parts.")
		}
	}
}

// line reads a line that is not of the image.
func (p *parts) line() ([]byte, error) {
	line, err := p.r.ReadSlice('\n')
	p.other += int64(len(line))
	switch {
	case err == io.EOF:
		return nil, cutShort()
	case errors.Is(err, bufio.ErrBufferFull), err == nil && p.other > maxOther:
		return nil, noImage("The body has too much in it beside the image.")
	}
	return line, err
}

// find goes to the next part that is the image; false if there is none.
func (p *parts) find() (bool, error) {
	for !p.last {
		p.ended = false
		is, err := p.header()
		if is || err != nil {
			return is, err
		}
		n, err := io.Copy(io.Discard, io.LimitReader(p, maxOther+1))
		if p.other += n; err == nil && p.other > maxOther {
			err = noImage("The body has too much in it beside the image.")
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// header reads the header of a part and tells whether the part is the image.
func (p *parts) header() (bool, error) {
	var block []byte
	for {
		line, err := p.line()
		if err != nil {
			return false, err
		}
		if block = append(block, line...); len(block) > maxHead {
			return false, noImage("The header of a part of the body is too long.")
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			break
		}
	}
	h, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(block))).ReadMIMEHeader()
	if err != nil {
		return false, noImage("The header of a part of the body is malformed.")
	}
	field, name := disposition(h.Get("Content-Disposition"))
	if field != p.field {
		return false, nil
	}
	if p.field != uploadField && len(name) > maxFileName {
		return false, errors.Join(ErrLongName, noImage(fmt.Sprintf("The name of the file is longer than %d bytes.", maxFileName)))
	}
	p.name = fileName(name)
	switch strings.ToLower(h.Get("Content-Transfer-Encoding")) {
	case "", "7bit", "8bit", "binary":
		return true, nil
	}
	return false, api.Semantic("Content-Transfer-Encoding", "binary, or left out (RFC 7578, section 4.7)")
}

// Read reads the part up to the boundary, which it takes too. It looks at what bytes are, not at how they came: a boundary is a
// line of its own.
func (p *parts) Read(b []byte) (int, error) {
	if p.ended {
		return 0, io.EOF
	}
	look := len(p.delimiter) + maxPadding + len("\r\n")
	buf, err := p.r.Peek(max(look, p.r.Buffered()))
	if err != nil && err != io.EOF {
		return 0, err
	}
	n := bytes.Index(buf, p.delimiter)
	switch {
	case n < 0 && err == io.EOF:
		return 0, cutShort()
	case n < 0:
		n = len(buf) - len(p.delimiter) + 1
	case n == 0:
		if size, last, ok := p.boundary(buf[len(p.delimiter):]); ok {
			p.ended, p.last = true, last
			if _, err := p.r.Discard(len(p.delimiter) + size); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
		n = len(p.delimiter)
	}
	n = copy(b, buf[:n])
	_, err = p.r.Discard(n)
	return n, err
}

// boundary tells how what follows a delimiter makes a boundary of it; ok is false if it was part of the image.
func (p *parts) boundary(rest []byte) (size int, last, ok bool) {
	if bytes.HasPrefix(rest, []byte("--")) {
		return 2, true, true
	}
	pad := len(rest) - len(bytes.TrimLeft(rest, " \t"))
	return pad + len(p.lineEnd), false, bytes.HasPrefix(rest[pad:], p.lineEnd)
}

// finish reads what is behind the image, of which nothing may be missing.
func (p *parts) finish() error {
	if again, err := p.find(); err != nil {
		return err
	} else if again {
		return errors.Join(ErrManyImages, noImage("There is more than one part \""+p.field+"\" in the body."))
	}
	rest, err := io.ReadAll(io.LimitReader(p.r, maxPadding+1))
	if err == nil && (len(rest) > maxPadding || len(bytes.TrimSpace(rest)) > 0) {
		// An image that has its own boundary in it; what is in the slot would not be all of it.
		err = noImage("There is something behind the last boundary of the body.")
	}
	return err
}

// disposition reads a Content-Disposition: which field of a form it is, and the name of the file as it came.
func disposition(header string) (field, name string) {
	if header == "" {
		return "", ""
	}
	_, params, err := mime.ParseMediaType(header)
	if err != nil {
		// Only a file name can be so odd; the field decides.
		before, _, _ := strings.Cut(header, "filename")
		_, params, _ = mime.ParseMediaType(strings.TrimRight(before, "; "))
	}
	return params["name"], params["filename"]
}

// fileName is the last segment of a path of any system, or of a URL, without what a terminal or a log might trip over.
func fileName(s string) string {
	if strings.Contains(s, "://") {
		u, err := url.Parse(s)
		if err != nil {
			return ""
		}
		s = source.FileName(u)
	}
	s = s[strings.LastIndexAny(s, `/\`)+1:]
	s = strings.TrimSpace(strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return -1
		}
		return c
	}, strings.ToValidUTF8(s, "")))
	if r := []rune(s); len(r) > maxFileName {
		s = string(r[:maxFileName])
	}
	if s == "." || s == ".." {
		return ""
	}
	return s
}
