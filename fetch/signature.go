package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"

	"slotfetch/api"
	"slotfetch/fetch/source"
	"slotfetch/slots"
	"slotfetch/store"
)

// This file finds the signed manifest of a fetch, in its request or beside the image, and holds the fetch to it.

// What is beside the image is called like it, with these endings; the second is what minisign makes of the first.
const (
	manifestEnding = ".manifest.json"
	minisigEnding  = ".minisig"
)

// parseSignature reads the signed manifest of a request, which may be absent.
func parseSignature(o api.Object) (*Signature, error) {
	sub, ok, err := o.Object("signature")
	if err != nil || !ok {
		return nil, err
	}
	if err := first(sub.Required("manifest"), sub.Required("minisig")); err != nil {
		return nil, err
	}
	var s Signature
	if s.Manifest, err = sub.String("manifest", "a signed manifest as text"); err != nil {
		return nil, err
	}
	if s.Minisig, err = sub.String("minisig", "a signature of minisign as text"); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"manifest": s.Manifest, "minisig": s.Minisig} {
		if len(text) > MaxSigned {
			return nil, api.Semantic("signature."+name, fmt.Sprintf("at most %d bytes", MaxSigned))
		}
	}
	return &s, nil
}

// encode is s for the row of a fetch; empty for none.
func (s *Signature) encode() (string, error) {
	if s == nil {
		return "", nil
	}
	text, err := json.Marshal(s)
	return string(text), err
}

// wantsSignature tells whether f has to be proved by a signed manifest.
func (m *Manager) wantsSignature(f store.Fetch) bool {
	return m.cfg.Trust.Require || f.Signature != ""
}

// resolveSigned holds the fetch to its signed manifest, if it needs one, before anything else happens. What was found is
// kept with the row, so that a restart needs no server for it, and is verified again: keys and clock may have changed.
func (d *download) resolveSigned(ctx context.Context) error {
	if !d.m.wantsSignature(d.f) {
		return nil
	}
	if d.f.Signature != "" {
		var s Signature
		if err := json.Unmarshal([]byte(d.f.Signature), &s); err != nil {
			return fmt.Errorf("cannot read stored signature: %w", err)
		}
		if err := d.believe(s); err != nil {
			return err
		}
		if d.f.SHA256 != "" {
			return nil
		}
		return d.noteSigned(ctx, s)
	}
	secrets, err := d.secrets()
	if err != nil {
		return err
	}
	for round := 1; ; round++ {
		d.fl.progress.set(store.Downloading, d.f.Attempts)
		d.m.notify()
		s, err := d.findSigned(ctx, secrets)
		if err == nil {
			return d.noteSigned(ctx, s)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var why *source.Error
		if !errors.As(err, &why) {
			return err
		}
		d.log.Warn("cannot use the signed manifest", "code", why.Code, "class", why.Class.String(), "err", why)
		if why.Class != source.Temporary || round >= d.m.cfg.Retry.Rounds {
			return why
		}
		if err := d.wait(ctx, d.m.cfg.Retry.delay(round, why.RetryAfter), why); err != nil {
			return err
		}
	}
}

// believe verifies s and sets d.signed if the image that it promises may be fetched.
func (d *download) believe(s Signature) error {
	m, err := d.m.cfg.Trust.verify(s)
	if err != nil {
		return err
	}
	if err := d.m.cfg.Trust.accept(m, d.f.SHA256, d.m.cfg.Now(), d.m.cfg.Slots); err != nil {
		return err
	}
	d.signed = m
	return nil
}

// findSigned looks beside the URL, and then beside each mirror, for a signed manifest that is believed. Its error is that
// of the first place, or of the first where trying again can help.
func (d *download) findSigned(ctx context.Context, secrets Secrets) (Signature, error) {
	places, err := d.plan(secrets)
	if err != nil {
		return Signature{}, err
	}
	var first error
	for _, c := range places {
		s, err := d.signedBeside(ctx, c)
		if err == nil {
			err = d.believe(s)
		}
		if err == nil {
			return s, nil
		}
		var e *source.Error
		if ctx.Err() != nil || !errors.As(err, &e) {
			return Signature{}, err
		}
		if was := (*source.Error)(nil); first == nil || errors.As(first, &was) && was.Class != source.Temporary && e.Class == source.Temporary {
			first = err
		}
	}
	return Signature{}, first
}

// signedBeside reads what is beside the image at c. The signature proves it, so a server need not.
func (d *download) signedBeside(ctx context.Context, c candidate) (s Signature, err error) {
	for _, part := range []struct {
		ending string
		to     *string
	}{{manifestEnding, &s.Manifest}, {manifestEnding + minisigEnding, &s.Minisig}} {
		req := c.req
		req.URL, req.SHA256, req.Signed = beside(c.req.URL, part.ending), "", true
		if *part.to, err = d.readBeside(ctx, req); err != nil {
			return s, signedError(err)
		}
	}
	return s, nil
}

func (d *download) readBeside(ctx context.Context, req source.Request) (text string, err error) {
	err = d.consult(ctx, req, func(s *source.Stream) (err error) {
		text, err = readSigned(s)
		return err
	})
	return text, err
}

// beside is the place called like u with this ending.
func beside(u *url.URL, ending string) *url.URL {
	b := *source.Untyped(u)
	if b.RawPath != "" {
		b.RawPath += ending
	}
	b.Path += ending
	return &b
}

// signedError says what the trouble is about.
func signedError(err error) error {
	var e *source.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code {
	case "http_404", "http_410", "ftp_550", "file_missing":
		return source.NewError("signature_missing", fmt.Sprintf("There is no signed manifest beside the image (%s and %[1]s%s), which this box requires.", manifestEnding, minisigEnding), err)
	}
	why := *e
	why.Message = "The signed manifest could not be read: " + e.Message
	return &why
}

// noteSigned makes the signed manifest and its digest part of the fetch, durably.
func (d *download) noteSigned(ctx context.Context, s Signature) error {
	text, err := s.encode()
	if err != nil {
		return err
	}
	err = d.insist(ctx, "of a known digest", func() error {
		_, err := d.m.cfg.Store.SetSigned(d.f.Key, d.signed.sha256, text)
		return err
	})
	if errors.Is(err, store.ErrConflict) {
		return errCancelled
	}
	if err != nil {
		return err
	}
	d.f.SHA256, d.f.Signature = d.signed.sha256, text
	d.log.Info("the image is promised by a signed manifest", "signed_by", d.signed.keyID, "product", d.signed.Product, "version", d.signed.Version, "sha256", d.signed.sha256)
	return nil
}

// rightSize refuses an image of another size than the signed one; -1 is not known yet.
func (d *download) rightSize(size int64) error {
	if d.signed == nil || size < 0 || size == d.signed.size {
		return nil
	}
	return source.NewError("signature_size", fmt.Sprintf("The image has %d bytes or more, by its signed manifest it has %d.", size, d.signed.size), nil)
}

// bounded keeps a source that announces no size from sending much more than the signed one.
func (d *download) bounded(r io.Reader, offset int64) io.Reader {
	if d.signed == nil {
		return r
	}
	return io.LimitReader(r, max(d.signed.size-offset, 0)+1)
}

// attest notes in the manifest of the slot who promised the image. What is signed wins over what the image says of itself.
func (d *download) attest(m *slots.Manifest) {
	if s := d.signed; s != nil {
		m.SignedBy = s.keyID
		m.Vouch(s.Identity)
	}
}
