package fetchtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"go.uber.org/goleak"

	"slotfetch/fetch/source"
)

// Backend is a kind of server for [TestSource].
type Backend struct {
	// Config is for the client; Egress is set to [Loopback] and the timeouts by each case.
	Config source.Config
	// CA is for the requests. If there is one, every stream must have been verified.
	CA []byte
	// Start serves what is offered.
	Start func(t testing.TB, o Offer) Place
	// Not says why a case does not apply, by its name.
	Not map[string]string
}

// Offer is what a server shall serve, and how it shall fail.
type Offer struct {
	Image    *Image
	Modified time.Time
	// Fault happens after After bytes.
	Fault Fault
	After int64
	// Announce is the length to announce; 0: the true one.
	Announce int64
}

// Place is a file on a running server.
type Place struct {
	URL string
	// Replace puts another image there.
	Replace func(img *Image, modified time.Time)
	// Asked waits until a connection has come, Ended until the server has seen the end of the oldest one that is
	// not yet accounted for. Nil: there is none to see.
	Asked func(t testing.TB)
	Ended func(t testing.TB)
}

var (
	monday  = time.Date(2020, 5, 4, 8, 0, 1, 0, time.UTC)
	tuesday = monday.Add(24 * time.Hour)

	errCancelled = errors.New("the test cancelled")
)

const (
	imageSize = 300_000
	bigSize   = 32 << 20 // more than the buffers between server and client hold
	middle    = 123_457
)

// TestSource runs the conformance suite: what every source does alike, whatever its scheme.
func TestSource(t *testing.T, b Backend) {
	for _, tc := range []struct {
		name string
		run  func(*bench, *testing.T)
	}{
		{"whole file", (*bench).whole},
		{"empty file", (*bench).empty},
		{"missing file", (*bench).missing},
		{"offset without validator", (*bench).unproven},
		{"resume", (*bench).resume},
		{"resume a changed file", (*bench).changed},
		{"announced too long", (*bench).tooLong},
		{"announced too short", (*bench).tooShort},
		{"truncated", (*bench).truncated},
		{"reset", (*bench).reset},
		{"stalled", (*bench).stalled},
		{"mute", (*bench).mute},
		{"cancelled in Open", (*bench).cancelOpen},
		{"cancelled in the middle", (*bench).cancelRead},
		{"cancelled before", (*bench).cancelBefore},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if why := b.Not[tc.name]; why != "" {
				t.Skip(why)
			}
			ignore := goleak.IgnoreCurrent()
			t.Cleanup(func() { goleak.VerifyNone(t, ignore) }) // after the servers are gone
			tc.run(&bench{Backend: b, idle: Patience}, t)
		})
	}
}

// bench is one case at work.
type bench struct {
	Backend
	idle time.Duration
}

func (b *bench) open(ctx context.Context, t testing.TB, url string, offset int64, v source.Validator) (*source.Stream, error) {
	t.Helper()
	cfg := b.Config
	cfg.Egress, cfg.IdleTimeout, cfg.HeaderTimeout = Loopback(), b.idle, b.idle
	client, err := source.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	u, cred, err := source.ParseURL(url)
	if err != nil {
		t.Fatalf("ParseURL: expected %v", err)
	}
	return client.Open(ctx, source.Request{URL: u, Credentials: cred, CA: b.CA}, offset, v)
}

func (b *bench) mustOpen(t testing.TB, url string, offset int64, v source.Validator) *source.Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*Patience) // for code that hangs
	t.Cleanup(cancel)
	s, err := b.open(ctx, t, url, offset, v)
	if err != nil {
		t.Fatalf("Open: %v (%v)", err, errors.Unwrap(err))
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// drain reads s to its end. Err is the first of the errors of Read and Close.
func drain(s *source.Stream) ([]byte, error) {
	data, err := io.ReadAll(s)
	if cerr := s.Close(); err == nil {
		err = cerr
	}
	return data, err
}

// wantTail checks that data is img from offset.
func wantTail(t testing.TB, img *Image, offset int64, data []byte) {
	t.Helper()
	if want := img.Bytes()[offset:]; !bytes.Equal(data, want) {
		t.Errorf("got %d bytes, want %d, or they differ", len(data), len(want))
	}
}

// wantHead checks that data is what img begins with.
func wantHead(t testing.TB, img *Image, data []byte) {
	t.Helper()
	if want := img.Bytes(); !bytes.HasPrefix(want, data) {
		t.Errorf("%d bytes are not what the image begins with", len(data))
	}
}

func wantClass(t testing.TB, err error, class source.Class) {
	t.Helper()
	var e *source.Error
	if !errors.As(err, &e) {
		t.Fatalf("got error %v, want a *source.Error of class %v", err, class)
	}
	if e.Class != class || e.Code == "" || e.Message == "" {
		t.Errorf("got %v %q %q, want class %v", e.Class, e.Code, e.Message, class)
	}
}

func (b *bench) whole(t *testing.T) {
	img := NewImage(1, imageSize)
	p := b.Start(t, Offer{Image: img, Modified: monday})
	s := b.mustOpen(t, p.URL, 0, source.Validator{})
	if s.Offset != 0 || s.Validator.Size != img.Size() || !s.Validator.Resumable() {
		t.Errorf("got offset %d, validator %+v", s.Offset, s.Validator)
	}
	if verified := s.TLSVerified != nil && *s.TLSVerified; verified != (b.CA != nil) {
		t.Errorf("TLS verified: %v", verified)
	}
	data, err := drain(s)
	if err != nil {
		t.Fatal(err)
	}
	wantTail(t, img, 0, data)
	if p.Ended != nil {
		p.Ended(t)
	}
}

func (b *bench) empty(t *testing.T) {
	p := b.Start(t, Offer{Image: NewImage(1, 0), Modified: monday})
	s := b.mustOpen(t, p.URL, 0, source.Validator{})
	if data, err := drain(s); err != nil || len(data) != 0 || s.Validator.Size != 0 {
		t.Errorf("got %d bytes, error %v, validator %+v", len(data), err, s.Validator)
	}
}

func (b *bench) missing(t *testing.T) {
	p := b.Start(t, Offer{Image: NewImage(1, 10), Modified: monday})
	_, err := b.open(t.Context(), t, p.URL+".missing", 0, source.Validator{})
	wantClass(t, err, source.Permanent)
	if p.Ended != nil {
		p.Ended(t)
	}
}

func (b *bench) unproven(t *testing.T) {
	img := NewImage(1, imageSize)
	p := b.Start(t, Offer{Image: img, Modified: monday})
	s := b.mustOpen(t, p.URL, middle, source.Validator{Size: img.Size()})
	if s.Offset != 0 {
		t.Errorf("got offset %d, want 0", s.Offset)
	}
	data, err := drain(s)
	if err != nil {
		t.Fatal(err)
	}
	wantTail(t, img, 0, data)
}

// half reads the first bytes of the file and gives up.
func (b *bench) half(t *testing.T, p Place) source.Validator {
	t.Helper()
	s := b.mustOpen(t, p.URL, 0, source.Validator{})
	if _, err := io.ReadFull(s, make([]byte, middle)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close in the middle: %v", err)
	}
	if p.Ended != nil {
		p.Ended(t)
	}
	return s.Validator
}

func (b *bench) resume(t *testing.T) {
	img := NewImage(1, imageSize)
	p := b.Start(t, Offer{Image: img, Modified: monday})
	v := b.half(t, p)
	s := b.mustOpen(t, p.URL, middle, v)
	if s.Offset != middle || s.Validator.Size != img.Size() {
		t.Fatalf("got offset %d, validator %+v", s.Offset, s.Validator)
	}
	data, err := drain(s)
	if err != nil {
		t.Fatal(err)
	}
	wantTail(t, img, middle, data)
}

func (b *bench) changed(t *testing.T) {
	other := NewImage(2, imageSize)
	p := b.Start(t, Offer{Image: NewImage(1, imageSize), Modified: monday})
	v := b.half(t, p)
	p.Replace(other, tuesday)
	s := b.mustOpen(t, p.URL, middle, v)
	if s.Offset != 0 {
		t.Fatalf("got offset %d, want 0", s.Offset)
	}
	data, err := drain(s)
	if err != nil {
		t.Fatal(err)
	}
	wantTail(t, other, 0, data)
}
