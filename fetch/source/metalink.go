package source

import (
	"cmp"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
)

// MetaFile is one file of a Metalink (RFC 5854).
type MetaFile struct {
	// Name is what the file is called, without a path.
	Name string
	// Size is in bytes, -1 if unknown.
	Size int64
	// SHA256 is in lower-case hex, empty if unknown.
	SHA256 string
	// URLs are where it is, the best first. They are as they were written: whoever uses them checks them.
	URLs []string
}

// ParseMetalink reads a Metalink 4 document of at most [MaxSidecar] bytes. The error is an [*Error].
func ParseMetalink(r io.Reader) ([]MetaFile, error) {
	type link struct {
		Priority int    `xml:"priority,attr"`
		Text     string `xml:",chardata"`
	}
	var doc struct {
		XMLName xml.Name `xml:"urn:ietf:params:xml:ns:metalink metalink"`
		Files   []struct {
			Name string `xml:"name,attr"`
			Size *int64 `xml:"size"`
			Hash []struct {
				Type string `xml:"type,attr"`
				Text string `xml:",chardata"`
			} `xml:"hash"`
			URL []link `xml:"url"`
		} `xml:"file"`
	}
	limited := &io.LimitedReader{R: r, N: MaxSidecar + 1}
	d := xml.NewDecoder(limited)
	err := d.Decode(&doc)
	if err == nil && limited.N == 0 {
		err = errors.New("too long")
	}
	if err != nil {
		return nil, metalinkError("The Metalink could not be read.", err)
	}
	var files []MetaFile
	for _, f := range doc.Files {
		m := MetaFile{Name: f.Name[strings.LastIndexByte(f.Name, '/')+1:], Size: -1}
		if f.Size != nil && *f.Size >= 0 {
			m.Size = *f.Size
		}
		for _, h := range f.Hash {
			if strings.EqualFold(h.Type, "sha-256") {
				m.SHA256 = hexDigest(h.Text)
			}
		}
		for i := range f.URL {
			if f.URL[i].Priority <= 0 {
				f.URL[i].Priority = 1_000_000 // none: last (RFC 5854, 4.2.16)
			}
		}
		slices.SortStableFunc(f.URL, func(a, b link) int { return cmp.Compare(a.Priority, b.Priority) })
		for _, u := range f.URL {
			m.URLs = append(m.URLs, strings.TrimSpace(u.Text))
		}
		files = append(files, m)
	}
	if len(files) == 0 {
		return nil, metalinkError("The Metalink names no file.", nil)
	}
	return files, nil
}

func metalinkError(message string, err error) *Error {
	return NewError("metalink", message, err)
}
