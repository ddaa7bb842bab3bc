package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// This file looks at a source without fetching it: it opens it as an attempt does, reads a little, and asks for the end
// of that once more, which is how a download that broke off is continued.

// probeLimits bound one look at one source.
type probeLimits struct {
	whole  time.Duration // the whole look
	sample time.Duration // the reading of the sample
	bytes  int64         // of the sample
	again  int64         // of what is asked for once more
}

var defaultProbeLimits = probeLimits{whole: 30 * time.Second, sample: 2 * time.Second, bytes: 8 << 20, again: 4 << 10}

// notReached is said of a check before there is something to say.
const notReached = "Not looked at."

// errSampled ends the reading of a sample.
var errSampled = errors.New("the sample is long enough")

// Result is how a check came out.
type Result string

// The results. A warning keeps no fetch from succeeding; skipped is what does not apply, or what an earlier failure left no
// way to see.
const (
	OK      Result = "ok"
	Warning Result = "warning"
	Fail    Result = "fail"
	Skipped Result = "skipped"
)

// Check is one thing that was looked at.
type Check struct {
	// Name is stable: one of those of [Client.Probe].
	Name   string
	Result Result
	// Code is stable, and that of the [Error] if there was one; empty unless there is a warning or a failure.
	Code string
	// Message and Remedy are sentences for the admin, as in an Error. A failure and a warning have a Remedy.
	Message, Remedy string
}

// Failure is a check that failed with e. Where the table of faults has only waiting to offer, there is more to say to who
// has not begun yet.
func Failure(name string, e *Error) Check {
	remedy := e.Remedy()
	switch {
	case remedy != "":
	case e.RetryAfter > 0:
		remedy = fmt.Sprintf("Try again in %s.", e.RetryAfter)
	case name == "connect" || name == "tls":
		remedy = "Check host and port of the URL, whether the server runs, and the network of the box."
	default:
		remedy = "Look at the server, and try again later."
	}
	return Check{Name: name, Result: Fail, Code: e.Code, Message: e.Message, Remedy: remedy}
}

// Report is what a look at one source brought.
type Report struct {
	// Checks are in the order of the work.
	Checks []Check
	// Size is the length of the file in bytes, -1 if unknown.
	Size int64
	// Rate is in bytes a second, 0 if it could not be measured.
	Rate int64
}

// Failed tells whether an attempt would fail.
func (r *Report) Failed() bool {
	return slices.ContainsFunc(r.Checks, func(c Check) bool { return c.Result == Fail })
}

// Set puts c in the place of the check of the same name, if there is one.
func (r *Report) Set(c Check) {
	if i := slices.IndexFunc(r.Checks, func(o Check) bool { return o.Name == c.Name }); i >= 0 {
		r.Checks[i] = c
	}
}

// Probe opens req as an attempt would, reads a sample of at most 8 MiB or 2 s, and asks for the end of the sample again,
// with the validator. All of this takes at most 30 s, or until ctx ends.
//
// The checks are proxy, dns, egress, connect, tls, redirects, credentials, answer, clock, digest, size, rate and resume;
// those that its scheme knows nothing of are left out. Without a digest in req it decides as if there were one, which no
// fetch lacks.
func (c *Client) Probe(ctx context.Context, req Request) Report {
	p, stop := c.newProbe(ctx, req, "digest", "size", "rate", "resume")
	defer stop()
	p.req.assumed, p.req.Unproved = true, false
	s := p.open()
	if s == nil {
		return p.report
	}
	p.spread = c.spreads(p.req, s)
	p.length()
	p.sample(s)
	p.close(s)
	p.resume()
	return p.report
}

// ProbeMetalink reads req as a Metalink (RFC 5854) and gives what that lists; nil if it cannot be read. The checks are
// those of Probe up to clock, and metalink.
func (c *Client) ProbeMetalink(ctx context.Context, req Request) (Report, []MetaFile) {
	p, stop := c.newProbe(ctx, req, "metalink")
	defer stop()
	p.req.SHA256 = "" // that is the image's
	s := p.open()
	if s == nil {
		return p.report, nil
	}
	defer p.close(s)
	files, err := ParseMetalink(s)
	if err != nil {
		p.report.Set(Failure("metalink", p.explain(err)))
		return p.report, nil
	}
	p.report.Set(Check{Name: "metalink", Result: OK, Message: fmt.Sprintf("Files that the Metalink lists: %d.", len(files))})
	return p.report, files
}

// probe is one look.
type probe struct {
	c      *Client // with one connection
	spread bool    // the real one would use several
	ctx    context.Context
	cancel context.CancelCauseFunc // of the first stream
	req    Request
	report Report

	v    Validator
	got  int64  // bytes of the sample
	tail []byte // its end
}

// newProbe makes a look with the checks of the way to the file, and more.
func (c *Client) newProbe(ctx context.Context, req Request, more ...string) (*probe, context.CancelFunc) {
	one := *c
	one.cfg.Connections = 1
	req.Trace = new(Trace)
	p := &probe{c: &one, req: req, report: Report{Size: -1}}
	for _, name := range slices.Concat(wayChecks[req.URL.Scheme], more) {
		if name != "digest" || isHTTP(req.URL) {
			p.report.Checks = append(p.report.Checks, Check{Name: name, Result: Skipped, Message: notReached})
		}
	}
	var stop context.CancelFunc
	p.ctx, stop = context.WithTimeoutCause(ctx, c.probe.whole,
		NewError("stalled", fmt.Sprintf("The server took longer than %s.", c.probe.whole), nil))
	return p, stop
}

// open is nil if there is nothing to read; then the report says why.
func (p *probe) open() *Stream {
	var ctx context.Context
	ctx, p.cancel = context.WithCancelCause(p.ctx)
	s, err := p.c.Open(ctx, p.req, 0, Validator{})
	p.way(err == nil)
	if err != nil {
		p.cancel(nil)
		e := p.explain(err)
		p.report.Set(Failure(p.stage(e), e))
		return nil
	}
	p.v = s.Validator
	return s
}

func (p *probe) close(s *Stream) {
	p.cancel(errSampled)
	_ = s.Close() // what matters was read
}

// explain makes an Error of whatever ended a look.
func (p *probe) explain(err error) *Error {
	var e *Error
	if errors.As(err, &e) || errors.As(classify(err), &e) {
		return e
	}
	return NewError("broken", "The look was interrupted.", err) // by who asked for it
}

// sample reads the beginning of the file for the rate. What comes with the first read does not count: it was on its way
// before the clock ran.
func (p *probe) sample(s *Stream) {
	limit := p.c.probe
	timer := time.AfterFunc(limit.sample, func() { p.cancel(errSampled) })
	defer timer.Stop()
	buf := make([]byte, 64<<10)
	var began time.Time
	var first int64
	var err error
	for err == nil && p.got < limit.bytes {
		var n int
		n, err = s.Read(buf[:min(int64(len(buf)), limit.bytes-p.got)])
		if n > 0 && began.IsZero() {
			began, first = time.Now(), int64(n)
			if LooksLikeHTML(buf[:n]) {
				p.report.Set(Check{Name: "answer", Result: Warning, Code: "html", Message: "The answer looks like an HTML page.",
					Remedy: "Check the URL, and whether a login page is in the way."})
			}
		}
		p.got += int64(n)
		p.keep(buf[:n])
	}
	p.rate(err, p.got-first, time.Since(began))
}

// keep remembers the end of the sample.
func (p *probe) keep(b []byte) {
	again := int(p.c.probe.again)
	p.tail = append(p.tail, b[max(0, len(b)-again):]...)
	p.tail = p.tail[max(0, len(p.tail)-again):]
}

// rate judges a sample that ended with err and had n bytes in d.
func (p *probe) rate(err error, n int64, d time.Duration) {
	c := Check{Name: "rate", Result: OK}
	stalled := errors.Is(err, errSampled)
	switch {
	case err != nil && err != io.EOF && !stalled:
		c = Failure(c.Name, p.explain(err))
	case n == 0 && stalled:
		c = Check{Name: c.Name, Result: Warning, Code: "stalled", Remedy: "Look at the server; a fetch waits for it, up to fetch.idle_timeout.",
			Message: fmt.Sprintf("The server sent %d bytes and then nothing for %s.", p.got, p.c.probe.sample)}
	case n == 0 || d <= 0:
		c.Result, c.Message = Skipped, "The file is too small to measure the rate."
	default:
		p.report.Rate = int64(float64(n) / d.Seconds())
		c.Message = fmt.Sprintf("%d bytes a second, over the first %d bytes.", p.report.Rate, p.got)
		if p.report.Rate < p.c.cfg.LowSpeedLimit {
			c.Result, c.Code = Warning, "low_speed"
			c.Remedy = fmt.Sprintf("Take a faster server: a transfer below %d bytes a second is ended after %s.", p.c.cfg.LowSpeedLimit, p.c.cfg.LowSpeedTime)
		}
	}
	p.report.Set(c)
}

// resume asks for the end of the sample once more, as a download does that goes on where another broke off, and compares.
func (p *probe) resume() {
	const fresh = "A connection that breaks will start from the beginning; prefer a server that resumes."
	again := min(int64(len(p.tail)), p.got/2)
	from, want := p.got-again, p.tail[int64(len(p.tail))-again:]
	c := Check{Name: "resume", Result: Warning, Remedy: fresh}
	switch {
	case p.report.Failed():
		return
	case again == 0:
		c = Check{Name: c.Name, Result: Skipped, Message: "There is too little of the file to ask for a part of it."}
	case !p.v.Resumable():
		c.Code, c.Message = "no_validator", "The server gives nothing to prove later that the file is the same, so a download is never resumed: "+
			"no strong ETag, no Last-Modified with a length, no MDTM with SIZE."
	default:
		got, at, err := p.again(from, again)
		switch {
		case err != nil:
			e := p.explain(err)
			c.Code, c.Message = e.Code, "A part of the file could not be had: "+e.Message
		case at == 0:
			c.Code, c.Message = "no_ranges", "The server does not resume: asked for a part of the file, it sends the whole."
		case !bytes.Equal(got, want):
			c.Code, c.Message = "bad_resume", "The server does not resume correctly: asked for a part of the file, it sends another one."
			if p.spread { // which needs no broken connection for it
				c.Result, c.Remedy = Fail, "Take another server, or set fetch.connections to 1 in the agent's configuration."
			}
		default:
			c = Check{Name: c.Name, Result: OK, Message: "The server resumes."}
		}
	}
	p.report.Set(c)
}

// again reads n bytes from offset from; at is where the server begins, which may be 0.
func (p *probe) again(from, n int64) (b []byte, at int64, err error) {
	defer func() {
		if err != nil && p.ctx.Err() != nil {
			err = context.Cause(p.ctx)
		}
	}()
	defer caught(&err)
	req := p.req
	req.Trace = nil
	var s *Stream
	switch req.URL.Scheme {
	case "ftp", "ftps":
		s, err = p.c.openFTP(p.ctx, req, from, p.v)
	case "file":
		s, err = p.c.openFile(req.URL, from, p.v)
	default:
		var t *trust
		if t, err = newTrust(req); err == nil {
			s, err = p.c.openSpan(p.ctx, req, span{from, from + n - 1}, p.v, &lines{c: p.c, t: t})
		}
	}
	if err != nil {
		return nil, 0, err
	}
	defer s.close() //nolint:errcheck // what matters was read
	if s.Offset != from {
		return nil, 0, nil
	}
	b = make([]byte, n)
	_, err = io.ReadFull(s.read, b)
	return b, s.Offset, err
}
