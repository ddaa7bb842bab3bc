package source

import "time"

// For tests of what reads foreign bytes.
var (
	ContentRange    = contentRange
	AnnouncedSHA256 = announcedSHA256
	RetryAfter      = retryAfter
	Redirect        = redirect
)

// Spread makes a client spread downloads of least bytes and more, in segments, looking at the rate once in window:
// enough needs no company, and a step must make it growth times as fast.
func (c *Client) Spread(least, segment int64, window time.Duration, enough, growth float64) {
	c.limit = spreadLimits{least: least, segment: segment, window: window, enough: enough, growth: growth, auto: 8}
}

// Look bounds a probe.
func (c *Client) Look(whole, sample time.Duration, bytes int64) {
	c.probe.whole, c.probe.sample, c.probe.bytes = whole, sample, bytes
}

// Meter replays what a meter is told once in each window, in bytes a second, and gives what it says.
func Meter(rates ...float64) []int {
	now := time.Unix(0, 0)
	m := meter{limits: defaultLimits, most: 8, now: func() time.Time { return now }}
	lanes := m.look(0, 1)
	var arrived float64
	var said []int
	for _, r := range rates {
		now = now.Add(m.limits.window)
		arrived += r * m.limits.window.Seconds()
		lanes = m.look(int64(arrived), lanes)
		said = append(said, lanes)
	}
	return said
}

// Panicking is a stream whose reader and closer panic.
func Panicking() *Stream {
	return &Stream{read: panicking{}, close: func() error { panic("close") }, wrap: classify, ended: func() error { return nil }}
}

type panicking struct{}

func (panicking) Read([]byte) (int, error) { panic("read") }

// Plain is e as New takes it.
func Plain(e Egress) (Egress, error) {
	c, err := New(Config{Egress: e})
	if err != nil {
		return e, err
	}
	return c.cfg.Egress, nil
}
