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
// connection; what is read is measured, and as long as more connections bring more bytes, their number doubles. If the
// second brought nothing, there is one again: two would share what there is, and both wait a round trip for each segment. The
// first connection is given up when a range has begun to deliver, not before: a server that refuses ranges, or answers
// but once, costs nothing. The first failure of a range ends the spreading for good: back to one.
//
// When the network breaks on all connections, what came out of turn is lost: one segment less than there are connections.

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
func (c *Client) spreads(req Request, s *Stream) bool {
	return c.cfg.Connections != 1 && s.ranges && s.Validator.May(req) && s.Validator.Size-s.Offset >= c.limit.least
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
	strict bool // stricter with certificates than was asked for

	one   *Stream // a connection to the end of the file; with segments queued, it is read up to the first of them
	pos   int64   // of the next byte to hand on
	lanes int     // connections at most

	queue []*segment // in order
	next  int64      // where the segment after them begins
	tail  *tail      // the connection from there to the end, once it is on its way
	free  [][]byte
	err   error // the last word

	arrived atomic.Int64 // bytes, over all connections
	meter   meter
}

// segment is a part of the file on its way.
type segment struct {
	part  span
	buf   []byte
	have  atomic.Int64  // bytes of buf that have arrived
	more  chan struct{} // holds a token if more have
	given int64         // bytes of buf that are handed on

	running bool // and then cancel and done are of this run
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // of the last run, once that is done
	failed  bool  // there was a failure, when at bytes had arrived
	at      int64
}

// tail is a connection that is opened while the last segments still come.
type tail struct {
	cancel context.CancelFunc
	s      *Stream
	err    error
	done   chan struct{}
}

// spread takes over s.
func (c *Client) spread(ctx context.Context, req Request, t *trust, s *Stream) *Stream {
	ctx, cancel := context.WithCancel(ctx)
	p := &spread{c: c, ctx: ctx, cancel: cancel, req: req, v: s.Validator, one: s, pos: s.Offset, lanes: 1}
	if v := t.verified(); v != nil && *v {
		// What was said of the first connection must hold for all.
		p.strict = t.policy != VerifyAlways
		t = &trust{policy: VerifyAlways, roots: t.roots, digest: t.digest}
	}
	p.lines = &lines{c: c, t: t, keep: true}
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
	var e *Error
	if p.strict && errors.As(err, &e) && e.Code == "certificate" {
		// What was asked for may allow it, which the next attempt finds out, and says.
		err = NewError("certificate_changed", e.Message, e.Err)
	}
	p.err = err
	if lanes := p.meter.look(p.arrived.Load(), p.lanes); err == nil {
		p.lanes = lanes
	}
	if err == nil && p.lanes == 1 && p.meter.alone && p.one == nil && p.tail == nil && p.next < p.v.Size && float64(p.next-p.pos) < p.meter.before {
		p.ahead() // a second before it is needed: a server may not like to wait
	}
	return n, err
}

func (p *spread) read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		p.start()
		if len(p.queue) == 0 {
			if p.pos == p.v.Size {
				return 0, io.EOF
			}
			if p.one == nil {
				if err := p.unite(); err != nil {
					return 0, err
				}
			}
			return p.readOne(b)
		}
		head := p.queue[0]
		if gap := head.part.From - p.pos; p.one != nil && gap > 0 {
			return p.readOne(b[:min(int64(len(b)), gap)])
		}
		if have := head.have.Load(); have > head.given {
			p.leaveOne()
			n := copy(b, head.buf[head.given:have])
			if head.given += int64(n); head.given == int64(len(head.buf)) {
				p.pop()
			}
			return n, nil
		}
		switch {
		case head.running:
			select {
			case <-head.more:
			case <-head.done: // also when the context ends
				head.running = false
			}
		case head.err == nil: // it waited for its turn
			p.run(head)
		default:
			if err := p.refused(head); err != nil {
				return 0, err
			}
		}
	}
}

func (p *spread) readOne(b []byte) (int, error) {
	n, err := p.one.read.Read(b)
	p.arrived.Add(int64(n))
	return n, err
}

// leaveOne gives up the connection to the end, now that the segments have taken over.
func (p *spread) leaveOne() {
	if p.one != nil {
		_ = p.one.close()
		p.one = nil
	}
}

// pop takes the head, which is handed on, off the queue.
func (p *spread) pop() {
	head := p.queue[0]
	p.settle(head)
	p.queue = p.queue[1:]
	if len(p.free)+len(p.queue) < p.lanes {
		p.free = append(p.free, head.buf[:cap(head.buf)])
	}
}

// settle waits until a segment's connection is done.
func (p *spread) settle(s *segment) {
	if s.running {
		<-s.done
		s.running = false
	}
}

// start brings as many segments on their way as there may be connections.
func (p *spread) start() {
	busy := 0
	if p.one != nil {
		busy = 1
		if len(p.queue) == 0 {
			if p.v.Size-p.pos < p.c.limit.least {
				return
			}
			p.next = p.pos + p.c.limit.segment // so long the first connection has a use
		}
	}
	for p.lanes > 1 && busy+len(p.queue) < p.lanes && p.next < p.v.Size {
		end := min(p.next+p.c.limit.segment, p.v.Size)
		s := &segment{part: span{p.next, end - 1}, more: make(chan struct{}, 1)}
		if n := len(p.free); n > 0 {
			s.buf, p.free = p.free[n-1], p.free[:n-1]
		} else {
			s.buf = make([]byte, p.c.limit.segment)
		}
		s.buf = s.buf[:end-p.next]
		p.queue = append(p.queue, s)
		p.next = end
		p.run(s)
	}
}

// run fetches what a segment has not.
func (p *spread) run(s *segment) {
	ctx, cancel := context.WithCancel(p.ctx)
	s.cancel, s.done, s.err, s.running = cancel, make(chan struct{}), nil, true
	p.group.Go(func() {
		defer close(s.done)
		defer cancel()
		s.err = p.fill(ctx, s)
	})
	p.count()
}

// count tells the trace how many connections are at work.
func (p *spread) count() {
	n := 0
	if p.one != nil {
		n = 1
	}
	for _, s := range p.queue {
		select {
		case <-s.done:
		default:
			n++
		}
	}
	p.req.Trace.used(n)
}

func (p *spread) fill(ctx context.Context, s *segment) (err error) {
	defer caught(&err)
	have := s.have.Load()
	part := span{s.part.From + have, s.part.To}
	in, err := p.c.openSpan(ctx, p.req, part, p.v, p.lines)
	if err != nil {
		return err
	}
	defer in.close() //nolint:errcheck // it has none
	if in.Offset != part.From {
		return errBadResume // the whole file, from its beginning
	}
	// Each connection has to be fast enough by itself: the reader only sees the next byte in order.
	r := &paced{r: in.read, limit: p.c.cfg.LowSpeedLimit, over: p.c.cfg.LowSpeedTime, now: time.Now}
	for have < int64(len(s.buf)) && err == nil {
		var n int
		n, err = r.Read(s.buf[have:])
		have += int64(n)
		p.arrived.Add(int64(n))
		s.have.Store(have)
		select {
		case s.more <- struct{}{}:
		default:
		}
	}
	switch {
	case have == int64(len(s.buf)):
		return nil // what more there may be is not looked at
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}

// step is by how many bytes a segment must get further to be asked for again by itself.
const step = 64 << 10

// refused decides what becomes of a download whose next segment failed. It may have been because there were several:
// from now on there is one connection at a time.
func (p *spread) refused(head *segment) error {
	err := classify(head.err)
	var e *Error
	if !errors.As(err, &e) || e.Code == "certificate" && p.one == nil {
		return err
	}
	p.lanes, p.meter.settled, p.meter.alone = 1, true, false
	p.leaveTail()
	if p.one != nil || e.Class != Temporary || head.failed && head.have.Load() < head.at+step {
		p.drop() // this server is not to be had by pieces
		return nil
	}
	head.failed, head.at = true, head.have.Load()
	for _, s := range p.queue { // what they have is kept, the rest comes in their turn
		if s.running {
			s.cancel()
			p.settle(s)
		}
		s.err = nil
	}
	if strings.HasPrefix(e.Code, "http_") {
		pause := max(e.RetryAfter, breather)
		if pause > most {
			return err
		}
		select {
		case <-time.After(pause):
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
	}
	return nil
}

// breather is how long a server that refused has to forget the connections that are gone. One that wants more than
// most gets it before the next attempt, where everybody can see why.
const breather, most = time.Second, 10 * time.Second

// drop gives up what came out of turn.
func (p *spread) drop() {
	for _, s := range p.queue {
		if s.running {
			s.cancel()
			p.settle(s)
		}
	}
	p.queue, p.free = nil, nil
}

// ahead opens the connection for unite.
func (p *spread) ahead() {
	ctx, cancel := context.WithCancel(p.ctx)
	t := &tail{cancel: cancel, done: make(chan struct{})}
	p.tail = t
	from := p.next
	p.group.Go(func() {
		defer close(t.done)
		defer caught(&t.err)
		t.s, t.err = p.c.openSpan(ctx, p.req, span{from, -1}, p.v, p.lines)
	})
}

// leaveTail gives up what ahead began.
func (p *spread) leaveTail() {
	if p.tail == nil {
		return
	}
	p.tail.cancel()
	<-p.tail.done
	if p.tail.s != nil {
		_ = p.tail.s.close()
	}
	p.tail = nil
}

// unite goes on with one connection, to the end.
func (p *spread) unite() error {
	if t := p.tail; t != nil {
		<-t.done
		if t.err == nil && t.s.Offset == p.pos {
			p.one, p.tail = t.s, nil // which ends with the spread's context
			return nil
		}
		p.leaveTail()
	}
	s, err := p.c.openSpan(p.ctx, p.req, span{p.pos, -1}, p.v, p.lines)
	if err != nil {
		return err
	}
	if s.Offset != p.pos {
		_ = s.close()
		return errBadResume
	}
	p.one = s
	return nil
}

// close ends all connections and waits until they are gone.
func (p *spread) close() error {
	p.cancel()
	p.leaveOne()
	p.leaveTail()
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
	alone   bool // and that is that one connection is as fast as two

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
		m.alone = lanes == 2
		return lanes / 2
	case lanes >= m.most:
		m.settled = true
		return lanes
	}
	m.before, m.fresh = rate, true
	return min(2*lanes, m.most)
}
