package auth_test

import (
	"testing"
	"time"
)

// TestClockJumps sets the clock while a session lives, and the agent runs: whichever way, a session never lives
// longer than its limits, and a new login works at once.
func TestClockJumps(t *testing.T) {
	for name, jumps := range map[string][]time.Duration{
		"back":                     {-time.Hour},
		"back a little":            {-2 * time.Second},
		"forward":                  {time.Hour},
		"back and forward again":   {-time.Hour, time.Hour},
		"forward and back again":   {time.Hour, -time.Hour},
		"back by more than it was": {-100 * 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t)
			token := b.login("ann")
			b.see(token, 200)
			for _, d := range jumps {
				b.clock.add(d)
				b.see(token, 401)
			}
			fresh := b.login("ann")
			b.see(fresh, 200)
			b.clock.add(20 * time.Minute)
			b.see(fresh, 401)
		})
	}
	// A clock that creeps back between requests does not keep a session alive past its lifetime.
	t.Run("creeping", func(t *testing.T) {
		b := newBox(t)
		token := b.login("ann")
		alive := true
		for minutes := 0; minutes < 14*60 && alive; minutes += 10 { // of requests, by another clock
			b.clock.add(10*time.Minute - 900*time.Millisecond)
			alive = b.do("GET", "/api/x", "Cookie", "session_id="+token).status == 200
		}
		if alive {
			t.Error("the session lives for ever")
		}
	})
}
