package fetch

import "time"

// WithHooks lets tests hold up an install or a clean-up; nil leaves either alone.
func (c Config) WithHooks(installing, cleanup func(key string)) Config {
	c.hooks = hooks{installing: installing, cleanup: cleanup}
	return c
}

// Recover is what Open does before any worker runs.
func Recover(c Config) error {
	c.Now = time.Now
	return (&Manager{cfg: c}).recover()
}

// Delay is the pause after the given round.
func (r Retry) Delay(round int, asked time.Duration) time.Duration { return r.delay(round, asked) }
