package slots_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"slotfetch/api"
	"slotfetch/slots"
)

// slowDisk lets nobody read on while it is shut.
type slowDisk struct {
	gate   chan chan struct{} // holds one, which is closed when it is open
	pieces atomic.Int64       // asked for so far
}

func newSlowDisk() *slowDisk {
	d := &slowDisk{gate: make(chan chan struct{}, 1)}
	d.gate <- make(chan struct{})
	return d
}

func (d *slowDisk) pace(ctx context.Context, _ int) error {
	d.pieces.Add(1)
	gate := <-d.gate
	d.gate <- gate
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (d *slowDisk) open() {
	gate := <-d.gate
	close(gate)
	d.gate <- gate
}

func (d *slowDisk) shut() {
	<-d.gate
	d.gate <- make(chan struct{})
}

// ask calls the route; code is 200 or that of the error.
func ask(ctx context.Context, t *testing.T, tester *slots.Tester) (code int, text string, e *api.Error) {
	t.Helper()
	route := tester.Route()
	reply, err := route.Handler(httptest.NewRequestWithContext(ctx, route.Method, route.Path, strings.NewReader(`{"slot_id":1}`)))
	if errors.As(err, &e) {
		return e.Status, e.Message, e
	}
	must(t, err)
	return 200, reply.Body.(api.SlotTest).Body.TestSummary, nil
}

// askOn asks until the test is through.
func askOn(t *testing.T, tester *slots.Tester) (code int, text string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		code, text, _ := ask(t.Context(), t, tester)
		if code != 503 {
			return code, text
		}
		if time.Now().After(end) {
			t.Fatalf("never through: %s", text)
		}
	}
}

// A test that takes longer than its caller may be kept goes on, and the next caller has its result: the image is read once.
func TestLongTest(t *testing.T) {
	t.Parallel()
	const pieces = 8
	now := time.Now()
	s := openIn(t, t.TempDir(), func(c *slots.Config) { c.Now = func() time.Time { return now } })
	image := random(pieces * slots.BufferSize)
	fill(t, s, 1, nil, image)
	disk := newSlowDisk()
	policy, verdict := plenty, error(nil)
	hooked := 0
	policy.Hooks = func(context.Context, slots.HookSubject) ([]slots.HookVerdict, error) {
		hooked++
		return []slots.HookVerdict{{Name: "h", Err: verdict}}, nil
	}
	tester := slots.NewTester(s, slots.TesterConfig{Policy: policy, Wait: 10 * time.Millisecond, Pace: disk.pace})
	defer tester.Close()
	for range 3 { // the second and third join
		code, text, e := ask(t.Context(), t, tester)
		if code != 503 || !strings.Contains(text, "Slot 1 is still being tested: 0% of its image is read.") || e.Header.Get("Retry-After") == "" ||
			e.Details["state"] != "testing" || e.Details["slot_id"] != 1 {
			t.Fatalf("%d %s %+v", code, text, e)
		}
	}
	wantErr(t, s.Delete(1), slots.ErrBusy) // though nobody asks
	disk.open()
	if code, text := askOn(t, tester); code != 200 || !strings.HasPrefix(text, "Image digest: ok\n") || !strings.HasSuffix(text, "Hook h: ok") {
		t.Fatalf("%d %s", code, text)
	}
	if n := disk.pieces.Load(); n != pieces || hooked != 1 {
		t.Errorf("%d pieces were read, not %d; hooks ran %d times", n, pieces, hooked)
	}

	// An upgrade has it too, at once, and holds the slot. What is cheap is looked at again.
	disk.shut()
	if _, release, err := tester.Examine(t.Context(), 1, false); err != nil {
		t.Error(err)
	} else {
		wantErr(t, s.Delete(1), slots.ErrBusy)
		if code, text, _ := ask(t.Context(), t, tester); code != 409 {
			t.Errorf("two at a time: %d %s", code, text)
		}
		release()
	}
	fill(t, s, 2, nil, []byte("another"))
	must(t, s.SetBoot(ptr(2), nil))
	if code, text := askOn2(t, tester, disk); code != 200 { // another version runs, so it is another question
		t.Errorf("%d %s", code, text)
	}
	if n := disk.pieces.Load(); n != 2*pieces || hooked != 2 {
		t.Errorf("%d pieces were read, not %d; hooks ran %d times", n, 2*pieces, hooked)
	}

	// After a while it is forgotten.
	now = now.Add(11 * time.Minute)
	if code, text := askOn2(t, tester, disk); code != 200 {
		t.Errorf("%d %s", code, text)
	}
	if n := disk.pieces.Load(); n != 3*pieces {
		t.Errorf("%d pieces were read, not %d", n, 3*pieces)
	}

	// It is for this image only.
	must(t, s.Delete(1))
	fill(t, s, 3, ptr(1), image)
	verdict = errors.New("no")
	if code, text := askOn2(t, tester, disk); code != 400 || !strings.Contains(text, "Hook h: FAILED (no)") {
		t.Errorf("%d %s", code, text)
	}
	if n := disk.pieces.Load(); n != 4*pieces {
		t.Errorf("%d pieces were read, not %d", n, 4*pieces)
	}

	// What says no is told once: it may be mended.
	verdict = nil
	if code, text := askOn2(t, tester, disk); code != 200 {
		t.Errorf("%d %s", code, text)
	}
	if n := disk.pieces.Load(); n != 5*pieces {
		t.Errorf("%d pieces were read, not %d", n, 5*pieces)
	}
}

// askOn2 is askOn on a disk that is so slow that the first caller is sent away.
func askOn2(t *testing.T, tester *slots.Tester, disk *slowDisk) (code int, text string) {
	t.Helper()
	disk.shut()
	if code, text, _ := ask(t.Context(), t, tester); code != 503 {
		t.Fatalf("it was known already: %d %s", code, text)
	}
	disk.open()
	return askOn(t, tester)
}

// A caller that hangs up ends its test, unless others have been told that it goes on; so does the end of the agent.
func TestLongTestEnds(t *testing.T) {
	t.Parallel()
	s := openIn(t, t.TempDir())
	fill(t, s, 1, nil, random(4*slots.BufferSize))
	disk := newSlowDisk()
	tester := slots.NewTester(s, slots.TesterConfig{Policy: plenty, Wait: time.Minute, Pace: disk.pace})
	ctx, hangUp := context.WithCancel(t.Context())
	gone := make(chan int)
	go func() {
		code, _, _ := ask(ctx, t, tester)
		gone <- code
	}()
	for disk.pieces.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	hangUp()
	if code := <-gone; code != 503 {
		t.Errorf("whoever hung up got %d", code)
	}
	disk.open()
	if code, text := askOn(t, tester); code != 200 {
		t.Errorf("%d %s", code, text)
	}
	if n := disk.pieces.Load(); n != 5 {
		t.Errorf("%d pieces were read; the first look was to end at its first", n)
	}
	tester.Close()

	disk.shut()
	tester = slots.NewTester(s, slots.TesterConfig{Policy: plenty, Wait: time.Millisecond, Pace: disk.pace})
	if code, text, _ := ask(t.Context(), t, tester); code != 503 {
		t.Errorf("%d %s", code, text)
	}
	ctx, hangUp = context.WithCancel(t.Context())
	hangUp()
	if code, text, _ := ask(ctx, t, tester); code != 503 { // it goes on for others
		t.Errorf("%d %s", code, text)
	}
	wantErr(t, s.Delete(1), slots.ErrBusy)
	tester.Close()
	if code, text, _ := ask(t.Context(), t, tester); code != 503 || text != "The agent is stopping." {
		t.Errorf("after Close: %d %s", code, text)
	}
	must(t, s.Delete(1)) // nobody holds it any more
}

// A panic costs one request: neither the agent nor the slot.
func TestTestPanic(t *testing.T) {
	t.Parallel()
	s := openIn(t, t.TempDir())
	fill(t, s, 1, nil, random(100))
	var panics atomic.Int64
	policy := plenty
	policy.Space = func() (int64, error) {
		if panics.CompareAndSwap(2, 3) {
			panic("space")
		}
		return plenty.Space()
	}
	tester := slots.NewTester(s, slots.TesterConfig{Policy: policy, Pace: func(context.Context, int) error {
		if panics.CompareAndSwap(0, 1) {
			panic("disk")
		}
		return nil
	}})
	defer tester.Close()
	if _, _, err := tester.Examine(t.Context(), 1, false); err == nil || errors.As(err, new(*api.Error)) {
		t.Errorf("got %v", err)
	}
	if code, text, _ := ask(t.Context(), t, tester); code != 200 {
		t.Errorf("%d %s", code, text)
	}
	panics.Store(2)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("it goes to the handler")
			}
		}()
		_, _, _ = tester.Examine(t.Context(), 1, false)
	}()
	if code, text, _ := ask(t.Context(), t, tester); code != 200 {
		t.Errorf("%d %s", code, text)
	}
}
