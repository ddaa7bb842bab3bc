package slots

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// TestPolicy is what [Slots.Test] asks beyond the slot itself.
type TestPolicy struct {
	// AllowDowngrade lets a version pass that is lower than the current one, though not one that the current image refuses.
	AllowDowngrade bool
	// Back is for the way back to a slot that ran before: products and versions do not matter.
	Back bool
	// Products and Versions are the patterns, as for [path.Match], of what may be activated; none means all.
	Products, Versions []string
	// Signed refuses an image that did not come with a signed manifest, such as one that was uploaded, or whose key is not
	// among Keys.
	Signed bool
	// Keys are the ids of the keys that may sign now, which need not be those of when the image came.
	Keys []string
	// SignedProduct is what an image that one of them has signed must be, except on the way back; empty for any.
	SignedProduct string
	// Space is how many bytes are free where the agent keeps its state.
	Space func() (int64, error)
	// Hooks runs the vendor's own checks; nil for none. The error says why none could be run.
	Hooks func(context.Context, HookSubject) ([]HookVerdict, error)
}

// HookSubject is what a vendor's check is told.
type HookSubject struct {
	Slot int
	// Image is the path of the image.
	Image string
	// Version, SHA256 and Product are those of the image; the product may be empty.
	Version, SHA256, Product string
	// Current is the version that runs; empty if unknown.
	Current string
}

// HookVerdict is what one of a vendor's checks said.
type HookVerdict struct {
	Name string
	// Remark is what it said of its success, in one line; it may be empty.
	Remark string
	// Err is why it said no, in one line; nil if it did not.
	Err error
}

// Report is what there is to say of a slot that is to be activated.
type Report struct {
	lines  []string
	failed string // the first line of a check that failed
}

// Summary is one line for each check.
func (r Report) Summary() string { return strings.Join(r.lines, "\n") }

// Failed is the first line that says why the slot cannot be activated; empty if it can.
func (r Report) Failed() string { return r.failed }

func (r *Report) pass(name, why string) {
	line := name + ": ok"
	if why != "" {
		line += " (" + why + ")"
	}
	r.lines = append(r.lines, line)
}

// add appends the lines of another report.
func (r *Report) add(other Report) {
	r.lines = append(r.lines, other.lines...)
	r.failed = cmp.Or(r.failed, other.failed)
}

func (r *Report) fail(name, why string) {
	line := name + ": FAILED (" + why + ")"
	r.lines = append(r.lines, line)
	if r.failed == "" {
		r.failed = line
	}
}

// Test looks whether the image in a slot that the caller holds could be activated. It reads all of it from the disk, which
// takes seconds for each GiB. The error is the cause of ctx, or of the disk if it does not answer for the state.
func (s *Slots) Test(ctx context.Context, id int, p TestPolicy) (Report, error) {
	found, err := s.inspect(ctx, id, p, nil)
	if err != nil {
		return Report{}, err
	}
	return s.judge(found, p)
}

// inspection is what a long look at the image in a slot has come to.
type inspection struct {
	image   Report
	damaged bool     // there is nothing else to say
	about   Manifest // of the slot, with what the image says of itself
	hooks   Report
}

// inspect reads the image and runs the hooks of p. Pace is asked before each piece is read; nil: as fast as it goes. The error
// is the cause of ctx.
func (s *Slots) inspect(ctx context.Context, id int, p TestPolicy, pace Pace) (in inspection, err error) {
	img, err := openImage(s.root, id, !s.cfg.Buffered)
	if err != nil {
		s.cfg.Log.Error("the slot is damaged", "slot", id, "err", err)
		in.image.fail("Image", "the slot is damaged; delete it and fetch the image again")
		in.damaged = true
		return in, nil
	}
	defer img.Close() //nolint:errcheck // it was only read
	sound, err := s.testImage(ctx, &in.image, id, img, pace)
	if err != nil {
		return in, err
	}
	s.testIdentity(&in.image, img)
	in.about = img.Manifest
	if p.Hooks != nil && sound {
		verdicts, err := p.Hooks(ctx, HookSubject{Slot: id, Image: filepath.Join(s.cfg.Dir, slotName(id), imageFile), Version: in.about.Version,
			SHA256: in.about.SHA256, Product: in.about.Product, Current: s.currentImage().Version})
		if cause := context.Cause(ctx); cause != nil {
			return in, cause
		}
		in.hooks.hooks(verdicts, err)
	}
	return in, nil
}

func (r *Report) hooks(verdicts []HookVerdict, err error) {
	if err != nil {
		r.fail("Hooks", err.Error())
	}
	for _, v := range verdicts {
		if v.Err != nil {
			r.fail("Hook "+v.Name, v.Err.Error())
		} else {
			r.pass("Hook "+v.Name, v.Remark)
		}
	}
}

// testImage tells whether the image is what its manifest promises. If it is not, the slot is degraded, as after a scrub.
func (s *Slots) testImage(ctx context.Context, r *Report, id int, img *Image, pace Pace) (sound bool, err error) {
	digest, err := img.Digest(ctx, pace)
	switch {
	case context.Cause(ctx) != nil:
		return false, context.Cause(ctx)
	case err != nil:
		s.cfg.Log.Error("cannot read the image", "slot", id, "err", err)
		s.degrade(id, img)
		r.fail("Image digest", "the disk cannot read the image; delete it and fetch it again")
		return false, nil
	case digest != img.Manifest.SHA256:
		s.cfg.Log.Error("slot is degraded: its image has changed", "slot", id, "key", img.Manifest.Key, "want", img.Manifest.SHA256, "got", digest)
		s.degrade(id, img)
		r.fail("Image digest", fmt.Sprintf("the image has changed: SHA-256 is %s, not %s; delete it and fetch it again", digest, img.Manifest.SHA256))
	default:
		sound = true
		r.pass("Image digest", "")
	}
	switch _, _, err := InspectISO(img.file, img.Manifest.Size, ""); {
	case err == nil:
		r.pass("ISO structure", "")
	case !errors.Is(err, ErrNotISO):
		s.cfg.Log.Error("cannot inspect the image", "slot", id, "err", err)
		r.fail("ISO structure", "the disk cannot read the image")
	case img.Manifest.ISO, s.cfg.RequireISO:
		r.fail("ISO structure", "this is no ISO 9660 file system")
	default:
		r.pass("ISO structure", "not an ISO 9660 file system, and need not be one")
	}
	return sound, nil
}

// degrade notes that the image in a slot that the caller holds is lost.
func (s *Slots) degrade(id int, img *Image) {
	if _, err := s.noteScrub(id, &img.Manifest, true); err != nil {
		s.cfg.Log.Error("cannot note that a slot is degraded", "slot", id, "err", err)
	}
}

// testIdentity compares the manifest inside the image with what is known of it, and adds what is new to img.Manifest. What
// is signed wins; of an image that is not, the configuration may have changed since it came.
func (s *Slots) testIdentity(r *Report, img *Image) {
	const name = "Image manifest"
	if s.cfg.ManifestFile == "" {
		return
	}
	id, found, err := ISOIdentity(img.file, img.Manifest.Size, s.cfg.ManifestFile)
	bad := badIdentity{}
	switch {
	case errors.As(err, &bad):
		r.fail(name, bad.Error())
		return
	case err != nil:
		s.cfg.Log.Error("cannot read the manifest inside the image", "err", err)
		r.fail(name, "the disk cannot read it")
		return
	case !found:
		r.pass(name, "there is none inside the image")
		return
	}
	m := &img.Manifest
	if m.SignedBy == "" {
		m.Vouch(id)
	} else {
		for _, f := range []struct{ name, inside, signed string }{{"product", id.Product, m.Product}, {"version", id.Version, m.Version},
			{"min_version", id.MinVersion, m.MinVersion}, {"upgrade_from", id.UpgradeFrom, m.UpgradeFrom}} {
			if f.inside != "" && f.signed != "" && f.inside != f.signed {
				r.fail(name, fmt.Sprintf("its %s is %s, and that of the signed manifest %s", f.name, f.inside, f.signed))
				return
			}
		}
		was := Identity{Product: m.Product, Version: m.Version, MinVersion: m.MinVersion, UpgradeFrom: m.UpgradeFrom}
		m.Vouch(id)
		m.Vouch(was)
	}
	r.pass(name, strings.TrimSpace(id.Product+" "+id.Version))
}
