package ontap

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/mux"

	"slotfetch/api"
	"slotfetch/slots"
	"slotfetch/store"
)

// fill puts text into a slot as an image of a version, and gives its digest.
func (b *box) fill(t *testing.T, slot int, version, text string) string {
	t.Helper()
	w, err := b.cfg.Slots.Reserve(uuid.NewString(), &slot, 0)
	check(t, err)
	bufs, release, err := slots.Buffers(1)
	check(t, err)
	_, err = w.Write(bufs[0][:copy(bufs[0], text)])
	check(t, errors.Join(err, release()))
	digest := fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
	_, err = w.Commit(slots.Manifest{Name: "fw.iso", SHA256: digest, Version: version})
	check(t, err)
	return digest
}

// boot makes a slot the one that runs.
func (b *box) boot(t *testing.T, slot int) {
	t.Helper()
	check(t, b.cfg.Slots.SetBoot(&slot, &slot))
}

// refusal is the code of an error for callers.
func refusal(err error) string {
	var e *api.Error
	errors.As(err, &e)
	if e == nil {
		return fmt.Sprint(err)
	}
	return e.Code
}

// versions are the packages, with their slots.
func versions(t *testing.T, s *Server) string {
	t.Helper()
	list, err := s.packages()
	check(t, err)
	var out []string
	for _, p := range list {
		out = append(out, fmt.Sprintf("%s=%d", p.Version, p.SlotID))
	}
	return strings.Join(out, " ")
}

// remove deletes a package.
func remove(s *Server, version string) error {
	r := mux.SetURLVars(httptest.NewRequest(http.MethodDelete, packageHref(version), nil), map[string]string{packageVarKey: version})
	_, err := s.deletePackage(r)
	return err
}

// TestSoundFirst: of two images of one version, the sound one has the plain name.
func TestSoundFirst(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s := b.open(t)
	b.fill(t, 1, "9.1", "a")
	b.fill(t, 2, "9.1", "b")
	if got := versions(t, s); got != "9.1=1 9.1+slot2=2" {
		t.Errorf("sound: %s", got)
	}
	_, err := b.cfg.Slots.ChangeCare(1, func(c *slots.Care) { c.Degraded = true })
	check(t, err)
	if got := versions(t, s); got != "9.1=2 9.1+slot1=1" {
		t.Errorf("degraded: %s", got)
	}
}

// TestSlashes: a version is the same text wherever it is shown or asked for, though it has a slash.
func TestSlashes(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.cfg.Updates = past{}
	s := b.open(t)
	b.fill(t, 1, "a/b c", "a")
	b.fill(t, 2, "a/b c", "b")
	if got := versions(t, s); got != "a_b c=1 a_b c+slot2=2" {
		t.Errorf("packages: %s", got)
	}
	for _, name := range []string{"a_b c", "a/b c", "a_b+c"} {
		if p, err := s.candidate(name); err != nil || p.SlotID != 1 {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	b.boot(t, 1)
	sw, err := s.software(t.Context())
	check(t, err)
	if sw.Version != "a_b c" || sw.Nodes[0].Version != "a_b c" {
		t.Errorf("software: %+v", sw)
	}
	if got := versions(t, s); got != "a_b c=2" { // the one that runs is none
		t.Errorf("packages: %s", got)
	}
	check(t, remove(s, "a_b c"))
	for _, name := range []string{"a_b c", "a/b c", "a_b+c"} {
		if _, err := s.candidate(name); refusal(err) != "10551854" {
			t.Errorf("%s: %v", name, err)
		}
		check(t, remove(s, name)) // it runs, and is kept
	}
	r := httptest.NewRecorder()
	reply, err := s.getHistory(httptest.NewRequest(http.MethodGet, historyPath+"?from_version=x_1&to_version=x_2", nil))
	check(t, err)
	check(t, reply.Stream(r))
	if !strings.Contains(r.Body.String(), `"num_records":1`) {
		t.Errorf("history: %s", r.Body)
	}
}

// past has one activation, of versions with a slash.
type past struct{ noUpdates }

func (past) List(context.Context) ([]store.Upgrade, error) {
	return []store.Upgrade{{Status: store.UpgradeConfirmed, FromVersion: "x/1", ToVersion: "x/2", CreatedAt: t0, EndTime: t0}}, nil
}

// TestSlotRefilled: what was asked of a package is not done to the image that is in its slot by now.
func TestSlotRefilled(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.cfg.Tester = slots.NewTester(b.cfg.Slots, slots.TesterConfig{Policy: slots.TestPolicy{Space: func() (int64, error) { return 1 << 30, nil }}})
	t.Cleanup(b.cfg.Tester.Close)
	begun := &beginner{}
	b.cfg.Updates = begun
	s := b.open(t)
	digest := b.fill(t, 1, "9.1", "a")
	p, err := s.candidate("9.1")
	check(t, err)
	if f := s.examine(t.Context(), p); f.code != 0 {
		t.Errorf("%+v", f)
	}
	check(t, b.cfg.Slots.Delete(1))
	b.fill(t, 1, "9.1", "b")
	if err := s.empty(p); refusal(err) != "10551325" {
		t.Errorf("delete: %v", err)
	}
	if f := s.examine(t.Context(), p); f.code != codeNoPackage {
		t.Errorf("%+v", f)
	}
	if _, err := s.update(httptest.NewRequest(http.MethodPatch, softwarePath, nil), p, time.Minute); refusal(err) != "10551391" {
		t.Errorf("update: %v", err)
	}
	if begun.sha256 != digest {
		t.Errorf("it was to activate %q", begun.sha256)
	}
	if got := versions(t, s); got != "9.1=1" {
		t.Errorf("packages: %s", got)
	}
	check(t, remove(s, "9.1"))
	if got := versions(t, s); got != "" {
		t.Errorf("packages: %s", got)
	}
}

// beginner keeps what it was to activate.
type beginner struct {
	noUpdates
	sha256 string
}

func (b *beginner) Begin(_ context.Context, _ string, _ int, sha256 string, _ store.Actor) error {
	b.sha256 = sha256
	return errors.New("no")
}
