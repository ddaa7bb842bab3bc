package fetch

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"slotfetch/fetch/source"
	"slotfetch/slots"
	"slotfetch/store"
)

var (
	errCancelled = errors.New("cancelled by a user")
	errShutdown  = errors.New("the agent is stopping")
)

// Config is what [Open] needs. Zero values take the defaults that the fields name.
type Config struct {
	Store  *store.Store
	Slots  *slots.Slots
	Source *source.Client
	// SealKey encrypts credentials at rest; SealKeySize bytes.
	SealKey []byte
	Log     *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time

	// Workers is how many fetches run at a time (default 1).
	Workers int
	// CheckpointBytes (default 128 MiB) or CheckpointEvery (default 10 s), whichever first, is the most that a
	// crash costs.
	CheckpointBytes int64
	CheckpointEvery time.Duration
	// Retry says how long temporary failures are borne.
	Retry Retry
	// MaxSize is the largest image that may be uploaded, in bytes; 0: any. For fetches see [source.Config].
	MaxSize int64
	// Deadline is how long a fetch may take from its first start, over all attempts and restarts; 0: for ever.
	Deadline time.Duration
	// MaxTraffic bounds what all attempts of a fetch may receive, as a multiple of the image's size (default 5; below 0:
	// no bound).
	MaxTraffic float64
	// ResumeVerify says when a partial is read again before it is continued (default VerifyUnclean).
	ResumeVerify ResumeVerify
	// RateLimit is for all fetches together, in bytes a second; 0: none.
	RateLimit int64
	// Window is when fetches may run that have no window of their own.
	Window Window
	// KeepAge and KeepCount bound the list of ended fetches: how old they get, and how many there are; 0: no bound.
	KeepAge   time.Duration
	KeepCount int
	// Trust is whose images are taken.
	Trust Trust
	// CancelWait is how long a DELETE, or a pause, waits for the end of a running fetch (default 30 s).
	CancelWait time.Duration

	hooks hooks
}

// ResumeVerify is when the hash of a partial is made anew from its bytes, rather than taken from the checkpoint.
type ResumeVerify int

const (
	// VerifyUnclean: after a crash or a power cut, which may have torn what was written.
	VerifyUnclean ResumeVerify = iota
	// VerifyAlways: after each restart of the agent.
	VerifyAlways
	// VerifyNever: only if the checkpoint's hash cannot be restored.
	VerifyNever
)

// hooks let tests hold up a fetch where timing matters; all nil otherwise.
type hooks struct {
	installing, cleanup func(key string)
}

// Manager owns the workers. It is safe for concurrent use.
type Manager struct {
	cfg     Config
	ctx     context.Context
	cancel  context.CancelCauseFunc
	group   sync.WaitGroup
	wake    chan struct{}
	limit   *rate.Limiter // of all fetches
	waiting atomic.Int32  // GETs that are held
	clock   atomic.Int64  // how far it is from the monotonic one, in nanoseconds
	probes  atomic.Int32  // that are under way

	recovered chan struct{} // closed once rows and disk are brought together

	metrics *metrics

	// claiming is held over a claim and the look for a lost one, so that a fetch is either in claimed or nobody's.
	claiming sync.Mutex
	claimed  map[string]int // by the workers, until they are done with it; the number tells claims apart
	claims   int
	unsure   bool // a claim failed, and may be durable all the same

	steering sync.Mutex

	mu      sync.Mutex
	uploads int // under way
	flights map[string]*flight
	changed chan struct{} // closed and replaced at every change of a fetch
}

// flight is a fetch that a worker has in hand.
type flight struct {
	progress progress
	cancel   context.CancelCauseFunc
	limit    *rate.Limiter              // its own
	again    *time.Timer                // for the next look at its schedule
	attempt  atomic.Pointer[attemptLog] // nil between attempts
}

// Open brings rows and disk together and starts the workers, which have to wait if the database cannot be written yet.
func Open(cfg Config) (*Manager, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Workers == 0 {
		cfg.Workers = 1
	}
	if cfg.CheckpointBytes == 0 {
		cfg.CheckpointBytes = 128 << 20
	}
	if cfg.CheckpointEvery == 0 {
		cfg.CheckpointEvery = 10 * time.Second
	}
	if cfg.CancelWait == 0 {
		cfg.CancelWait = 30 * time.Second
	}
	if cfg.MaxTraffic == 0 {
		cfg.MaxTraffic = 5
	}
	cfg.Retry = cfg.Retry.withDefaults()
	if len(cfg.SealKey) != SealKeySize {
		return nil, fmt.Errorf("cannot open fetches: the seal key has %d bytes, not %d", len(cfg.SealKey), SealKeySize)
	}
	m := &Manager{cfg: cfg, metrics: newMetrics(), wake: make(chan struct{}, 1), claimed: map[string]int{}, flights: map[string]*flight{}, changed: make(chan struct{}),
		limit: newLimiter(cfg.RateLimit), recovered: make(chan struct{})}
	m.ctx, m.cancel = context.WithCancelCause(context.Background())
	m.clock.Store(cfg.Now().UnixNano() - int64(time.Since(epoch)))
	m.keep(m.recovered)
	err := m.recover()
	switch {
	case err == nil:
		close(m.recovered)
	case store.Full(err) || store.Busy(err) || slots.ReadOnly(err):
		// Nobody could look, or make room, through an agent that does not start.
		m.group.Go(func() { m.recoverLater(err) })
	default:
		m.Close()
		return nil, err
	}
	for range cfg.Workers {
		p, err := newPipeline()
		if err != nil {
			m.Close()
			return nil, err
		}
		m.group.Go(func() {
			select {
			case <-m.recovered:
				m.work(p)
			case <-m.ctx.Done():
				p.close() //nolint:errcheck // unmapping at the end has no consequence
			}
		})
	}
	return m, nil
}

// recoverLater repeats what the database did not take, and lets the workers begin once it does.
func (m *Manager) recoverLater(err error) {
	for err != nil {
		m.cfg.Log.Error("cannot recover fetches; no fetch runs until it can be done", "err", err)
		m.pause(m.ctx, time.Second)
		if m.ctx.Err() != nil {
			return
		}
		err = m.recover()
	}
	close(m.recovered)
	m.notify()
}

// Close stops the workers and waits: partials and checkpoints are kept, the rows are queued again. It waits for uploads too,
// whose bodies somebody else has to end.
func (m *Manager) Close() error {
	m.mu.Lock() // no upload begins behind our back
	m.cancel(errShutdown)
	m.mu.Unlock()
	m.group.Wait()
	return nil
}

// Enqueue accepts q; when it returns, the row is durable. It is finished at once if a slot has the image. A request that
// was made before under the same idempotency key gives the fetch of then; [ErrOtherRequest] if it was another one.
func (m *Manager) Enqueue(q Request, by store.Actor) (store.Fetch, error) {
	key := uuid.NewString()
	secrets, err := seal(m.cfg.SealKey, key, q.Secrets)
	if err != nil {
		return store.Fetch{}, err
	}
	f := store.Fetch{Key: key, URL: q.URL.String(), SHA256: q.SHA256, SHA512: q.SHA512, WantSlot: q.Slot,
		TLSVerify: q.TLSVerify, TLSCA: q.TLSCA, Force: q.Force, Idempotency: q.Idempotency, Schedule: q.Schedule, Secrets: secrets,
		Sidecar: q.Sidecar, LoneVersion: q.LoneVersion}
	f.EligibleAt = m.eligible(f.Schedule)
	if q.ChecksumURL != nil {
		f.ChecksumURL = q.ChecksumURL.String()
	}
	for _, u := range q.Mirrors {
		f.Mirrors = append(f.Mirrors, u.String())
	}
	if q.Idempotency != "" {
		if f.RequestHash, err = requestHash(m.cfg.SealKey, q); err != nil {
			return store.Fetch{}, err
		}
	}
	var out store.Fetch
	if f.Signature, err = q.Signature.encode(); err != nil {
		return store.Fetch{}, err
	}
	if s := m.holder(f); s != nil && !m.wantsSignature(f) {
		f.Paused, f.EligibleAt = false, time.Time{}
		out, err = m.cfg.Store.EnqueueFinished(f, s.ID, s.Manifest.Size, by)
	} else {
		out, err = m.cfg.Store.Enqueue(f, by)
	}
	if errors.Is(err, store.ErrExists) && out.Key != "" {
		if !hmac.Equal(out.RequestHash, f.RequestHash) {
			return store.Fetch{}, ErrOtherRequest
		}
		m.cfg.Log.Info("fetch asked for again", "key", out.Key, "by", by.Name)
		return m.live(out), nil
	}
	m.rouse() // also after an error, which may hide a row that is durable
	if err != nil {
		return out, err
	}
	if out.Status.Final() {
		m.metrics.ended(out.Status)
	}
	m.cfg.Log.Info("fetch "+string(out.Status), "key", key, "url", source.Redact(q.URL), "by", by.Name)
	return out, nil
}

// Get is one fetch as it is now; store.ErrNotFound if there is none.
func (m *Manager) Get(ctx context.Context, key string) (store.Fetch, error) {
	f, err := m.cfg.Store.Fetch(ctx, key)
	return m.live(f), err
}

// Each calls yield for every fetch, oldest first.
func (m *Manager) Each(ctx context.Context, yield func(store.Fetch) error) error {
	return m.cfg.Store.Fetches(ctx, func(f store.Fetch) error { return yield(m.live(f)) })
}

// Unfinished calls yield for every fetch that has not ended, oldest first.
func (m *Manager) Unfinished(ctx context.Context, yield func(store.Fetch) error) error {
	return m.cfg.Store.Unfinished(ctx, func(f store.Fetch) error { return yield(m.live(f)) })
}

// Foremost is the one fetch to show: one in progress, else the next in the queue, else the one that ended last;
// store.ErrNotFound if there is none.
func (m *Manager) Foremost(ctx context.Context) (store.Fetch, error) {
	f, err := m.cfg.Store.Foremost(ctx)
	return m.live(f), err
}

// live adds to a row in progress what only memory knows.
func (m *Manager) live(f store.Fetch) store.Fetch {
	if f.Status != store.InProgress {
		return f
	}
	m.mu.Lock()
	fl := m.flights[f.Key]
	m.mu.Unlock()
	if fl == nil {
		return f
	}
	return fl.progress.overlay(f)
}

// Wait returns the fetch as soon as done says so, or the error of ctx. It is how anybody waits for a change.
func (m *Manager) Wait(ctx context.Context, key string, done func(store.Fetch) bool) (store.Fetch, error) {
	for {
		changed := m.Changed()
		f, err := m.Get(ctx, key)
		if err != nil || done(f) {
			return f, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return f, context.Cause(ctx)
		}
	}
}

// Changed is closed at the next change of any fetch. Take it before looking, so that no change is missed.
func (m *Manager) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// notify wakes all who wait.
func (m *Manager) notify() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.changed)
	m.changed = make(chan struct{})
}

// Delete cancels a live fetch or prunes a final one. A running fetch is waited for, at most CancelWait or until ctx
// ends, neither of which stops the cancel; whether it is complete shows in the status of the row returned.
func (m *Manager) Delete(ctx context.Context, key string, by store.Actor) (store.Outcome, store.Fetch, error) {
	return m.endEarly(ctx, key, by, m.cfg.Store.Delete)
}

// Cancel is Delete for a live fetch; one that has ended is left alone, which is store.ErrConflict.
func (m *Manager) Cancel(ctx context.Context, key string, by store.Actor) (store.Outcome, store.Fetch, error) {
	return m.endEarly(ctx, key, by, m.cfg.Store.Cancel)
}

func (m *Manager) endEarly(ctx context.Context, key string, by store.Actor, ask func(string, store.Actor) (store.Outcome, store.Fetch, error)) (store.Outcome, store.Fetch, error) {
	out, f, err := ask(key, by)
	if err != nil {
		return out, f, err
	}
	m.notify()
	m.cfg.Log.Info("fetch deleted", "key", key, "by", by.Name, "status", f.Status)
	switch out {
	case store.CancelledQueued:
		m.metrics.ended(store.Cancelled)
		// It may have been interrupted by a restart and own a partial.
		return out, f, m.cfg.Slots.RemovePartial(key)
	case store.CancelRequested:
		m.interrupt(key)
		ctx, stop := context.WithTimeout(ctx, m.cfg.CancelWait)
		defer stop()
		before := m.live(f)
		f, err := m.Wait(ctx, key, func(f store.Fetch) bool { return f.Status.Final() })
		if errors.Is(err, store.ErrNotFound) {
			// It was cancelled, and pruned by somebody else before we looked.
			f, err = before, nil
			f.Status, f.Phase, f.CancelRequested, f.BytesPerSecond, f.EndTime = store.Cancelled, "", false, nil, m.cfg.Now()
		}
		if err != nil && ctx.Err() != nil {
			f, err = m.Get(context.WithoutCancel(ctx), key)
		}
		return out, f, err
	}
	return out, m.live(f), nil
}

func (m *Manager) interrupt(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if fl := m.flights[key]; fl != nil {
		fl.cancel(errCancelled)
	}
}

// Source is what the fetches are opened with.
func (m *Manager) Source() *source.Client { return m.cfg.Source }

// Running counts the fetches in hand, for the status line and health.
func (m *Manager) Running() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.flights)
}

// Stuck names a fetch in hand that has shown no sign of life for limit: no byte, no change of phase, though it does
// not wait for its next attempt.
func (m *Manager) Stuck(limit time.Duration) (key string, stuck bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, fl := range m.flights {
		if fl.progress.silent() >= limit {
			return key, true
		}
	}
	return "", false
}

// work claims fetches, one at a time, until the manager stops.
func (m *Manager) work(p *pipeline) {
	defer p.close() //nolint:errcheck // unmapping at the end has no consequence
	for m.ctx.Err() == nil {
		f, number, err := m.claim()
		if err != nil {
			m.cfg.Log.Error("cannot claim a fetch", "err", err)
			m.pause(m.ctx, time.Second)
			continue
		}
		if number == 0 {
			m.idle()
			continue
		}
		m.rouse() // with several workers, pass the word on: one wake may stand for many rows
		m.fly(p, f)
		m.claiming.Lock()
		if m.claimed[f.Key] == number { // else another worker has it already, after a pause
			delete(m.claimed, f.Key)
		}
		m.claiming.Unlock()
	}
}

// claim hands the fetch whose turn it is to a worker; number, of the claim, is 0 when there is none. After an error it first looks for a
// fetch that was claimed in spite of it: nobody has it in hand, and it would stay in progress for ever.
func (m *Manager) claim() (f store.Fetch, number int, err error) {
	ok := false
	m.claiming.Lock()
	defer m.claiming.Unlock()
	if m.unsure {
		err = m.cfg.Store.Unfinished(m.ctx, func(row store.Fetch) error {
			if row.Status == store.InProgress && !ok && m.claimed[row.Key] == 0 {
				f, ok = row, true
			}
			return nil
		})
		if err == nil && ok {
			f, err = m.cfg.Store.Fetch(m.ctx, f.Key) // the whole row
		}
		ok = ok && err == nil
	}
	if err == nil && !ok {
		f, ok, err = m.cfg.Store.Claim()
		m.unsure = err != nil
	}
	if !ok {
		return f, 0, err
	}
	m.claims++
	m.claimed[f.Key] = m.claims
	return f, m.claims, err
}

// fly runs one claimed fetch to its end. The flight is registered before the row is read again, so that a DELETE
// or a change between claim and registration is seen.
func (m *Manager) fly(p *pipeline, f store.Fetch) {
	ctx, cancel := context.WithCancelCause(m.ctx)
	defer cancel(nil)
	fl := &flight{cancel: cancel, limit: newLimiter(0)}
	fl.progress.now, fl.progress.alive, fl.progress.phase = m.cfg.Now, m.cfg.Now(), store.Downloading
	fl.progress.downloaded, fl.progress.total = f.BytesDownloaded, f.BytesTotal
	fl.progress.attempts, fl.progress.tlsVerified, fl.progress.resumedFrom = f.Attempts, f.TLSVerified, f.ResumedFrom
	m.mu.Lock()
	m.flights[f.Key] = fl
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		if m.flights[f.Key] == fl { // else another worker has it already, after a pause
			delete(m.flights, f.Key)
		}
		if fl.again != nil {
			fl.again.Stop()
		}
		m.mu.Unlock()
		m.notify()
	}()
	setLimit(fl.limit, f.RateLimit)
	m.steer(fl, f.Key)
	m.notify()
	m.cfg.Log.Info("fetch started", "key", f.Key, "attempt", f.Attempts)
	d := &download{m: m, f: f, fl: fl, pipe: p, log: m.cfg.Log.With("key", f.Key)}
	d.run(ctx)
}

// pause waits for d or the end of ctx.
func (m *Manager) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
