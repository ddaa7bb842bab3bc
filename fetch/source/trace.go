package source

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"time"
)

// Trace is what an attempt did before its first byte. Whoever wants to know puts one into the [Request] of one
// [Client.Open], which fills it while it works; file URLs leave it empty. It is safe for concurrent use.
//
// Of a download that uses several connections only the first is traced; the others are counted.
type Trace struct {
	mu          sync.Mutex
	hops        []*tracer
	connections int
}

// Hop is one server that was asked. A duration of 0 is of something that was not needed or did not come to its end.
type Hop struct {
	// URL is redacted.
	URL string
	// Began is when the hop did.
	Began time.Time
	// Proxy is host:port of the proxy that was asked for it; empty: none.
	Proxy string
	// Address is what it is, or was last, connected to (the proxy, if there is one), as ip:port; empty before that.
	Address string
	// DNS is how long the name took to be resolved, Connect the TCP connect, TLS the handshake (begun at its first byte).
	DNS, Connect, TLS time.Duration
	// FirstByte is from when the connection could be used to the first byte of the answer. For FTP it is from the connect
	// to the answer to RETR, and so includes the login.
	FirstByte time.Duration
	// State is nil without TLS, or before the server's certificate was seen. A proxy's own TLS is not meant.
	State *tls.ConnectionState
	// Verified tells whether the chain in State did; Reason is why not, as a part of a sentence.
	Verified bool
	Reason   string
	// Status is the HTTP status; 0 before the answer, and for FTP.
	Status int
	// Header is what an HTTP server said.
	Header Header
}

// Header is what matters later of the header of an answer, as it came.
type Header struct {
	Date, AcceptRanges            string
	ReprDigest, Digest, XChecksum string // Repr-Digest, Digest, X-Checksum-Sha256
	// SHA256 is what these announce together, in lower-case hex; empty if nothing that can be understood.
	SHA256 string
	// Length is Content-Length, of this answer: -1 if unknown.
	Length int64
}

// Hops gives the servers asked so far, in order.
func (t *Trace) Hops() []Hop {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	hops := make([]Hop, len(t.hops))
	for i, h := range t.hops {
		hops[i] = h.hop
	}
	return hops
}

// Connections is how many a download used at most at a time.
func (t *Trace) Connections() int {
	if t == nil {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.connections
}

// used notes that there are n connections. A nil Trace takes no notice.
func (t *Trace) used(n int) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.connections = max(t.connections, n)
}

// begin adds a hop. A nil Trace gives a nil tracer.
func (t *Trace) begin(u *url.URL) *tracer {
	if t == nil {
		return nil
	}
	h := &tracer{trace: t, hop: Hop{URL: Redact(u), Began: time.Now(), Header: Header{Length: -1}}}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hops = append(t.hops, h)
	return h
}

// tracer writes one hop. Its methods do nothing if it is nil; net/http may call them when the answer is long there.
type tracer struct {
	trace *Trace

	hop        Hop // like all below guarded by trace.mu
	resolving  time.Time
	connecting time.Time
	shaking    time.Time
	ready      time.Time
	connected  bool
}

// note calls f under the lock, with the time.
func (h *tracer) note(f func(now time.Time)) {
	if h == nil {
		return
	}
	h.trace.mu.Lock()
	defer h.trace.mu.Unlock()
	f(time.Now())
}

// context is ctx for dialling and asking.
func (h *tracer) context(ctx context.Context) context.Context {
	if h == nil {
		return ctx
	}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) { h.note(func(now time.Time) { h.resolving = now }) },
		DNSDone:  func(httptrace.DNSDoneInfo) { h.note(func(now time.Time) { h.hop.DNS = now.Sub(h.resolving) }) },
		ConnectStart: func(_, address string) {
			h.note(func(now time.Time) {
				if h.connecting.IsZero() { // there may be several at a time, one for each address
					h.connecting = now
				}
				if !h.connected {
					h.hop.Address = address
				}
			})
		},
		ConnectDone: func(_, address string, err error) {
			h.note(func(now time.Time) {
				if h.connected {
					return
				}
				h.hop.Address = address
				if err == nil {
					h.hop.Connect, h.ready, h.connected = now.Sub(h.connecting), now, true
					h.trace.connections = max(h.trace.connections, 1)
				}
			})
		},
		TLSHandshakeStart:    h.shake,
		TLSHandshakeDone:     h.shaken,
		GotConn:              func(httptrace.GotConnInfo) { h.note(func(now time.Time) { h.ready = now }) },
		GotFirstResponseByte: h.answered,
	})
}

// via notes the proxy.
func (h *tracer) via(proxy *url.URL) {
	if proxy != nil {
		h.note(func(time.Time) { h.hop.Proxy = proxyAddress(proxy) })
	}
}

// shake begins the handshake. That of a proxy comes before that of the server.
func (h *tracer) shake() { h.note(func(now time.Time) { h.shaking = now }) }

func (h *tracer) shaken(_ tls.ConnectionState, err error) {
	h.note(func(now time.Time) {
		if err != nil || h.hop.State != nil { // else it was the proxy's
			h.hop.TLS = now.Sub(h.shaking)
		}
	})
}

// certified notes how the server identified itself. For FTPS, where nobody tells the end of the handshake, this is it;
// the data connection, which comes later, does not count.
func (h *tracer) certified(cs tls.ConnectionState, err error) {
	h.note(func(now time.Time) {
		if h.hop.State != nil {
			return
		}
		h.hop.State, h.hop.Verified = &cs, err == nil
		if err != nil {
			h.hop.Reason = certReason(err)
		}
		if !h.shaking.IsZero() {
			h.hop.TLS = now.Sub(h.shaking)
		}
	})
}

// answered notes the first byte of the answer.
func (h *tracer) answered() {
	h.note(func(now time.Time) { h.hop.FirstByte = now.Sub(h.ready) })
}

func (h *tracer) response(r *http.Response) {
	h.note(func(time.Time) {
		h.hop.Status = r.StatusCode
		h.hop.Header = Header{
			Date: r.Header.Get("Date"), AcceptRanges: r.Header.Get("Accept-Ranges"),
			ReprDigest: r.Header.Get("Repr-Digest"), Digest: r.Header.Get("Digest"), XChecksum: r.Header.Get("X-Checksum-Sha256"),
			SHA256: announcedSHA256(r.Header), Length: r.ContentLength,
		}
	})
}

// handshake watches a control connection for the first byte of TLS, with which no FTP command begins.
type handshake struct {
	net.Conn
	h    *tracer
	seen bool
}

func (c *handshake) Write(p []byte) (int, error) {
	const record = 22 // RFC 8446, 5.1
	if !c.seen && len(p) > 0 && p[0] == record {
		c.seen = true
		c.h.shake()
	}
	return c.Conn.Write(p)
}
