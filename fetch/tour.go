package fetch

import (
	"math"
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
	tries     int       // in a row without progress
	notBefore time.Time // it said when to ask again
}

// tour is the way through the candidates of a fetch: the URL, then its mirrors, in rounds. It is used by one goroutine.
type tour struct {
	retry      Retry
	now        func() time.Time
	candidates []candidate
	at         int       // the one whose turn it is
	high       int64     // how far the file that is being fetched ever got
	best       int64     // how far any file ever got
	anews      int       // since then
	moved      time.Time // when there was progress
}

// newTour begins at the candidate that can go on with a partial of so many bytes, which came from a URL.
func newTour(retry Retry, now func() time.Time, candidates []candidate, from string, offset int64) *tour {
	t := &tour{retry: retry, now: now, candidates: candidates, high: offset, best: offset, moved: now()}
	t.prefer(from)
	return t
}

// current is the candidate whose turn it is.
func (t *tour) current() *candidate { return &t.candidates[t.at] }

// prefer gives the turn to the candidate with the URL, if there is one that may be asked.
func (t *tour) prefer(url string) {
	if k := t.find(url); k >= 0 && !t.candidates[k].notBefore.After(t.now()) {
		t.at = k
	}
}

// find is the candidate with the URL that has not failed for good, -1 if there is none.
func (t *tour) find(url string) int {
	return slices.IndexFunc(t.candidates, func(c candidate) bool { return c.url == url && !c.gone })
}

// expand puts others, at least one, in the place of the current candidate.
func (t *tour) expand(found []candidate) {
	t.candidates = slices.Replace(t.candidates, t.at, t.at+1, found...)
}

// anew tells that another file is being fetched, or the same one from another source: what its first bytes are worth is not
// measured by the one before. For a file that is another one each time that is true only so often.
func (t *tour) anew() {
	if t.anews++; t.anews <= t.retry.Rounds {
		t.high = 0
	}
}

// failed takes what ended an attempt, how far the partial reaches, and the URL at which it could be continued, empty if nowhere.
// An attempt that got further is repeated at the same candidate; one that did not gives way to the next. After a round without
// progress there is a pause. It is enough when all candidates have failed for good, or too often; a partial that can be continued
// is given up later than nothing.
func (t *tour) failed(e *source.Error, offset int64, partial string) (pause time.Duration, again bool) {
	c, now := t.current(), t.now()
	c.gone = e.Class != source.Temporary
	c.tries++
	if e.RetryAfter > 0 {
		c.notBefore = now.Add(t.retry.asked(e.RetryAfter))
	}
	if offset >= t.high+minProgress {
		t.progress(offset, now)
		if !c.gone {
			return max(t.retry.pause(1), c.notBefore.Sub(now)), true
		}
	}
	most := t.retry.Rounds
	if t.find(partial) >= 0 && now.Sub(t.moved) < t.retry.Keep {
		most = math.MaxInt
	}
	next, ok := t.next(now, most)
	if !ok {
		return 0, false
	}
	if next <= t.at { // a round is over
		pause = t.retry.pause(max(1, t.candidates[next].tries)) // it may not have been tried since there was progress
	}
	t.at = next
	return max(pause, t.current().notBefore.Sub(now)), true
}

func (t *tour) progress(offset int64, now time.Time) {
	t.high, t.moved = offset, now
	if offset > t.best {
		t.best, t.anews = offset, 0
	}
	for i := range t.candidates {
		t.candidates[i].tries = 0
	}
}

// next is the candidate after the current one that has not failed for good, nor so often, and may be asked now, else the one
// that may be asked first.
func (t *tour) next(now time.Time, often int) (next int, ok bool) {
	soonest := -1
	for k := range t.candidates {
		n := (t.at + 1 + k) % len(t.candidates)
		switch c := t.candidates[n]; {
		case c.gone, c.tries >= often:
		case !c.notBefore.After(now):
			return n, true
		case soonest < 0 || c.notBefore.Before(t.candidates[soonest].notBefore):
			soonest = n
		}
	}
	return soonest, soonest >= 0
}
