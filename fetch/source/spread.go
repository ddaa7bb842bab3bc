package source

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// This file lets one download use several connections where the server, or the way to it, limits each of them.
//
// The file is cut into segments, which are asked for by ranges and handed on in order, so that whoever reads sees one
// stream. A range counts only with the validator of the first answer, like every continued download. It begins with one
// connection; what is read is measured, and as long as more connections bring more bytes, their number doubles. The
// first refusal (429, 503, a range that is not honoured) ends that for good: back to one.

// maxConnections is the most that can be configured.
const maxConnections = 16

// spreadLimits are when and how far a download is spread.
type spreadLimits struct {
	least   int64         // shorter rests are not worth it, in bytes
	segment int64         // in bytes; one of them is in memory for each connection
	window  time.Duration // over which the rate is taken
	enough  float64       // bytes a second; a faster connection has no company
	growth  float64       // what a step must bring
	auto    int           // connections at most, where the number is ours to choose
}

var defaultLimits = spreadLimits{least: 64 << 20, segment: 4 << 20, window: time.Second, enough: 80 << 20, growth: 1.1, auto: 8}

// spreads tells whether a stream is worth and fit to be spread: long, of known length, with proof that a range is of the same file.
func (c *Client) spreads(s *Stream) bool {
	return c.cfg.Connections != 1 && s.ranges && s.Validator.Resumable() && s.Validator.Size-s.Offset >= c.limit.least
}

// spread is the reader behind a spread stream.
type spread struct {
	c      *Client
	ctx    context.Context
	cancel context.CancelFunc
	req    Request
	v      Validator
	lines  *lines
	group  sync.WaitGroup

	one   *Stream // the first connection; nil once there are segments
	pos   int64   // of the next byte to hand on
	lanes int     // segments in flight at most

	queue []*segment // in order
	next  int64      // where the segment after them begins
	free  [][]byte
	err   error // the last word

	arrived atomic.Int64 // bytes, over all connections
	meter   meter
}

// segment is a part of the file on its way.
type segment struct {
	part  span
	buf   []byte
	rest  []byte // what of buf is not handed on yet
	done  chan struct{}
	err   error // valid after done
	again bool  // it failed once
}

// spread takes over s.
func (c *Client) spread(ctx context.Context, req Request, t *trust, s *Stream) *Stream {
	if v := t.verified(); v != nil && *v {
		// What was said of the first connection must hold for all.
		req.Verify = VerifyAlways
		t = &trust{policy: VerifyAlways, roots: t.roots, digest: t.digest}
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &spread{c: c, ctx: ctx, cancel: cancel, req: req, v: s.Validator, lines: &lines{c: c, t: t, keep: true}, one: s, pos: s.Offset, lanes: 1}
	p.meter = meter{limits: c.limit, most: c.limit.auto, now: time.Now}
	if c.cfg.Connections > 1 {
		p.lanes = c.cfg.Connections
		p.meter.settled = true
	}
	return &Stream{Offset: s.Offset, Validator: s.Validator, TLSVerified: s.TLSVerified, read: p, close: p.close}
}

// Read hands on the next bytes of the file.
func (p *spread) Read(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	n, err := p.read(b)
	p.pos += int64(n)
	p.err = err
	if p.one != nil {
		p.arrived.Add(int64(n))
	}
	if lanes := p.meter.look(p.arrived.Load(), p.lanes); err == nil {
		p.lanes = lanes
	}
	return n, err
}

func (p *spread) read(b []byte) (int, error) {
	for {
		if p.one != nil {
			if p.lanes == 1 || p.v.Size-p.pos < p.c.limit.least {
				return p.one.read.Read(b)
			}
			_ = p.one.close()
			p.one, p.next = nil, p.pos
		}
		p.start()
		if len(p.queue) == 0 {
			if p.pos == p.v.Size {
				return 0, io.EOF
			}
			if err := p.unite(); err != nil {
				return 0, err
			}
			continue
		}
		head := p.queue[0]
		<-head.done // it ends with the context
		switch {
		case head.err == nil:
			n := copy(b, head.rest)
			if head.rest = head.rest[n:]; len(head.rest) == 0 {
				p.queue, p.free = p.queue[1:], append(p.free, head.buf)
			}
			return n, nil
		case !refusal(head.err):
			return 0, head.err
		case head.again:
			p.drop()
		default:
			if err := p.alone(head.err); err != nil {
				return 0, err
			}
		}
	}
}

// start brings as many segments on their way as there are lanes.
func (p *spread) start() {
	for p.lanes > 1 && len(p.queue) < p.lanes && p.next < p.v.Size {
		end := min(p.next+p.c.limit.segment, p.v.Size)
		s := &segment{part: span{p.next, end - 1}}
		if n := len(p.free); n > 0 {
			s.buf, p.free = p.free[n-1], p.free[:n-1]
		} else {
			s.buf = make([]byte, p.c.limit.segment)
		}
		s.rest = s.buf[:end-p.next]
		p.queue = append(p.queue, s)
		p.next = end
		p.run(s)
	}
}

// run fills a segment.
func (p *spread) run(s *segment) {
	s.done, s.err = make(chan struct{}), nil
	p.group.Go(func() {
		defer close(s.done)
		s.err = p.fill(s)
	})
}

func (p *spread) fill(s *segment) error {
	in, err := p.c.openSpan(p.ctx, p.req, s.part, p.v, p.lines)
	if err != nil {
		return err
	}
	defer in.close() //nolint:errcheck // it has none
	if in.Offset != s.part.From {
		return errRange // the whole file, from its beginning
	}
	if _, err := io.ReadFull(&tally{in.read, &p.arrived}, s.rest); err != nil {
		return err
	}
	var end [1]byte
	_, err = in.read.Read(end[:]) // the end of the answer has to be seen before the connection can be used again
	if err == io.EOF {
		err = nil
	}
	return err
}

// tally counts what is read.
type tally struct {
	r io.Reader
	n *atomic.Int64
}

func (t *tally) Read(b []byte) (int, error) {
	n, err := t.r.Read(b)
	t.n.Add(int64(n))
	return n, err
}

var errRange = &Error{Code: "bad_resume", Class: Permanent, Message: "The server does not resume correctly."}

// refusal tells whether a server may have failed a range because it was one of several.
func refusal(err error) bool {
	var e *Error
	if !errors.As(classify(err), &e) {
		return false
	}
	return e.Class == Temporary || e.Code == "bad_resume" || e.Code == "range"
}

// breather is how long a server that refused has to forget the connections that are gone. One that wants more than
// most gets it before the next attempt, where everybody can see why.
const breather, most = time.Second, 10 * time.Second

// alone is the answer to a refusal: what was refused is asked for again, one at a time, with nothing else under way.
func (p *spread) alone(refused error) error {
	p.lanes, p.meter.settled = 1, true
	for _, s := range p.queue {
		<-s.done
	}
	if e := (*Error)(nil); errors.As(refused, &e) && strings.HasPrefix(e.Code, "http_") {
		pause := max(e.RetryAfter, breather)
		if pause > most {
			return refused
		}
		select {
		case <-time.After(pause):
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
	}
	for _, s := range p.queue {
		if s.err != nil {
			s.again = true
			p.run(s)
			<-s.done
		}
	}
	return nil
}

// drop gives up what came out of turn: this server is not to be had by pieces.
func (p *spread) drop() {
	for _, s := range p.queue {
		<-s.done
	}
	p.queue, p.free = nil, nil
}

// unite goes on with one connection, to the end.
func (p *spread) unite() error {
	s, err := p.c.openSpan(p.ctx, p.req, span{p.pos, -1}, p.v, p.lines)
	if err != nil {
		return err
	}
	if s.Offset != p.pos {
		_ = s.close()
		return errRange
	}
	p.one = s
	return nil
}

// close ends all connections and waits until they are gone.
func (p *spread) close() error {
	p.cancel()
	if p.one != nil {
		_ = p.one.close()
	}
	p.group.Wait()
	p.lines.close()
	return nil
}

// meter decides how many connections are right. It looks at one window at a time.
type meter struct {
	limits  spreadLimits
	most    int
	now     func() time.Time
	settled bool // nothing more to find out

	start  time.Time
	bytes  int64   // that had arrived then
	last   float64 // the rate of the window before
	before float64 // the rate before the last step
	fresh  bool    // the step was just made: this window is of both sides
}

// look is told how many bytes have arrived so far over lanes connections, and says how many there should be.
func (m *meter) look(arrived int64, lanes int) int {
	if m.settled {
		return lanes
	}
	now := m.now()
	if m.start.IsZero() {
		m.start, m.bytes = now, arrived
	}
	took := now.Sub(m.start)
	if took <= 0 || took < m.limits.window {
		return lanes
	}
	rate := float64(arrived-m.bytes) / took.Seconds()
	m.start, m.bytes = now, arrived
	switch {
	case m.fresh:
		m.fresh = false
		return lanes
	case lanes == 1 && rate >= m.limits.enough:
		m.last = rate // as fast as it gets; but it may slow down later
		return lanes
	case lanes == 1 && rate > m.last*m.limits.growth:
		m.last = rate // still speeding up by itself
		return lanes
	case lanes > 1 && rate < m.before*m.limits.growth:
		m.settled = true
		return max(lanes/2, 2) // two cost nothing, and going back to one would cost a new connection
	case lanes >= m.most:
		m.settled = true
		return lanes
	}
	m.before, m.fresh = rate, true
	return min(2*lanes, m.most)
}
