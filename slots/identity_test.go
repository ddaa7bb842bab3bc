package slots_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slotfetch/slots"
)

// vouched is smallISO with text as /SF.JSN;1.
func vouched(text string) []byte {
	b := smallISO()
	b = append(b[:18*2048], make([]byte, 2*2048+len(text)/2048*2048)...)
	copy(b[18*2048:], text)
	root := b[17*2048:]
	clear(root[:2048])
	record(root, 18, uint32(len(text)), 0, "SF.JSN;1")
	b[16*2048+80] = byte(len(b) / 2048)
	return b
}

// What a manifest inside an image may say, and what it may not.
func TestISOIdentity(t *testing.T) {
	t.Parallel()
	full := slots.Identity{Product: "sps", Version: "7.4.0", MinVersion: "7.0", UpgradeFrom: "7.2.0"}
	for _, tt := range []struct {
		name, text string
		want       slots.Identity
		err        string
	}{
		{name: "all", text: `{"product":"sps","version":"7.4.0","min_version":"7.0","upgrade_from":"7.2.0"}`, want: full},
		{name: "more", text: ` {"product":"sps","version":"7.4.0","min_version":"7.0","upgrade_from":"7.2.0","Product":1,"build":{"n":[1]}} `, want: full},
		{name: "nothing", text: `{}`},
		{name: "null", text: `{"product":null,"version":null}`},
		{name: "only a product", text: `{"product":"zebra ünit"}`, want: slots.Identity{Product: "zebra ünit"}},
		{name: "a version of letters", text: `{"version":"zebra"}`, want: slots.Identity{Version: "zebra"}},
		{name: "a number", text: `{"version":7.4}`, err: "its version has the wrong type"},
		{name: "a list", text: `{"product":["sps"]}`, err: "its product has the wrong type"},
		{name: "a floor that cannot be compared", text: `{"min_version":"zebra"}`, err: "its min_version is not of numbers"},
		{name: "a start that cannot be compared", text: `{"upgrade_from":"7"}`, err: "its upgrade_from is not of numbers"},
		{name: "below its own floor", text: `{"version":"7.0","min_version":"7.1"}`, err: "lower than its own min_version"},
		{name: "control characters", text: `{"product":"a\u001b[31m"}`, err: "not printable"},
		{name: "too long", text: `{"product":"` + strings.Repeat("x", 65) + `"}`, err: "its product is longer than 64"},
		{name: "twice", text: `{"product":"a","product":"b"}`, err: "no key twice"},
		{name: "no object", text: `["product"]`, err: "not one JSON object"},
		{name: "text after it", text: `{} x`, err: "not one JSON object"},
		{name: "no UTF-8", text: "{\"product\":\"\xff\"}", err: "not one JSON object"},
		{name: "empty", text: "", err: "no JSON object"},
		{name: "huge", text: `{"product":"sps"}` + strings.Repeat(" ", 64<<10), err: "longer than 65536 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := vouched(tt.text)
			got, found, err := slots.ISOIdentity(bytes.NewReader(b), int64(len(b)), "/sf.jsn")
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || got != (slots.Identity{}) {
					t.Errorf("got %+v, %v; want %q", got, err, tt.err)
				}
			} else if err != nil || !found || got != tt.want {
				t.Errorf("got %+v, %v, %v", got, found, err)
			}
		})
	}
	b := vouched("{}")
	for _, path := range []string{"", "other", "other/sf.jsn"} {
		if got, found, err := slots.ISOIdentity(bytes.NewReader(b), int64(len(b)), path); err != nil || found || got != (slots.Identity{}) {
			t.Errorf("%q: %+v, %v, %v", path, got, found, err)
		}
	}
	if _, found, err := slots.ISOIdentity(bytes.NewReader(b), int64(len(b)), "sf.jsn/x"); err == nil || !found {
		t.Error("a file is no directory")
	}
	if _, found, err := slots.ISOIdentity(strings.NewReader("x"), 1, "sf.jsn"); err != nil || found {
		t.Errorf("no ISO: %v, %v", found, err)
	}
}

func FuzzISOIdentity(f *testing.F) {
	const system = 16 * 2048 // as in FuzzISO
	f.Add(vouched(`{"product":"sps","version":"7.4.0","min_version":"7.0","upgrade_from":"7.2.0"}`)[system:])
	f.Add(vouched(`{"product":{"a":"b"}}`)[system:])
	f.Fuzz(func(t *testing.T, tail []byte) {
		b := append(make([]byte, system, system+len(tail)), tail...)
		id, found, err := slots.ISOIdentity(bytes.NewReader(b), int64(len(b)), "sf.jsn")
		if (err != nil || !found) && id != (slots.Identity{}) {
			t.Errorf("%+v, %v, %v", id, found, err)
		}
		for _, text := range []string{id.Product, id.Version, id.MinVersion, id.UpgradeFrom} {
			if len(text) > 64 || strings.ContainsAny(text, "\x00\n\x1b") {
				t.Errorf("%q", text)
			}
		}
	})
}

// What is noted at the commit is what the manifest inside says; a bad one is no reason not to take the image.
func TestInspectIdentity(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openIn(t, dir, func(c *slots.Config) { c.ManifestFile, c.VersionFile = "/sf.jsn", "/sf.jsn" })
	commit := func(n int, text string) slots.Manifest {
		t.Helper()
		w := reserve(t, s, key(n), nil, 0)
		data := vouched(text)
		put(t, w, data)
		m := slots.Manifest{Name: "fw.iso", SHA256: sum(data)}
		must(t, w.Inspect(&m))
		id, err := w.Commit(m)
		must(t, err)
		sl, err := s.Get(id)
		must(t, err)
		return *sl.Manifest
	}
	if m := commit(1, `{"product":"sps","version":"7.4.0","min_version":"7.0","upgrade_from":"7.2.0"}`); m.Product != "sps" || m.Version != "7.4.0" || m.MinVersion != "7.0" ||
		m.UpgradeFrom != "7.2.0" || m.VolumeID != "LABEL" {
		t.Errorf("%+v", m)
	}
	if m := commit(2, `{"product":1}`); m.Product != "" || m.Version != `{"product":1}` {
		t.Errorf("%+v", m)
	}
	// One that was written before there was any of this.
	file := filepath.Join(dir, "1", "manifest.json")
	text, err := os.ReadFile(file)
	must(t, err)
	var fields map[string]any
	must(t, json.Unmarshal(text, &fields))
	maps.DeleteFunc(fields, func(name string, _ any) bool {
		return name == "product" || name == "min_version" || name == "upgrade_from"
	})
	text, err = json.Marshal(fields)
	must(t, err)
	must(t, os.Chmod(file, 0o600))
	must(t, os.WriteFile(file, text, 0o600))
	if sl, err := s.Get(1); err != nil || sl.Damaged || sl.Manifest == nil || sl.Manifest.Product != "" || sl.Manifest.Version != "7.4.0" {
		t.Errorf("%+v, %v", sl, err)
	}
	// Its test knows it all the same, for it reads the image again.
	p := plenty
	p.Products = []string{"sp?"}
	must(t, s.SetBoot(nil, nil))
	r := examine(t, s, 1, p)
	if !strings.Contains(r.Summary(), "Product: ok (sps)") || !strings.Contains(r.Failed(), "can only be reached from 7.2.0 or higher, and it is not known what runs") {
		t.Error(r.Summary())
	}
}

// What may follow what.
func TestTestPolicy(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		current  slots.Manifest // no version: nothing runs that is known
		inside   string         // the manifest in the image; empty for none
		signed   slots.Manifest
		policy   slots.TestPolicy
		want     string // a line
		failed   bool
		unlisted string // what no line says
	}{
		{name: "none", current: slots.Manifest{Version: "7.0.5"}, want: "Image manifest: ok (there is none inside the image)", unlisted: "Product"},
		{name: "said", current: slots.Manifest{Version: "7.0.5"}, inside: `{"product":"sps","version":"7.4.0"}`, want: "Image manifest: ok (sps 7.4.0)"},
		{name: "bad", inside: `{"product":7}`, want: "Image manifest: FAILED (its product has the wrong type)", failed: true},
		{name: "from high enough", current: slots.Manifest{Version: "7.2.1"}, inside: `{"version":"7.4.0","upgrade_from":"7.2.0"}`, want: "Version path: ok (7.2.1 to 7.4.0)"},
		{name: "from too low", current: slots.Manifest{Version: "7.1.9"}, inside: `{"version":"7.4.0","upgrade_from":"7.2.0"}`, failed: true,
			want: "Version path: FAILED (7.4.0 can only be reached from 7.2.0 or higher, and 7.1.9 runs; upgrade to such a version first)"},
		{name: "from the unknown", inside: `{"version":"7.4.0","upgrade_from":"7.2.0"}`, failed: true,
			want: "Version path: FAILED (7.4.0 can only be reached from 7.2.0 or higher, and it is not known what runs)"},
		{name: "from letters", current: slots.Manifest{Version: "zebra"}, inside: `{"version":"7.4.0","upgrade_from":"7.2.0"}`, failed: true,
			want: "Version path: FAILED (7.4.0 can only be reached from 7.2.0 or higher, with which zebra cannot be compared)"},
		{name: "from too low, and allowed to sink", current: slots.Manifest{Version: "7.1.9"}, inside: `{"version":"7.4.0","upgrade_from":"7.2.0"}`, failed: true,
			policy: slots.TestPolicy{AllowDowngrade: true}, want: "and 7.1.9 runs"},
		{name: "back", current: slots.Manifest{Version: "7.1.9", MinVersion: "7.1.0"}, inside: `{"product":"x","version":"7.0.0","upgrade_from":"9.0"}`,
			policy: slots.TestPolicy{Back: true, Products: []string{"sps"}, Versions: []string{"8.*"}}, want: "Version path: ok (7.1.9 to 7.0.0, which ran before)", unlisted: "Product"},
		{name: "below the floor", current: slots.Manifest{Version: "7.1.9", MinVersion: "7.1.0"}, inside: `{"version":"7.0.9"}`, policy: slots.TestPolicy{AllowDowngrade: true},
			failed: true, want: "Version path: FAILED (7.1.9 to 7.0.9 is a downgrade below 7.1.0, the lowest version that may replace the current one)"},
		{name: "above the floor", current: slots.Manifest{Version: "7.1.9", MinVersion: "7.1.0"}, inside: `{"version":"7.1.5"}`, policy: slots.TestPolicy{AllowDowngrade: true},
			want: "Version path: ok (7.1.9 to 7.1.5)"},
		{name: "product", inside: `{"product":"sps-large"}`, policy: slots.TestPolicy{Products: []string{"opn", "sps-*"}}, want: "Product: ok (sps-large)"},
		{name: "other product", inside: `{"product":"spp"}`, policy: slots.TestPolicy{Products: []string{"opn", "sps*"}}, failed: true,
			want: "Product: FAILED (upgrade.products permits opn, sps*, and this is spp)"},
		{name: "no product", inside: `{}`, policy: slots.TestPolicy{Products: []string{"*"}}, failed: true,
			want: "Product: FAILED (upgrade.products permits *, and it is not known which this is)"},
		{name: "version", inside: `{"version":"8.0.3"}`, policy: slots.TestPolicy{Versions: []string{"7.*", "8.0.[1-9]"}}, want: "Version: ok (8.0.3)"},
		{name: "other version", inside: `{"version":"8.1.3"}`, policy: slots.TestPolicy{Versions: []string{"7.*", "8.0.[1-9]"}}, failed: true,
			want: "Version: FAILED (upgrade.versions permits 7.*, 8.0.[1-9], and this is 8.1.3)"},
		{name: "a version that nobody told", policy: slots.TestPolicy{Versions: []string{"fetched"}}, want: "Version: ok (fetched)"},
		{name: "signed alike", signed: slots.Manifest{SignedBy: "AB", Product: "sps", Version: "7.4.0", MinVersion: "7.0"}, inside: `{"product":"sps","version":"7.4.0","upgrade_from":"7.9.0"}`,
			current: slots.Manifest{Version: "7.8.0"}, policy: slots.TestPolicy{AllowDowngrade: true}, failed: true, want: "and 7.8.0 runs; upgrade"},
		{name: "signed otherwise", signed: slots.Manifest{SignedBy: "AB", Product: "sps", Version: "7.4.0"}, inside: `{"product":"spp","version":"7.4.0"}`, failed: true,
			policy: slots.TestPolicy{Products: []string{"sps"}}, want: "Image manifest: FAILED (its product is spp, and that of the signed manifest sps)"},
		{name: "the signed one counts", signed: slots.Manifest{SignedBy: "AB", Product: "sps", Version: "7.4.0"}, inside: `{"product":"spp","version":"7.4.0"}`, failed: true,
			policy: slots.TestPolicy{Products: []string{"sps"}}, want: "Product: ok (sps)"},
		{name: "signed by a key of today", signed: slots.Manifest{SignedBy: "AB", Product: "sps", Version: "7.4.0"},
			policy: slots.TestPolicy{Signed: true, Keys: []string{"A", "AB"}, SignedProduct: "sps"}, want: "Signature: ok (by AB)"},
		{name: "signed by a key of yesterday", signed: slots.Manifest{SignedBy: "AB", Product: "sps", Version: "7.4.0"}, failed: true,
			policy: slots.TestPolicy{Signed: true, Keys: []string{"A", "ABC"}}, want: "Signature: FAILED (by AB, which is not in trust.keys; fetch"},
		{name: "back to a key of yesterday", signed: slots.Manifest{SignedBy: "AB", Product: "sps", Version: "7.4.0"}, failed: true,
			policy: slots.TestPolicy{Signed: true, Back: true}, want: "Signature: FAILED (by AB, which is not in trust.keys; fetch"},
		{name: "a key of yesterday, and none is needed", signed: slots.Manifest{SignedBy: "AB", Product: "sps", Version: "7.4.0"},
			policy: slots.TestPolicy{SignedProduct: "opn"}, want: "Signature: ok (by AB, which is not in trust.keys; trust.require is off)"},
		{name: "signed for another product", signed: slots.Manifest{SignedBy: "AB", Product: "sps", Version: "7.4.0"}, failed: true,
			policy: slots.TestPolicy{Keys: []string{"AB"}, SignedProduct: "opn"}, want: "Signature: FAILED (by AB for the product sps, and trust.product is opn)"},
		{name: "back to another product", signed: slots.Manifest{SignedBy: "AB", Product: "sps", Version: "7.4.0"},
			policy: slots.TestPolicy{Keys: []string{"AB"}, SignedProduct: "opn", Back: true}, want: "Signature: ok (by AB)"},
		{name: "signed, and a bad one inside", signed: slots.Manifest{SignedBy: "AB", Product: "sps", Version: "7.4.0"}, inside: `{"product":7}`, failed: true,
			want: "Image manifest: FAILED (its product has the wrong type)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := openIn(t, t.TempDir(), func(c *slots.Config) { c.ManifestFile = "sf.jsn" })
			commit := func(n int, data []byte, m slots.Manifest) {
				w := reserve(t, s, key(n), nil, 0)
				put(t, w, data)
				m.SHA256 = sum(data)
				_, err := w.Commit(m)
				must(t, err)
			}
			commit(1, smallISO(), tt.current)
			if tt.current.Version != "" {
				must(t, s.SetBoot(ptr(1), nil))
			}
			image := smallISO()
			if tt.inside != "" {
				image = vouched(tt.inside)
			}
			if tt.signed.Version == "" {
				tt.signed.Version = "fetched"
			}
			commit(2, image, tt.signed)
			tt.policy.Space = plenty.Space
			r := examine(t, s, 2, tt.policy)
			if !strings.Contains(r.Summary(), tt.want) || (r.Failed() != "") != tt.failed || tt.unlisted != "" && strings.Contains(r.Summary(), tt.unlisted) {
				t.Errorf("want %q, failed %v:\n%s", tt.want, tt.failed, r.Summary())
			}
		})
	}
}
