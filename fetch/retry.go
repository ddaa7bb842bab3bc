package fetch

import (
	"math/rand/v2"
	"time"
)

// Retry says how long temporary failures are borne.
type Retry struct {
	// Rounds is how often all sources are tried in a row without progress before the fetch fails (default 8).
	Rounds int
	// Initial (default 1 s) and Max (default 2 min) bound the pause before the second and any later round, which
	// doubles each time. What is waited is a random part of it.
	Initial, Max time.Duration
}

func (r Retry) withDefaults() Retry {
	if r.Rounds == 0 {
		r.Rounds = 8
	}
	if r.Initial == 0 {
		r.Initial = time.Second
	}
	if r.Max == 0 {
		r.Max = 2 * time.Minute
	}
	return r
}

// delay is the pause after the given round (from 1), at least what the server asked for.
func (r Retry) delay(round int, asked time.Duration) time.Duration {
	most := r.Max
	if doubled := min(round-1, 62); r.Initial < r.Max>>doubled { // else it is more, or more than fits
		most = r.Initial << doubled
	}
	return max(asked, most/2+rand.N(most/2+1))
}
