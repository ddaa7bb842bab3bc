package fetch

import (
	"slices"
	"time"

	"slotfetch/fetch/source"
)

// This file decides which source is tried next, after which pause, and when it is enough. It speaks to nobody: it is told what
// came of each attempt.

// minProgress is by how many bytes an attempt must get further than any before to count as progress.
const minProgress = 64 << 10

// candidate is one of the URLs of a fetch, with what may be sent there.
type candidate struct {
	url       string
	req       source.Request
	gone      bool      // it failed for good
	notBefore time.Time // it said when to ask again
}

// tour is the way through the candidates of a fetch: the URL, then its mirrors, in rounds. It is used by one goroutine.
type tour struct {
	retry      Retry
	now        func() time.Time
	candidates []candidate
	at         int       // the one whose turn it is
	round      int       // without progress, from 1
	high       int64     // how far the file that is being fetched ever got
	moved      time.Time // when that was
}

// newTour begins at the candidate that can go on with a partial of so many bytes, which came from a URL.
func newTour(retry Retry, now func() time.Time, candidates []candidate, from string, offset int64) *tour {
	t := &tour{retry: retry, now: now, candidates: candidates, round: 1, high: offset, moved: now()}
	t.prefer(from)
	return t
}

// current is the candidate whose turn it is.
func (t *tour) current() *candidate { return &t.candidates[t.at] }

// prefer gives the turn to the candidate with the URL, if there is one.
func (t *tour) prefer(url string) {
	if k := slices.IndexFunc(t.candidates, func(c candidate) bool { return c.url == url }); k >= 0 {
		t.at = k
	}
}

// expand puts others, at least one, in the place of the current candidate.
func (t *tour) expand(found []candidate) {
	t.candidates = slices.Replace(t.candidates, t.at, t.at+1, found...)
}

// anew tells that another file is being fetched, or the same one from another source: what its first bytes are worth is not
// measured by the one before.
func (t *tour) anew() { t.high = 0 }

// failed takes what ended an attempt, and how far the partial reaches. An attempt that got further is repeated at the same
// candidate; one that did not gives way to the next. After a round without progress there is a pause. It is enough when all
// candidates have failed for good, or after too many rounds; a partial is given up later than nothing.
func (t *tour) failed(e *source.Error, offset int64) (pause time.Duration, again bool) {
	c, now := t.current(), t.now()
	c.gone = e.Class != source.Temporary
	if e.RetryAfter > 0 {
		c.notBefore = now.Add(t.retry.asked(e.RetryAfter))
	}
	progress := offset >= t.high+minProgress
	if progress {
		t.high, t.round, t.moved = offset, 1, now
	}
	if progress && !c.gone {
		return max(t.retry.pause(1), c.notBefore.Sub(now)), true
	}
	next, ok := t.next(now)
	if !ok {
		return 0, false
	}
	wrapped := next <= t.at
	t.at = next
	if wrapped {
		t.round++
		if t.round > t.retry.Rounds && (offset == 0 || now.Sub(t.moved) >= t.retry.Keep) {
			return 0, false
		}
		pause = t.retry.pause(t.round - 1)
	}
	return max(pause, t.current().notBefore.Sub(now)), true
}

// next is the candidate after the current one that has not failed for good and may be asked now, else the one that may be
// asked first.
func (t *tour) next(now time.Time) (next int, ok bool) {
	soonest := -1
	for k := range t.candidates {
		n := (t.at + 1 + k) % len(t.candidates)
		switch c := t.candidates[n]; {
		case c.gone:
		case !c.notBefore.After(now):
			return n, true
		case soonest < 0 || c.notBefore.Before(t.candidates[soonest].notBefore):
			soonest = n
		}
	}
	return soonest, soonest >= 0
}
