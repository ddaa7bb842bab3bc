package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"slotfetch/fetch/source"
	"slotfetch/store"
)

// This file finds the digest of a fetch whose request does not have it but names the file that does: SHA256SUMS,
// image.iso.sha256, or a Metalink. Such a digest is worth as much as the way to that file: where a digest of the request
// would make up for a certificate that does not verify, this one does only if that file came over TLS that did.

// resolve notes the digest before anything else happens. From then on the fetch is like any other.
func (d *download) resolve(ctx context.Context) error {
	if d.f.SHA256 != "" {
		return nil
	}
	secrets, err := d.secrets()
	if err != nil {
		return err
	}
	if d.f.ChecksumURL == "" && d.f.Sidecar != "" {
		return d.resolveBeside(ctx, secrets)
	}
	req, err := d.sumsRequest(secrets)
	if err != nil {
		return err
	}
	sum, safe, err := d.awaitSum(ctx, req, true)
	if err != nil {
		return err
	}
	return d.noteDigest(ctx, sum, safe)
}

// awaitSum reads a checksum file, again and again while that may help. bare is as in [source.SumFor].
func (d *download) awaitSum(ctx context.Context, req source.Request, bare bool) (sum string, safe bool, err error) {
	for round := 1; ; round++ {
		sum, safe, err := d.readSum(ctx, req, bare)
		if err == nil {
			return sum, safe, nil
		}
		if ctx.Err() != nil {
			return "", false, context.Cause(ctx)
		}
		why, ok := sumsError(err)
		if !ok {
			return "", false, err
		}
		d.log.Warn("cannot read the checksum file", "url", source.Redact(req.URL), "code", why.Code, "class", why.Class.String(), "err", why)
		if why.Class != source.Temporary || round >= d.m.cfg.Retry.Rounds {
			return "", false, why
		}
		if err := d.wait(ctx, d.m.cfg.Retry.delay(round, why.RetryAfter), why); err != nil {
			return "", false, err
		}
	}
}

// sumsError says what the trouble is about; ok is false if it is none of a source.
func sumsError(err error) (e *source.Error, ok bool) {
	if !errors.As(err, &e) {
		return nil, false
	}
	why := *e
	why.Message = "The checksum file could not be used: " + e.Message
	return &why, true
}

// sumsRequest asks for the checksum file. Credentials of the image go along to the same origin only.
func (d *download) sumsRequest(secrets Secrets) (source.Request, error) {
	u, err1 := url.Parse(d.f.ChecksumURL)
	image, err2 := url.Parse(d.f.URL)
	if err := errors.Join(err1, err2); err != nil || u.Host == "" && u.Scheme != "file" {
		return source.Request{}, fmt.Errorf("cannot parse stored checksum url: %w", err)
	}
	cred := secrets.Checksum
	if cred == nil && source.Origin(u) == source.Origin(image) {
		cred = secrets.URL
	}
	return d.request(u, cred), nil
}

// readSum reads the file and finds the image in it. safe tells that nobody on the way could change it.
func (d *download) readSum(ctx context.Context, req source.Request, bare bool) (sum string, safe bool, err error) {
	image, err := url.Parse(d.f.URL)
	if err != nil {
		return "", false, err
	}
	name := source.FileName(image)
	err = d.consult(ctx, req, func(s *source.Stream) (err error) {
		safe = req.URL.Scheme == "file" || s.TLSVerified != nil && *s.TLSVerified
		if isMetalink(req.URL) {
			if isMetalink(image) {
				name = "" // which is not that of a file in it
			}
			sum, err = metalinkSum(s, name)
			return err
		}
		text, err := io.ReadAll(io.LimitReader(s, source.MaxSidecar+1))
		if err != nil {
			return err
		}
		if len(text) > source.MaxSidecar {
			return source.NewError("checksum_file", fmt.Sprintf("It is longer than %d bytes.", source.MaxSidecar), nil)
		}
		if sum = source.SumFor(string(text), name, bare); sum == "" {
			return noSum(name)
		}
		return nil
	})
	return sum, safe, err
}

// consultTime is for the whole of a checksum file or Metalink, which is at most a megabyte.
const consultTime = time.Minute

// consult opens what is no image, but tells of one, and gives it to read.
func (d *download) consult(ctx context.Context, req source.Request, read func(*source.Stream) error) error {
	if d.fl != nil { // else it is only a look
		d.fl.progress.set(store.Downloading, d.f.Attempts)
		d.m.notify()
	}
	ctx, stop := context.WithTimeoutCause(ctx, consultTime, source.NewError("stalled", fmt.Sprintf("It did not come within %s.", consultTime), nil))
	defer stop()
	req.SHA256 = "" // that is the image's
	stream, err := d.m.cfg.Source.Open(ctx, req, 0, source.Validator{})
	if err != nil {
		return err
	}
	defer stream.Close() //nolint:errcheck // what matters was read
	return read(stream)
}

// metalinkSum is the digest of the file that is called name; without a name, of the only one.
func metalinkSum(s *source.Stream, name string) (string, error) {
	files, err := readMetalink(s)
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if f.SHA256 != "" && (f.Name == name || name == "" && len(files) == 1) {
			return f.SHA256, nil
		}
	}
	return "", noSum(name)
}

func noSum(name string) *source.Error {
	if name == "" {
		name = "the image"
	}
	return source.NewError("checksum_file", fmt.Sprintf("It has no SHA-256 for %s, or several.", name), nil)
}

// noteDigest makes the digest part of the fetch, durably.
func (d *download) noteDigest(ctx context.Context, sum string, safe bool) error {
	if !safe && d.f.TLSVerify == nil {
		strict := true
		d.f.TLSVerify = &strict
	}
	err := d.insist(ctx, "of a known digest", func() error {
		_, err := d.m.cfg.Store.SetDigest(d.f.Key, sum, d.f.TLSVerify)
		return err
	})
	if errors.Is(err, store.ErrConflict) {
		return errCancelled
	}
	if err != nil {
		return err
	}
	d.f.SHA256 = sum
	d.log.Info("the checksum file has the digest", "sha256", sum)
	return nil
}
