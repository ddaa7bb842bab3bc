package auth

import (
	"sync"
	"time"
)

// clock only goes on: it follows the system's clock when that is set forward, as on a box without a real-time clock some
// time after its start, and takes no notice when it is set back. It is safe for concurrent use.
type clock struct {
	wall   func() time.Time
	uptime func() time.Duration

	mu   sync.Mutex
	base time.Time // when uptime was 0
}

func (c *clock) now() time.Time {
	up, wall := c.uptime(), c.wall().Round(0)
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.base.Add(up); !wall.After(now) {
		return now
	}
	c.base = wall.Add(-up)
	return wall
}
