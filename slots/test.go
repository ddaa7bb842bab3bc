package slots

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// stateSpace is what the agent needs to note an upgrade and what comes of it, in bytes.
const stateSpace = 16 << 20

// TestPolicy is what [Slots.Test] asks beyond the slot itself.
type TestPolicy struct {
	// AllowDowngrade lets a version pass that is lower than the current one.
	AllowDowngrade bool
	// Signed refuses an image that did not come with a signed manifest, such as one that was uploaded.
	Signed bool
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
	var r Report
	img, err := openImage(s.root, id, !s.cfg.Buffered)
	if err != nil {
		s.cfg.Log.Error("the slot is damaged", "slot", id, "err", err)
		r.fail("Image", "the slot is damaged; delete it and fetch the image again")
		return r, nil
	}
	defer img.Close() //nolint:errcheck // it was only read
	sound, err := s.testImage(ctx, &r, id, img)
	if err != nil {
		return r, err
	}
	current := s.currentVersion()
	testVersion(&r, img.Manifest.Version, current, p)
	if by := img.Manifest.SignedBy; p.Signed && by == "" {
		r.fail("Signature", "the image did not come with a signed manifest, which trust.require wants; fetch one that does")
	} else if by != "" {
		r.pass("Signature", "by "+by)
	}
	free, err := p.Space()
	switch {
	case err != nil:
		return r, err
	case free < stateSpace:
		r.fail("Free space", fmt.Sprintf("the agent's state has %d bytes left and needs %d", free, stateSpace))
	default:
		r.pass("Free space", "")
	}
	if p.Hooks != nil && sound {
		m := img.Manifest
		verdicts, err := p.Hooks(ctx, HookSubject{Slot: id, Image: filepath.Join(s.cfg.Dir, slotName(id), imageFile), Version: m.Version, SHA256: m.SHA256,
			Product: m.Product, Current: current})
		if cause := context.Cause(ctx); cause != nil {
			return r, cause
		}
		r.hooks(verdicts, err)
	}
	return r, nil
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

// testImage tells whether the image is what its manifest promises.
func (s *Slots) testImage(ctx context.Context, r *Report, id int, img *Image) (sound bool, err error) {
	digest, err := img.Digest(ctx)
	switch {
	case context.Cause(ctx) != nil:
		return false, context.Cause(ctx)
	case err != nil:
		s.cfg.Log.Error("cannot read the image", "slot", id, "err", err)
		r.fail("Image digest", "the disk cannot read the image; delete it and fetch it again")
		return false, nil
	case digest != img.Manifest.SHA256:
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

// currentVersion is the version that runs; empty if unknown.
func (s *Slots) currentVersion() string {
	if b := s.bootIfKnown(); b.Current != nil {
		if sl, err := s.look(*b.Current); err == nil && sl.Manifest != nil {
			return sl.Manifest.Version
		}
	}
	return ""
}

func testVersion(r *Report, version, current string, p TestPolicy) {
	const name = "Version path"
	if current == "" {
		r.pass(name, "to "+version)
		return
	}
	path := current + " to " + version
	order, ok := compareVersions(version, current)
	switch {
	case !ok:
		r.pass(name, path+", which cannot be compared")
	case order < 0 && !p.AllowDowngrade:
		r.fail(name, path+" is a downgrade, which upgrade.allow_downgrade does not permit")
	default:
		r.pass(name, path)
	}
}
