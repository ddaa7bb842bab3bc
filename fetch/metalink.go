package fetch

import (
	"context"
	"io"
	"net/url"
	"slices"
	"strings"

	"slotfetch/fetch/source"
)

// This file lets the URL or a mirror of a fetch be a Metalink (RFC 5854): a list of places where the image is.

// maxPlaces is how many places of one Metalink are tried.
const maxPlaces = 16

// isMetalink tells by the name.
func isMetalink(u *url.URL) bool {
	return strings.HasSuffix(strings.ToLower(source.Untyped(u).Path), ".meta4")
}

// expand reads the Metalink that is the current candidate and puts what it lists in its place. What a Metalink says of the
// digest is only used to find the file in it: the digest of the request decides.
func (d *download) expand(ctx context.Context, req source.Request) error {
	var files []source.MetaFile
	err := d.consult(ctx, req, func(s *source.Stream) (err error) {
		files, err = readMetalink(s)
		return err
	})
	if err != nil {
		return err
	}
	found, err := places(files, *d.tour.current())
	if err != nil {
		return err
	}
	d.tour.expand(found)
	d.log.Info("the Metalink lists places of the image", "places", len(found))
	return nil
}

// readMetalink reads a Metalink. Its error is the connection's where that is at fault.
func readMetalink(s *source.Stream) ([]source.MetaFile, error) {
	limited := &failing{r: s}
	files, err := source.ParseMetalink(limited)
	if limited.err != nil {
		return nil, limited.err
	}
	return files, err
}

// places are where the Metalink c, which lists files, has the image; at least one. Without a digest in c it must list one
// file only.
func places(files []source.MetaFile, c candidate) ([]candidate, error) {
	want := c.req.SHA256
	k := slices.IndexFunc(files, func(f source.MetaFile) bool { return want != "" && f.SHA256 == want })
	if k < 0 && len(files) == 1 && (want == "" || files[0].SHA256 == "") {
		k = 0
	}
	if k < 0 {
		return nil, source.NewError("metalink", "The Metalink lists no file with the SHA-256 that was asked for.", nil)
	}
	var found []candidate
	for _, raw := range files[k].URLs {
		u, _, err := source.ParseURL(raw) // userinfo that somebody put there is not ours to send
		if err != nil || u.Scheme == "file" || isMetalink(u) || len(found) == maxPlaces {
			continue
		}
		place := candidate{url: u.String(), req: c.req}
		place.req.URL = u
		if source.Origin(u) != source.Origin(c.req.URL) {
			place.req.Credentials = nil
		}
		found = append(found, place)
	}
	if len(found) == 0 {
		return nil, source.NewError("metalink", "The Metalink lists no place that can be used: http, https, ftp or ftps.", nil)
	}
	return found, nil
}

// failing remembers the error of what it reads from.
type failing struct {
	r   io.Reader
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}
