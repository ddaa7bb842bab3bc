package slots

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// ScrubConfig says how a [Scrubber] works.
type ScrubConfig struct {
	// Interval is how old the last look at an image may get, 0 for no looks but those of [Scrubber.Verify].
	Interval time.Duration
	// Rate bounds the reading, in bytes a second; it is not for Verify. 0 means as fast as it goes.
	Rate int64
	// Wait is how long the answer to a verify may take (default 60 s).
	Wait time.Duration
}

const (
	// scrubSleep bounds the wait for the next image that is due, because the clock of the box may be set.
	scrubSleep = 15 * time.Minute
	// scrubAgain is the pause after a scrub that came to no result.
	scrubAgain = time.Minute
)

// errScrubber is the cause of the end of a Scrubber.
var errScrubber = errors.New("the scrubber is stopping")

// Scrubber looks after the images of a [Slots]: it reads each again when Interval has passed since it came or was last
// read, one at a time, at most at Rate, and not while anything is written into a slot. One that is interrupted starts
// again. It only reads, and notes what it found.
type Scrubber struct {
	s      *Slots
	cfg    ScrubConfig
	limit  *rate.Limiter
	ctx    context.Context
	cancel context.CancelCauseFunc
	group  sync.WaitGroup
	one    chan struct{} // holds a token while a Verify reads

	mu     sync.Mutex
	runs   map[int]*verification // by slot
	closed bool
}

// verification is a Verify that is under way; several callers may wait for it.
type verification struct {
	done chan struct{}
	slot Slot
	err  error
}

// StartScrubber starts to look after s. Close it before s.
func StartScrubber(s *Slots, cfg ScrubConfig) *Scrubber {
	if cfg.Wait == 0 {
		cfg.Wait = verifyWait
	}
	c := &Scrubber{s: s, cfg: cfg, limit: rate.NewLimiter(rate.Inf, BufferSize), one: make(chan struct{}, 1), runs: map[int]*verification{}}
	if cfg.Rate > 0 {
		c.limit.SetLimit(rate.Limit(cfg.Rate))
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	if cfg.Interval > 0 {
		c.group.Go(c.work)
	}
	return c
}

// Close stops whatever is being read, and waits.
func (c *Scrubber) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel(errScrubber)
	c.group.Wait()
}

// work scrubs what is due until Close.
func (c *Scrubber) work() {
	for c.ctx.Err() == nil {
		id, wait, err := c.next()
		if err == nil && wait <= 0 {
			_, err = c.s.Scrub(c.ctx, id, c.pace)
		}
		switch {
		case c.ctx.Err() != nil:
			return
		case errors.Is(err, ErrEmpty), errors.Is(err, ErrDamaged): // since we looked
			wait = 0
		case err != nil:
			c.s.cfg.Log.Warn("cannot scrub", "err", err)
			wait = scrubAgain
		}
		c.sleep(min(wait, scrubSleep))
	}
}

func (c *Scrubber) sleep(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.ctx.Done():
	}
}

// next is the image that has waited for longest, and how long it still has.
func (c *Scrubber) next() (id int, wait time.Duration, err error) {
	list, err := c.s.List()
	if err != nil {
		return 0, 0, err
	}
	now := c.s.cfg.Now()
	wait = min(scrubSleep, c.cfg.Interval)
	for _, sl := range list {
		if sl.Manifest == nil {
			continue
		}
		last := sl.Care.ScrubbedAt
		if last.IsZero() {
			last = sl.Manifest.FetchedAt
		}
		left := c.cfg.Interval - now.Sub(last)
		if last.After(now) {
			left = 0 // by a clock that was wrong
		}
		if left < wait {
			id, wait = sl.ID, left
		}
	}
	return id, wait, nil
}

// pace waits until nothing else reads or writes slots, and then as long as the rate wants.
func (c *Scrubber) pace(ctx context.Context, n int) error {
	if err := c.s.quiet(ctx); err != nil {
		return err
	}
	select {
	case c.one <- struct{}{}:
		<-c.one
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return c.limit.WaitN(ctx, n)
}

// Verify scrubs slot id now, as fast as it goes, and returns the slot as it is then. When ctx ends first, that goes on,
// and another Verify of the slot waits for the same result. Its errors are those of [Slots.Scrub].
func (c *Scrubber) Verify(ctx context.Context, id int) (Slot, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return Slot{}, errScrubber
	}
	run := c.runs[id]
	if run == nil {
		run = &verification{done: make(chan struct{})}
		c.runs[id] = run
		c.group.Go(func() { c.verify(run, id) })
	}
	c.mu.Unlock()
	select {
	case <-run.done:
		return run.slot, run.err
	case <-ctx.Done():
		return Slot{}, context.Cause(ctx)
	}
}

func (c *Scrubber) verify(run *verification, id int) {
	defer func() {
		c.mu.Lock()
		delete(c.runs, id)
		c.mu.Unlock()
		close(run.done)
	}()
	select {
	case c.one <- struct{}{}:
		defer func() { <-c.one }()
	case <-c.ctx.Done():
		run.err = context.Cause(c.ctx)
		return
	}
	run.slot, run.err = c.s.Scrub(c.ctx, id, nil)
}
