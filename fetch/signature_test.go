package fetch_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"slotfetch/api"
	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/slots"
	"slotfetch/store"
)

// signer is a key of the real minisign.
type signer struct {
	t      testing.TB
	dir    string
	public fetch.Key
}

func newSigner(t testing.TB) *signer {
	t.Helper()
	if _, err := exec.LookPath("minisign"); err != nil {
		t.Skip("NOT TESTED: signatures, for minisign is not installed (package minisign)")
	}
	s := &signer{t: t, dir: t.TempDir()}
	s.run("-G", "-W", "-p", "key.pub", "-s", "key.sec")
	text, err := os.ReadFile(filepath.Join(s.dir, "key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if s.public, err = fetch.ParseKey(string(text)); err != nil {
		t.Fatal(err)
	}
	// The same as minisign prints it, for trust.keys.
	_, line, _ := strings.Cut(string(text), "\n")
	if k, err := fetch.ParseKey(line); err != nil || !k.Equal(s.public) {
		t.Errorf("%q: %v", line, err)
	}
	if !strings.Contains(string(text), fetch.KeyID(s.public.ID())) {
		t.Errorf("%s is not the id in %q", fetch.KeyID(s.public.ID()), text)
	}
	return s
}

func (s *signer) run(args ...string) {
	s.t.Helper()
	cmd := exec.Command("minisign", args...)
	cmd.Dir = s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("minisign %v: %v\n%s", args, err, out)
	}
}

// sign signs a manifest; more are options of minisign.
func (s *signer) sign(manifest string, more ...string) fetch.Signature {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, "m"), []byte(manifest), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.run(append([]string{"-S", "-s", "key.sec", "-m", "m", "-x", "m.minisig"}, more...)...)
	sig, err := os.ReadFile(filepath.Join(s.dir, "m.minisig"))
	if err != nil {
		s.t.Fatal(err)
	}
	return fetch.Signature{Manifest: manifest, Minisig: string(sig)}
}

// promise is a manifest of img; more are names and values by turns, of which nil leaves a field out.
func promise(img *fetchtest.Image, more ...any) string {
	m := map[string]any{"product": "sps", "version": "7.0.5", "size": img.Size(), "sha256": img.SHA256(), "min_version": "7.0.0"}
	for i := 0; i < len(more); i += 2 {
		if m[more[i].(string)] = more[i+1]; more[i+1] == nil {
			delete(m, more[i].(string))
		}
	}
	text, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// trusting has a box take what s signs only.
func trusting(s *signer, change ...func(*fetch.Trust)) func(*fetch.Config) {
	return func(c *fetch.Config) {
		c.Trust = fetch.Trust{Keys: []fetch.Key{s.public}, Require: true, Product: "sps"}
		for _, f := range change {
			f(&c.Trust)
		}
	}
}

// signed enqueues a fetch with a signed manifest in it, or none.
func (b *box) signed(image, sha256 string, sig *fetch.Signature, mirrors ...string) string {
	b.t.Helper()
	q := wanted(b.t, sha256, append([]string{image}, mirrors...)...)
	q.Signature = sig
	f, err := b.fetch.Enqueue(q, admin)
	if err != nil {
		b.t.Fatal(err)
	}
	return f.Key
}

func TestSignature(t *testing.T) {
	t.Parallel()
	good, other := newSigner(t), newSigner(t)
	img := fetchtest.NewImage(140, 300_000)
	sum, wrong := img.SHA256(), strings.Repeat("ab", 32)
	past, future := time.Now().Add(-time.Hour).Format(time.RFC3339), time.Now().Add(time.Hour).Format(time.RFC3339)
	change := func(s fetch.Signature, in, from, to string) fetch.Signature {
		for _, text := range []*string{&s.Manifest, &s.Minisig} {
			if in == map[*string]string{&s.Manifest: "manifest", &s.Minisig: "minisig"}[text] {
				if !strings.Contains(*text, from) {
					t.Fatalf("no %q in %q", from, *text)
				}
				*text = strings.Replace(*text, from, to, 1)
			}
		}
		return s
	}
	for _, tc := range []struct {
		name   string
		sig    fetch.Signature
		sha256 string
		code   string
	}{
		{"prehashed", good.sign(promise(img)), "", ""},
		{"legacy", good.sign(promise(img), "-l"), "", ""},
		{"a comment", good.sign(promise(img), "-t", "release 7.0.5, by Ann"), "", ""},
		{"a legacy comment", good.sign(promise(img), "-l", "-t", "release 7.0.5"), "", ""},
		{"both agree", good.sign(promise(img)), sum, ""},
		{"upper case", good.sign(promise(img, "sha256", strings.ToUpper(sum))), "", ""},
		{"no min_version", good.sign(promise(img, "min_version", nil)), "", ""},
		{"not expired", good.sign(promise(img, "expires", future)), "", ""},
		{"more fields", good.sign(promise(img, "notes", map[string]any{"a": 1})), "", ""},
		{"CRLF", change(good.sign(promise(img)), "minisig", "\n", "\r\n"), "", ""},

		{"another key", other.sign(promise(img)), "", "signature_key"},
		{"another manifest", change(good.sign(promise(img)), "manifest", "7.0.5", "7.0.6"), "", "signature_bad"},
		{"a blank more", change(good.sign(promise(img)), "manifest", "{", "{ "), "", "signature_bad"},
		{"a legacy one tampered with", change(good.sign(promise(img), "-l"), "manifest", "7.0.5", "7.0.6"), "", "signature_bad"},
		{"another trusted comment", change(good.sign(promise(img), "-t", "release 7.0.5"), "minisig", "release 7.0.5", "release 7.0.6"), "", "signature_bad"},
		{"no signature", fetch.Signature{Manifest: promise(img), Minisig: "hello"}, "", "signature_bad"},
		{"cut", change(good.sign(promise(img)), "minisig", "trusted comment", "comment"), "", "signature_bad"},
		{"no JSON", good.sign("hello"), "", "signature_manifest"},
		{"a key twice", good.sign(strings.Replace(promise(img), "{", `{"size":1,`, 1)), "", "signature_manifest"},
		{"other letters", good.sign(strings.Replace(promise(img), "size", "Size", 1)), "", "signature_manifest"},
		{"no product", good.sign(promise(img, "product", nil)), "", "signature_manifest"},
		{"no version", good.sign(promise(img, "version", nil)), "", "signature_manifest"},
		{"a version that cannot be compared", good.sign(promise(img, "version", "latest")), "", "signature_manifest"},
		{"a version below its own floor", good.sign(promise(img, "min_version", "8.0")), "", "signature_manifest"},
		{"no size", good.sign(promise(img, "size", nil)), "", "signature_manifest"},
		{"size as text", good.sign(promise(img, "size", "300000")), "", "signature_manifest"},
		{"no digest", good.sign(promise(img, "sha256", "")), "", "signature_manifest"},
		{"a strange expiry", good.sign(promise(img, "expires", "tomorrow")), "", "signature_manifest"},
		{"an escape in the product", good.sign(promise(img, "product", "sps\x1b[1m")), "", "signature_manifest"},
		{"expired", good.sign(promise(img, "expires", past)), "", "signature_expired"},
		{"another product", good.sign(promise(img, "product", "spp")), "", "signature_product"},
		{"a downgrade", good.sign(promise(img, "version", "7.0.3")), "", "signature_downgrade"},
		{"below the floor", good.sign(promise(img, "version", "6.9.9", "min_version", "6.0")), "", "signature_floor"},
		{"they disagree", good.sign(promise(img)), wrong, "signature_digest"},
		{"another size", good.sign(promise(img, "size", img.Size()-1)), "", "signature_size"},
		{"another digest", good.sign(promise(img, "sha256", wrong)), "", "digest"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			srv := fetchtest.NewHTTP(t, nil)
			image := srv.Handle("/a.iso", fetchtest.Whole(img).Serve)
			b := newBox(t, t.TempDir(), trusting(good))
			b.runs(5, "7.0.4", "7.0.0")
			f := b.until(b.signed(image, tc.sha256, &tc.sig), final)
			if f.ErrorCode != tc.code || (f.Status == store.Finished) != (tc.code == "") {
				t.Fatalf("got %s %s %q", f.Status, f.ErrorCode, f.Error)
			}
			if tc.code == "" {
				b.holds(*f.SlotID, sum)
				m := b.manifest(*f.SlotID)
				if m.SignedBy != fetch.KeyID(good.public.ID()) || m.Product != "sps" || m.Version != "7.0.5" || f.SHA256 != sum {
					t.Errorf("got %+v, %+v", m, f)
				}
				return
			}
			asked := len(srv.Requests()) > 0
			if early := tc.code != "signature_size" && tc.code != "digest"; early && asked {
				t.Error("the image was asked for")
			}
			if s, err := b.slots.Get(1); err != nil || s.Manifest != nil {
				t.Errorf("slot 1: %+v, %v", s, err)
			}
		})
	}
}

// manifest is that of a slot.
func (b *box) manifest(slot int) slots.Manifest {
	b.t.Helper()
	s, err := b.slots.Get(slot)
	if err != nil || s.Manifest == nil {
		b.t.Fatalf("slot %d: %+v, %v", slot, s, err)
	}
	return *s.Manifest
}

// runs has a slot with this version run now.
func (b *box) runs(slot int, version, floor string) {
	b.t.Helper()
	w, err := b.slots.Reserve("00000000-0000-4000-8000-000000000001", &slot, 0)
	if err == nil {
		_, err = w.Commit(slots.Manifest{SHA256: strings.Repeat("00", 32), Version: version, MinVersion: floor})
	}
	if err == nil {
		err = b.slots.SetBoot(&slot, nil)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// A downgrade may be allowed, but not below what the publisher of the current version set.
func TestSignatureDowngrade(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	img := fetchtest.NewImage(141, 1000)
	image := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve)
	b := newBox(t, t.TempDir(), trusting(s, func(t *fetch.Trust) { t.AllowDowngrade, t.Product = true, "" }))
	b.runs(3, "7.0.4", "7.0.0")
	for version, code := range map[string]string{"7.0.3": "", "6.9": "signature_floor"} {
		sig := s.sign(promise(img, "version", version, "min_version", nil, "product", "anything"))
		if f := b.until(b.signed(image, "", &sig), final); f.ErrorCode != code {
			t.Errorf("%s: got %s %s %q", version, f.Status, f.ErrorCode, f.Error)
		}
	}
}

// serveSigned serves an image with its signed manifest beside it.
func serveSigned(srv *fetchtest.HTTP, path string, img *fetchtest.Image, sig fetch.Signature) string {
	srv.Handle(path+".manifest.json", text(sig.Manifest))
	srv.Handle(path+".manifest.json.minisig", text(sig.Minisig))
	return srv.Handle(path, fetchtest.Whole(img).Serve)
}

// Beside the URL or a mirror; with a server that has trouble, or whose certificate does not verify.
func TestSignatureBeside(t *testing.T) {
	t.Parallel()
	s, other := newSigner(t), newSigner(t)
	img := fetchtest.NewImage(142, 200_000)
	sig := s.sign(promise(img))
	srv, secret := fetchtest.NewHTTP(t, nil), fetchtest.NewHTTP(t, fetchtest.NewCA().TLS(fetchtest.Good))
	image, safe := serveSigned(srv, "/a.iso", img, sig), serveSigned(secret, "/a.iso", img, sig)
	bare := srv.Handle("/bare.iso", fetchtest.Whole(img).Serve)
	half := srv.Handle("/half.iso", fetchtest.Whole(img).Serve)
	srv.Handle("/half.iso.manifest.json", text(sig.Manifest))
	evil := serveSigned(srv, "/evil.iso", img, other.sign(promise(img)))
	long := serveSigned(srv, "/long.iso", img, fetch.Signature{Manifest: strings.Repeat(" ", fetch.MaxSigned+1)})
	late := serveSigned(srv, "/late.iso", img, sig)
	srv.Handle("/late.iso.manifest.json", fetchtest.Sequence(fetchtest.Status(503), text(sig.Manifest)))
	for _, tc := range []struct {
		name    string
		url     string
		sha256  string
		mirrors []string
		code    string
	}{
		{"beside", image, "", nil, ""},
		{"beside, with a digest", image, img.SHA256(), nil, ""},
		{"a query", image + "?token=1", "", nil, ""},
		{"a certificate that does not verify", safe, "", nil, ""},
		{"later", late, "", nil, ""},
		{"none", bare, img.SHA256(), nil, "signature_missing"},
		{"no signature", half, "", nil, "signature_missing"},
		{"another key", evil, "", nil, "signature_key"},
		{"too long", long, "", nil, "signature_manifest"},
		{"at a mirror", bare, "", []string{evil, image}, ""},
		{"no server", "http://127.0.0.1:1/a.iso", "", []string{image}, ""},
		{"nobody there", "http://127.0.0.1:1/a.iso", "", nil, "refused"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, t.TempDir(), trusting(s))
			f := b.until(b.signed(tc.url, tc.sha256, nil, tc.mirrors...), final)
			if f.ErrorCode != tc.code {
				t.Fatalf("got %s %s %q", f.Status, f.ErrorCode, f.Error)
			}
			if tc.code == "" && b.manifest(*f.SlotID).SignedBy == "" {
				t.Errorf("got %+v", b.manifest(*f.SlotID))
			}
		})
	}
}

// The signed manifest is read once. An interrupted fetch goes on with it, and is held to the keys and the clock of then. A
// slot that has the image without it does not make up for it.
func TestSignatureOnce(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	img := fetchtest.NewImage(143, 4<<20)
	srv, image := stalled(t, img)
	u, err := url.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	sig := s.sign(promise(img, "expires", time.Now().Add(time.Hour).Format(time.RFC3339)))
	srv.Handle(u.Path+".manifest.json", fetchtest.Sequence(text(sig.Manifest), fetchtest.Status(410)))
	srv.Handle(u.Path+".manifest.json.minisig", fetchtest.Sequence(text(sig.Minisig), fetchtest.Status(410)))
	b := newBox(t, t.TempDir(), trusting(s))
	key := b.signed(image, "", nil)
	b.arrives(key, 2<<20)
	b.close()
	b = newBox(t, b.dir, func(c *fetch.Config) {
		trusting(s)(c)
		c.Workers = 1
	})
	f := b.until(key, final)
	if f.Status != store.Finished || f.ResumedFrom != 2<<20 || b.manifest(*f.SlotID).SignedBy == "" {
		t.Fatalf("got %+v", f)
	}
	again := b.until(b.signed("http://127.0.0.1:1/a.iso", "", &sig), final)
	if !again.Deduplicated || *again.SlotID != *f.SlotID {
		t.Errorf("got %+v", again)
	}
	if f := b.until(b.enqueue(image, img.SHA256()), final); f.ErrorCode != "signature_missing" {
		t.Errorf("got %+v", f)
	}
	b.close()

	other := newSigner(t)
	b = newBox(t, t.TempDir(), func(c *fetch.Config) { trusting(s)(c); c.Workers = 1 })
	srv, slow := stalled(t, img)
	_ = srv
	key = b.signed(slow, "", &sig)
	b.arrives(key, 1)
	b.close()
	b = newBox(t, b.dir, trusting(other))
	if f := b.until(key, final); f.ErrorCode != "signature_key" {
		t.Errorf("after the key was changed %+v", f)
	}
	b.close()

	b = newBox(t, t.TempDir(), nil)
	whole := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(img).Serve)
	b.until(b.enqueue(whole, img.SHA256()), final)
	b.close()
	b = newBox(t, b.dir, trusting(s))
	if f := b.until(b.signed(whole, "", &sig), final); f.Deduplicated || f.Status != store.Finished || *f.SlotID != 2 {
		t.Errorf("got %+v", f)
	}
	b.close()
	// Nor does one that a key has signed which may no longer, or that was signed for another product.
	b = newBox(t, b.dir, trusting(other))
	theirs := other.sign(promise(img))
	if f := b.until(b.signed(whole, "", &theirs), final); f.Deduplicated || f.Status != store.Finished || *f.SlotID != 3 {
		t.Errorf("got %+v", f)
	}
	b.close()
	b = newBox(t, b.dir, trusting(other, func(t *fetch.Trust) { t.Product = "opn" }))
	theirs = other.sign(promise(img, "product", "opn"))
	if f := b.until(b.signed(whole, "", &theirs), final); f.Deduplicated || f.Status != store.Finished || *f.SlotID != 4 {
		t.Errorf("got %+v", f)
	}
}

// What is not required is verified all the same if somebody gives it, and a source that announces no size is stopped at
// the signed one.
func TestSignatureOptional(t *testing.T) {
	t.Parallel()
	s, other := newSigner(t), newSigner(t)
	img := fetchtest.NewImage(144, 100_000)
	srv := fetchtest.NewHTTP(t, nil)
	image := srv.Handle("/a.iso", fetchtest.Whole(img).Serve)
	flood := srv.Handle("/flood.iso", fetchtest.Flood("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("x", 1000)))
	b := newBox(t, t.TempDir(), trusting(s, func(t *fetch.Trust) { t.Require = false }))
	good, bad := s.sign(promise(img)), other.sign(promise(img))
	for _, tc := range []struct {
		url, sha256 string
		sig         *fetch.Signature
		code        string
	}{
		{flood, "", &good, "signature_size"},
		{image, img.SHA256(), &bad, "signature_key"},
		{image, img.SHA256(), &good, ""},
	} {
		if f := b.until(b.signed(tc.url, tc.sha256, tc.sig), final); f.ErrorCode != tc.code {
			t.Errorf("got %s %s %q", f.Status, f.ErrorCode, f.Error)
		}
	}
	b.close()
	b = newBox(t, t.TempDir(), nil) // without keys
	if f := b.until(b.signed(image, "", &good), final); f.ErrorCode != "signature_key" {
		t.Errorf("got %s %s %q", f.Status, f.ErrorCode, f.Error)
	}
}

// A dry run says what the fetch would.
func TestSignatureProbe(t *testing.T) {
	t.Parallel()
	s, other := newSigner(t), newSigner(t)
	img := fetchtest.NewImage(145, 100_000)
	srv := fetchtest.NewHTTP(t, nil)
	image := serveSigned(srv, "/a.iso", img, s.sign(promise(img)))
	bare := srv.Handle("/bare.iso", fetchtest.Whole(img).Serve)
	b := newBox(t, t.TempDir(), trusting(s))
	bad := other.sign(promise(img))
	for _, tc := range []struct {
		url  string
		sig  *fetch.Signature
		want string
	}{{image, nil, "[]"}, {bare, nil, "[signature fail signature_missing]"}, {image, &bad, "[signature fail signature_key]"}} {
		q := wanted(t, "", tc.url)
		q.Signature = tc.sig
		body := b.look(q)
		body.Checks = slices.DeleteFunc(body.Checks, func(c api.ProbeCheck) bool { return c.Name == "resume" })
		if got := fmt.Sprint(troubles(body)); got != tc.want {
			t.Errorf("got %s, want %s", got, tc.want)
		}
	}
}

// Whatever is signed, a manifest that is taken has a digest and a size.
func FuzzSigned(f *testing.F) {
	img := fetchtest.NewImage(1, 10)
	for _, s := range []string{promise(img), promise(img, "expires", "2027-01-01T00:00:00Z"), promise(img, "size", 1e300), promise(img, "version", "7"),
		`{}`, `[]`, `{"size":1,"size":2}`, `{"product":null}`, ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		sum, size, err := fetch.ParseSigned(text)
		if err == nil && (len(sum) != 64 || strings.ToLower(sum) != sum || size <= 0) {
			t.Errorf("%q: %q, %d", text, sum, size)
		}
	})
}
