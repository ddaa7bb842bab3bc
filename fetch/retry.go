package fetch

import (
	"math/rand/v2"
	"time"
)

// Retry says how long temporary failures are borne.
type Retry struct {
	// Rounds is how often each source is tried in a row without progress before the fetch fails (default 10).
	Rounds int
	// Keep is how long, at least, a fetch goes on trying without progress that holds a part of the image, which its source
	// could continue; 0: no longer than Rounds.
	Keep time.Duration
	// Initial (default 1 s) and Max (default 2 min) bound the pause before the second and any later round, which
	// doubles each time. What is waited is a random part of it, so that boxes which failed together do not come back
	// together.
	Initial, Max time.Duration
}

func (r Retry) withDefaults() Retry {
	if r.Rounds == 0 {
		r.Rounds = 10
	}
	if r.Initial == 0 {
		r.Initial = time.Second
	}
	if r.Max == 0 {
		r.Max = 2 * time.Minute
	}
	return r
}

// pause is what is waited after the given round, from 1: exponential backoff with full jitter, but for a tenth, because no pause is
// none.
func (r Retry) pause(round int) time.Duration {
	most := r.Max
	if doubled := min(round-1, 62); r.Initial < r.Max>>doubled { // else it is more, or more than fits
		most = r.Initial << doubled
	}
	return most/10 + rand.N(most-most/10+1)
}

// asked is what is waited where a server asks for a pause of d: that, and up to a tenth more.
func (r Retry) asked(d time.Duration) time.Duration { return d + rand.N(d/10+1) }

// delay is what is waited after the given round for a server that asked for a pause; 0: it did not.
func (r Retry) delay(round int, asked time.Duration) time.Duration {
	return max(r.pause(round), r.asked(asked))
}
