package slots

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// A client of the vendor gives up after 100 s without an answer.
const (
	testWait = 80 * time.Second
	// ExamineWait is for the routes that call [Tester.Examine].
	ExamineWait = testWait + 10*time.Second
	// testKeep is for how long the result of a test waits for somebody to ask again.
	testKeep = 10 * time.Minute
)

var (
	errTester   = errors.New("the tester is stopping")
	errTestLeft = errors.New("the caller has gone")
)

// TesterConfig says how a [Tester] works.
type TesterConfig struct {
	Policy TestPolicy
	// Wait is how long a caller is kept waiting (default 80 s).
	Wait time.Duration
	// Pace slows the reading down, for tests of our own; nil: as fast as it goes.
	Pace Pace
}

// Tester tests slots. A large image on a slow disk takes longer than a caller may be kept waiting: then the test goes on
// without, and who asks again, for a test or an upgrade, waits for the same result, or finds it. It is kept in memory, for
// this very image and as long as the same version runs.
type Tester struct {
	s      *Slots
	cfg    TesterConfig
	ctx    context.Context
	cancel context.CancelCauseFunc
	group  sync.WaitGroup

	mu     sync.Mutex
	runs   map[int]*testRun  // that go on without a caller, by slot
	kept   map[int]keptFound // by slot
	closed bool
}

// testRun is one long look at a slot. It holds the slot.
type testRun struct {
	subject testSubject
	size    int64
	read    atomic.Int64 // bytes so far
	cancel  context.CancelCauseFunc
	done    chan struct{}

	release func()

	// After done; before, they are the run's.
	found inspection
	err   error
}

// testSubject is what the result of a long look holds for.
type testSubject struct{ key, sha256, current string }

type keptFound struct {
	testSubject
	found inspection
	until time.Time
}

// NewTester makes a Tester. Close it before s.
func NewTester(s *Slots, cfg TesterConfig) *Tester {
	if cfg.Wait == 0 {
		cfg.Wait = testWait
	}
	t := &Tester{s: s, cfg: cfg, runs: map[int]*testRun{}, kept: map[int]keptFound{}}
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	return t
}

// Close stops whatever goes on, and waits.
func (t *Tester) Close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel(errTester)
	t.group.Wait()
}

// stillTesting says that a test goes on without its caller.
type stillTesting struct{ percent int }

func (*stillTesting) Error() string { return "the test goes on" }

// look is what a long look at a slot finds, now or as it was found a short while ago. The caller then holds the slot and has to
// release it. The error is a *stillTesting when it takes longer than a caller may be kept, the cause of ctx or of the end of the
// Tester, or of [Slots.Hold].
func (t *Tester) look(ctx context.Context, id int) (found inspection, release func(), err error) {
	wait := time.NewTimer(t.cfg.Wait)
	defer wait.Stop()
	for {
		t.mu.Lock()
		run := t.runs[id]
		t.mu.Unlock()
		if run == nil {
			break
		}
		select {
		case <-run.done:
		case <-wait.C:
			return found, nil, run.still()
		case <-ctx.Done():
			return found, nil, context.Cause(ctx)
		}
	}
	release, err = t.s.Hold(id)
	if err != nil {
		return found, nil, err
	}
	run := &testRun{done: make(chan struct{}), release: release}
	if run.subject, run.size, err = t.s.testSubject(id); err != nil {
		release()
		return found, nil, err
	}
	if found, ok := t.recall(id, run.subject); ok {
		return found, release, nil
	}
	if !t.start(id, run) {
		release()
		return found, nil, errTester
	}
	select {
	case <-run.done:
	case <-wait.C:
		if t.leave(id, run) {
			t.s.cfg.Log.Info("a test takes long and goes on without its caller", "slot", id, "bytes", run.size)
			return found, nil, run.still()
		}
	case <-ctx.Done():
		if t.leave(id, run) {
			run.cancel(errTestLeft)
			return found, nil, context.Cause(ctx)
		}
	}
	if run.err != nil {
		run.release()
		return found, nil, run.err
	}
	return run.found, run.release, nil
}

// start begins a long look; false if the Tester is closed.
func (t *Tester) start(id int, run *testRun) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	var ctx context.Context
	ctx, run.cancel = context.WithCancelCause(t.ctx)
	t.group.Go(func() {
		defer run.cancel(nil)
		defer t.end(id, run)
		defer func() {
			if p := recover(); p != nil { // as in a handler, it costs one request
				t.s.cfg.Log.Error("panic in a test", "slot", id, "panic", p, "stack", string(debug.Stack()))
				run.err = errors.New("panic in a test")
			}
		}()
		run.found, run.err = t.s.inspect(ctx, id, t.cfg.Policy, func(ctx context.Context, n int) error {
			defer run.read.Add(int64(n))
			if t.cfg.Pace != nil {
				return t.cfg.Pace(ctx, n)
			}
			return nil
		})
	})
	return true
}

// end keeps the result if the caller has not waited for it.
func (t *Tester) end(id int, run *testRun) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer close(run.done)
	if t.runs[id] != run {
		return
	}
	delete(t.runs, id)
	run.release()
	if run.err != nil {
		return
	}
	t.kept[id] = keptFound{run.subject, run.found, t.s.cfg.Now().Add(testKeep)}
	t.s.cfg.Log.Info("the test that took long is through", "slot", id, "bytes", run.size)
}

// leave lets a look go on without its caller; false if it is through.
func (t *Tester) leave(id int, run *testRun) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-run.done:
		return false
	default:
	}
	t.runs[id] = run
	return true
}

// recall finds what was kept for this subject. What says no is told once: what was wrong may be mended.
func (t *Tester) recall(id int, subject testSubject) (inspection, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, ok := t.kept[id]
	good := ok && k.testSubject == subject && t.s.cfg.Now().Before(k.until)
	if !good || k.found.image.failed != "" || k.found.hooks.failed != "" {
		delete(t.kept, id)
	}
	return k.found, good
}

func (run *testRun) still() error {
	percent := 0
	if run.size > 0 {
		percent = int(100 * min(run.read.Load(), run.size) / run.size)
	}
	return &stillTesting{percent}
}

// testSubject is what slot id holds, and what runs; size is that of the image. Of a damaged slot nothing is known.
func (s *Slots) testSubject(id int) (subject testSubject, size int64, err error) {
	sl, err := s.look(id)
	if err != nil || sl.Manifest == nil {
		return subject, 0, err
	}
	return testSubject{sl.Manifest.Key, sl.Manifest.SHA256, s.currentImage().Version}, sl.Manifest.Size, nil
}
