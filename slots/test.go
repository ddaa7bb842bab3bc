package slots

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
)

// stateSpace is what the agent needs to note an upgrade and what comes of it, in bytes.
const stateSpace = 16 << 20

// TestPolicy is what [Slots.Test] asks beyond the slot itself.
type TestPolicy struct {
	// AllowDowngrade lets a version pass that is lower than the current one, though not one that the current image refuses.
	AllowDowngrade bool
	// Back is for the way back to a slot that ran before: products and versions do not matter.
	Back bool
	// Products and Versions are the patterns, as for [path.Match], of what may be activated; none means all.
	Products, Versions []string
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
	s.testIdentity(&r, img)
	m := img.Manifest
	current := s.currentImage()
	testVersion(&r, m, current, p)
	if !p.Back {
		r.permit("Version", m.Version, "upgrade.versions", p.Versions)
		r.permit("Product", m.Product, "upgrade.products", p.Products)
	}
	if p.Signed && m.SignedBy == "" {
		r.fail("Signature", "the image did not come with a signed manifest, which trust.require wants; fetch one that does")
	} else if m.SignedBy != "" {
		r.pass("Signature", "by "+m.SignedBy)
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
		verdicts, err := p.Hooks(ctx, HookSubject{Slot: id, Image: filepath.Join(s.cfg.Dir, slotName(id), imageFile), Version: m.Version, SHA256: m.SHA256,
			Product: m.Product, Current: current.Version})
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

// permit looks whether text is one of those that the configuration permits.
func (r *Report) permit(name, text, key string, patterns []string) {
	if len(patterns) == 0 {
		return
	}
	for _, pattern := range patterns {
		if ok, err := path.Match(pattern, text); ok && err == nil && text != "" {
			r.pass(name, text)
			return
		}
	}
	this := "this is " + text
	if text == "" {
		this = "it is not known which this is"
	}
	r.fail(name, fmt.Sprintf("%s permits %s, and %s", key, strings.Join(patterns, ", "), this))
}

// currentImage is what is known of the image that runs; zero if nothing.
func (s *Slots) currentImage() Manifest {
	if b := s.bootIfKnown(); b.Current != nil {
		if sl, err := s.look(*b.Current); err == nil && sl.Manifest != nil {
			return *sl.Manifest
		}
	}
	return Manifest{}
}

// testVersion looks whether the one version may follow the other.
func testVersion(r *Report, m, current Manifest, p TestPolicy) {
	const name = "Version path"
	way := "to " + m.Version
	if current.Version != "" {
		way = current.Version + " to " + m.Version
	}
	order, comparable := compareVersions(m.Version, current.Version)
	_, known := compareVersions(current.Version, m.UpgradeFrom)
	switch {
	case p.Back:
		r.pass(name, way+", which ran before")
	case LowerVersion(m.Version, current.MinVersion):
		r.fail(name, fmt.Sprintf("%s is a downgrade below %s, the lowest version that may replace the current one", way, current.MinVersion))
	case comparable && order < 0 && !p.AllowDowngrade:
		r.fail(name, way+" is a downgrade, which upgrade.allow_downgrade does not permit")
	case m.UpgradeFrom != "" && current.Version == "":
		r.fail(name, fmt.Sprintf("%s can only be reached from %s or higher, and it is not known what runs", m.Version, m.UpgradeFrom))
	case m.UpgradeFrom != "" && !known:
		r.fail(name, fmt.Sprintf("%s can only be reached from %s or higher, with which %s cannot be compared", m.Version, m.UpgradeFrom, current.Version))
	case m.UpgradeFrom != "" && LowerVersion(current.Version, m.UpgradeFrom):
		r.fail(name, fmt.Sprintf("%s can only be reached from %s or higher, and %s runs; upgrade to such a version first", m.Version, m.UpgradeFrom, current.Version))
	case current.Version != "" && !comparable:
		r.pass(name, way+", which cannot be compared")
	default:
		r.pass(name, way)
	}
}
