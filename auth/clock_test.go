package auth_test

import (
	"testing"
	"time"
)

// TestClockJumps sets the clock while a session lives, and the agent runs: whichever way, a session never lives
// longer than its limits, and a new login works at once.
func TestClockJumps(t *testing.T) {
	const century = 100 * 365 * 24 * time.Hour
	for name, tt := range map[string]struct {
		jumps []time.Duration
		alive bool
	}{
		"back":                   {[]time.Duration{-time.Hour}, true},
		"back a little":          {[]time.Duration{-2 * time.Second}, true},
		"back by far":            {[]time.Duration{-century}, true},
		"back and forward again": {[]time.Duration{-time.Hour, time.Hour}, true},
		"forward a little":       {[]time.Duration{time.Minute}, true},
		"forward":                {[]time.Duration{time.Hour}, false},
		"forward and back again": {[]time.Duration{time.Hour, -time.Hour}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t)
			token := b.login("ann")
			b.see(token, 200)
			for _, d := range tt.jumps {
				b.clock.set(d)
				if tt.alive {
					b.see(token, 200)
				} else {
					b.see(token, 401)
				}
			}
			fresh := b.login("ann")
			b.see(fresh, 200)
			b.clock.add(20 * time.Minute)
			b.see(token, 401)
			b.see(fresh, 401)
		})
	}
	// A clock that creeps back between requests does not keep a session alive past its lifetime.
	t.Run("creeping", func(t *testing.T) {
		b := newBox(t)
		token := b.login("ann")
		for range 71 { // 10 minutes each
			b.clock.add(10 * time.Minute)
			b.clock.set(-9 * time.Minute)
			b.see(token, 200)
		}
		b.clock.add(10 * time.Minute)
		b.see(token, 401)
	})
}

// A box without a real-time clock boots in the past, until it has asked the network for the time. Sessions outlive that.
func TestBootInThePast(t *testing.T) {
	const wrong = 50 * 365 * 24 * time.Hour
	reboot := func(t *testing.T) (b *box, token string) {
		b = newBox(t)
		token = b.login("ann")
		b.clock.add(time.Minute)
		b.see(token, 200)
		b.stop()
		b.clock.set(-wrong)
		b.clock.add(time.Minute) // to boot
		b.start()
		b.see(token, 401)
		return b, token
	}
	t.Run("the clock is set", func(t *testing.T) {
		b, token := reboot(t)
		b.see(b.login("ann"), 200)
		b.clock.add(2 * time.Minute)
		b.see(token, 401)
		b.clock.set(wrong)
		b.see(token, 200)
		b.clock.add(20 * time.Minute)
		b.see(token, 401)
	})
	t.Run("the clock is set late", func(t *testing.T) {
		b, token := reboot(t)
		b.clock.add(18 * time.Minute)
		b.clock.set(wrong)
		b.see(token, 200) // 19 minutes after its last use
		b.clock.add(20 * time.Minute)
		b.see(token, 401)
	})
	for name, ask := range map[string]bool{"the clock is never set": false, "it is asked for meanwhile": true} {
		t.Run(name, func(t *testing.T) {
			b, token := reboot(t)
			b.clock.add(20 * time.Minute)
			if ask {
				b.see(token, 401)
			}
			b.clock.set(wrong - 20*time.Minute) // a minute after its last use
			b.see(token, 401)
		})
	}
	t.Run("one boot after the other", func(t *testing.T) {
		b, token := reboot(t)
		for range 30 {
			b.clock.add(10 * time.Minute)
			b.stop()
			b.start()
			b.see(token, 401)
		}
		b.clock.set(wrong)
		b.see(token, 401)
	})
}
