package slots

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// stateSpace is what the agent needs to note an upgrade and what comes of it, in bytes.
const stateSpace = 16 << 20

// judge holds what was found against the policy, and against what the box has now; that is quick. The error is of the disk.
func (s *Slots) judge(in inspection, p TestPolicy) (r Report, err error) {
	r.add(in.image)
	if in.damaged {
		return r, nil
	}
	m := in.about
	testVersion(&r, m, s.currentImage(), p)
	if !p.Back {
		r.permit("Version", m.Version, "upgrade.versions", p.Versions)
		r.permit("Product", m.Product, "upgrade.products", p.Products)
	}
	testSignature(&r, m, p)
	free, err := p.Space()
	switch {
	case err != nil:
		return r, err
	case free < stateSpace:
		r.fail("Free space", fmt.Sprintf("the agent's state has %d bytes left and needs %d", free, stateSpace))
	default:
		r.pass("Free space", "")
	}
	r.add(in.hooks)
	return r, nil
}

// testSignature looks whether who signed the image may still do so: keys are withdrawn after an image came.
func testSignature(r *Report, m Manifest, p TestPolicy) {
	const name = "Signature"
	by := "by " + m.SignedBy
	switch {
	case m.SignedBy == "" && p.Signed:
		r.fail(name, "the image did not come with a signed manifest, which trust.require wants; fetch one that does")
	case m.SignedBy == "":
	case !slices.Contains(p.Keys, m.SignedBy) && p.Signed:
		r.fail(name, by+", which is not in trust.keys; fetch the image with a signature by a key that is")
	case !slices.Contains(p.Keys, m.SignedBy):
		r.pass(name, by+", which is not in trust.keys; trust.require is off")
	case !p.Back && p.SignedProduct != "" && m.Product != p.SignedProduct:
		r.fail(name, fmt.Sprintf("%s for the product %s, and trust.product is %s", by, m.Product, p.SignedProduct))
	default:
		r.pass(name, by)
	}
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
