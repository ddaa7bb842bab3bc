package fetch

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"slotfetch/fetch/source"
)

// WithHooks lets tests hold up an install or a clean-up; nil leaves either alone.
func (c Config) WithHooks(installing, cleanup func(key string)) Config {
	c.hooks = hooks{installing: installing, cleanup: cleanup}
	return c
}

// Recover is what Open does before any worker runs.
func Recover(c Config) error {
	c.Now = time.Now
	return (&Manager{cfg: c, metrics: newMetrics()}).recover()
}

// Delay is the pause after the given round.
func (r Retry) Delay(round int, asked time.Duration) time.Duration { return r.delay(round, asked) }

// Bottleneck is what is said of stages that were at work for so long.
func Bottleneck(network, hash, disk, limit time.Duration) (ms [4]int64, name string) {
	var s stages
	for stage, d := range map[*stage]time.Duration{&s.network: network, &s.hash: hash, &s.disk: disk, &s.limit: limit} {
		stage.sum.Store(int64(d))
	}
	ms[0], ms[1], ms[2], ms[3], name = s.times()
	return ms, name
}

// ReadUpload gives the image in the body of an upload and the name of its file.
func ReadUpload(body io.Reader, h http.Header) (image []byte, name string, err error) {
	u, err := openUpload(body, h, uploadField)
	if err != nil {
		return nil, "", err
	}
	image, err = io.ReadAll(u)
	return image, u.name, err
}

// ParseSigned tells whether text, whose signature is good, is a manifest, and which digest and size it promises.
func ParseSigned(text string) (sha256 string, size int64, err error) {
	m, err := parseSigned(text)
	if err != nil {
		return "", 0, err
	}
	return m.sha256, m.size, nil
}

// Step is what came of an attempt.
type Step struct {
	Gone       bool
	RetryAfter time.Duration
	Offset     int64
	Anew       bool          // it was of another file
	After      time.Duration // it took so long
	Useless    bool          // the partial cannot be continued
}

// Walk goes through so many candidates. It gives which of them is asked after each step, with a + if there is a pause of up to a
// minute before, an h if it is an hour or more; and the end.
func Walk(retry Retry, candidates int, steps []Step) string {
	now := time.Unix(1e9, 0)
	list := make([]candidate, candidates)
	for i := range list {
		list[i].url = fmt.Sprint(i)
	}
	t := newTour(retry, func() time.Time { return now }, list, "none", 0)
	var way []string
	for _, s := range steps {
		now = now.Add(s.After)
		if s.Anew {
			t.anew()
		}
		e := &source.Error{Class: source.Temporary, RetryAfter: s.RetryAfter}
		if s.Gone {
			e.Class = source.Permanent
		}
		partial := "" // of the first one, if there is one
		if s.Offset >= minProgress && !s.Useless {
			partial = "0"
		}
		pause, again := t.failed(e, s.Offset, partial)
		if !again {
			return strings.Join(append(way, "end"), " ")
		}
		mark := ""
		switch {
		case pause >= time.Hour:
			mark = "h"
		case pause > 0:
			mark = "+"
		}
		way = append(way, fmt.Sprintf("%d%s", t.at, mark))
	}
	return strings.Join(way, " ")
}
