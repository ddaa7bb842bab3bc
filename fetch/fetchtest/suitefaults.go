package fetchtest

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"slotfetch/fetch/source"
)

func (b *bench) tooLong(t *testing.T) {
	img := NewImage(1, imageSize)
	p := b.Start(t, Offer{Image: img, Modified: monday, Announce: imageSize + 1000})
	data, err := drain(b.mustOpen(t, p.URL, 0, source.Validator{}))
	wantClass(t, err, source.Temporary)
	wantHead(t, img, data)
}

// tooShort: whether the surplus is seen is up to the protocol, but it is never delivered.
func (b *bench) tooShort(t *testing.T) {
	img := NewImage(1, imageSize)
	p := b.Start(t, Offer{Image: img, Modified: monday, Announce: imageSize - 1000})
	s := b.mustOpen(t, p.URL, 0, source.Validator{})
	data, err := drain(s)
	if err != nil {
		wantClass(t, err, source.Permanent)
	}
	if s.Validator.Size != imageSize-1000 || len(data) > imageSize-1000 {
		t.Errorf("got %d bytes, validator %+v", len(data), s.Validator)
	}
	wantHead(t, img, data)
}

func (b *bench) truncated(t *testing.T) { b.broken(t, FIN, true) }

// reset: what was sent just before a reset may get lost.
func (b *bench) reset(t *testing.T) { b.broken(t, RST, false) }

func (b *bench) broken(t *testing.T, fault Fault, all bool) {
	img := NewImage(1, imageSize)
	p := b.Start(t, Offer{Image: img, Modified: monday, Fault: fault, After: middle})
	s, err := b.open(t.Context(), t, p.URL, 0, source.Validator{})
	var data []byte
	if err == nil {
		data, err = drain(s)
	}
	wantClass(t, err, source.Temporary)
	wantHead(t, img, data)
	if all && len(data) != middle {
		t.Errorf("got %d bytes, want the %d that were sent", len(data), middle)
	}
}

func (b *bench) stalled(t *testing.T) {
	img := NewImage(1, imageSize)
	b.idle = 300 * time.Millisecond
	p := b.Start(t, Offer{Image: img, Modified: monday, Fault: Stall, After: middle})
	data, err := drain(b.mustOpen(t, p.URL, 0, source.Validator{}))
	wantClass(t, err, source.Temporary)
	wantHead(t, img, data)
	if len(data) != middle {
		t.Errorf("got %d bytes, want %d", len(data), middle)
	}
	p.Ended(t)
}

func (b *bench) mute(t *testing.T) {
	b.idle = 300 * time.Millisecond
	p := b.Start(t, Offer{Image: NewImage(1, 10), Modified: monday, Fault: NoAnswer})
	_, err := b.open(t.Context(), t, p.URL, 0, source.Validator{})
	wantClass(t, err, source.Temporary)
	p.Ended(t)
}

// promptly runs attempt, which cancels and gives the time from then until the end. A cancel takes effect at once;
// on a busy machine "at once" gets three tries.
func promptly(t *testing.T, attempt func() time.Duration) {
	t.Helper()
	var took time.Duration
	for range 3 {
		if took = attempt(); took <= 100*time.Millisecond {
			return
		}
	}
	t.Errorf("the cancel took %s", took)
}

func (b *bench) cancelOpen(t *testing.T) {
	p := b.Start(t, Offer{Image: NewImage(1, 10), Modified: monday, Fault: NoAnswer})
	promptly(t, func() time.Duration {
		ctx, cancel := context.WithCancelCause(t.Context())
		failed := make(chan error, 1)
		go func() {
			s, err := b.open(ctx, t, p.URL, 0, source.Validator{})
			if err == nil {
				s.Close()
			}
			failed <- err
		}()
		p.Asked(t)
		start := time.Now()
		cancel(errCancelled)
		if err := Await(t, "Open", failed); !errors.Is(err, errCancelled) {
			t.Errorf("got %v, want the cause", err)
		}
		took := time.Since(start)
		p.Ended(t)
		return took
	})
}

func (b *bench) cancelRead(t *testing.T) {
	img := NewImage(1, bigSize)
	canStall := b.Not["stalled"] == ""
	p := b.Start(t, Offer{Image: img, Modified: monday, Fault: Stall, After: middle})
	promptly(t, func() time.Duration {
		ctx, cancel := context.WithCancelCause(t.Context())
		s, err := b.open(ctx, t, p.URL, 0, source.Validator{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := io.ReadFull(s, make([]byte, middle)); err != nil {
			t.Fatal(err)
		}
		failed := make(chan error, 1)
		read := func() {
			_, err := io.Copy(io.Discard, s)
			failed <- err
		}
		start := time.Now()
		if canStall { // Read blocks, or is about to
			go read()
			cancel(errCancelled)
		} else { // nothing stops Read from reaching the end but the cancel
			cancel(errCancelled)
			go read()
		}
		if err := Await(t, "Read", failed); !errors.Is(err, errCancelled) {
			t.Errorf("got %v, want the cause", err)
		}
		took := time.Since(start)
		if p.Ended != nil { // although nobody has called Close yet
			p.Ended(t)
		}
		return took
	})
}

func (b *bench) cancelBefore(t *testing.T) {
	p := b.Start(t, Offer{Image: NewImage(1, imageSize), Modified: monday})
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errCancelled)
	if _, err := b.open(ctx, t, p.URL, 0, source.Validator{}); !errors.Is(err, errCancelled) {
		t.Errorf("got %v, want the cause", err)
	}
}
