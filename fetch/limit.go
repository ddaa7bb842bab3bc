package fetch

import (
	"context"
	"io"
	"time"

	"golang.org/x/time/rate"
)

// This file holds a download to a rate, its own and that of all together.

// MinRate is the least rate limit, in bytes a second: below it servers give up.
const MinRate = 1024

// newLimiter lets bytes pass at so many a second; 0 is no limit.
func newLimiter(bytesPerSecond int64) *rate.Limiter {
	l := rate.NewLimiter(0, 0)
	setLimit(l, bytesPerSecond)
	return l
}

// setLimit may be called while somebody waits. What passes at once is a tenth of a second's worth, but enough for the
// timers to keep up with.
func setLimit(l *rate.Limiter, bytesPerSecond int64) {
	if bytesPerSecond <= 0 {
		l.SetLimit(rate.Inf)
		return
	}
	l.SetBurst(int(max(4<<10, bytesPerSecond/10)))
	l.SetLimit(rate.Limit(bytesPerSecond))
}

// limited reads no faster than the limits allow. A stall of the server is not seen by it: it waits between the reads.
type limited struct {
	ctx    context.Context
	r      io.Reader
	limits []*rate.Limiter
	held   *stage
	beat   func() // a sign of life
}

func (l *limited) Read(p []byte) (int, error) {
	var limits []*rate.Limiter // one that comes while we read holds for the next
	for _, limit := range l.limits {
		if limit.Limit() != rate.Inf {
			limits = append(limits, limit)
			p = p[:min(len(p), max(limit.Burst(), 1))]
		}
	}
	n, err := l.r.Read(p)
	for _, limit := range limits {
		if werr := l.wait(limit, n); werr != nil {
			return n, werr
		}
	}
	return n, err
}

func (l *limited) wait(limit *rate.Limiter, n int) error {
	if limit.Limit() == rate.Inf {
		return nil
	}
	l.held.begin()
	defer l.held.end()
	for n > 0 {
		some := min(n, max(limit.Burst(), 1)) // it may have been lowered meanwhile
		turn := limit.ReserveN(time.Now(), some)
		if !turn.OK() {
			continue
		}
		t := time.NewTimer(turn.Delay())
		select {
		case <-t.C:
			n -= some
			l.beat()
		case <-l.ctx.Done():
			t.Stop()
			return context.Cause(l.ctx)
		}
	}
	return nil
}
