package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"slotfetch/fetch/source"
	"slotfetch/slots"
)

// This file is about fetches whose request says nothing of a digest (ONTAP contract section 3.2): the publisher may have
// put it beside the image.

const (
	// SidecarRequired fails a fetch without a checksum file beside its image.
	SidecarRequired = "required"
	// SidecarOptional goes on without; what the digest comes to is recorded.
	SidecarOptional = "optional"
)

// resolveBeside looks for image.iso.sha256, then for SHA256SUMS in the directory of the image. A server that has trouble is
// asked again; one that has no such file, or an unusable one, is not.
func (d *download) resolveBeside(ctx context.Context, secrets Secrets) error {
	image, err := url.Parse(d.f.URL)
	if err != nil {
		return fmt.Errorf("cannot parse stored url: %w", err)
	}
	places := []struct {
		url  *url.URL
		bare bool
	}{{beside(image, ".sha256"), true}, {image.ResolveReference(&url.URL{Path: "SHA256SUMS"}), false}}
	if isMetalink(image) {
		places = places[:1]
		places[0].url = image // which tells itself
	}
	var tried []string
	for _, p := range places {
		sum, safe, err := d.awaitSum(ctx, d.request(p.url, secrets.URL), p.bare)
		if err == nil {
			return d.noteDigest(ctx, sum, safe)
		}
		why, ok := notThere(err)
		if !ok {
			return err
		}
		tried = append(tried, fmt.Sprintf("%s (%s)", source.FileName(p.url), why))
	}
	if d.f.Sidecar == SidecarOptional {
		d.log.Warn("nobody says what the digest is; it will be what comes", "tried", strings.Join(tried, ", "))
		return nil
	}
	return source.NewError("no_checksum", fmt.Sprintf("No SHA-256 for %s: tried %s.", source.FileName(image), strings.Join(tried, " and ")), nil)
}

// notThere tells whether err means that a server has no checksum file, or none of use; why is a word or two.
func notThere(err error) (why string, ok bool) {
	var e *source.Error
	if !errors.As(err, &e) {
		return "", false
	}
	switch code := e.Code; {
	case code == "checksum_file", code == "metalink":
		return "no digest in it", true
	case code == "file_missing":
		return "not there", true
	case code == "no_file":
		return "no file name", true
	case code == "encoding":
		return "compressed", true
	case code == "too_large":
		return "too large", true
	case code == "file_type":
		return "no file", true
	case code == "http_408", code == "http_429", code == "http_407": // trouble on the way
		return "", false
	case strings.HasPrefix(code, "http_2"), strings.HasPrefix(code, "http_4"), code == "ftp_550", code == "ftp_553":
		return code[strings.IndexByte(code, '_')+1:], true
	}
	return "", false
}

// alone refuses an image whose version another slot has with other content, where the fetch asks for that. The slot that
// runs does not count.
func (d *download) alone(m slots.Manifest) error {
	if !d.f.LoneVersion {
		return nil
	}
	list, err := d.m.cfg.Slots.List()
	if err != nil {
		return errWrite{err}
	}
	for _, s := range list {
		if s.Manifest != nil && !s.Current && s.Manifest.Version == m.Version && s.Manifest.SHA256 != m.SHA256 {
			return source.NewError("version_exists", fmt.Sprintf("Version %s is already in slot %d with other content.", m.Version, s.ID), nil)
		}
	}
	return nil
}
