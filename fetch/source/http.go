package source

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// span is a part of a file: from its byte From to its byte To, or to the end of the file if To is -1.
type span struct{ From, To int64 }

// openHTTP opens the part of the file from offset on, over a connection of its own.
func (c *Client) openHTTP(ctx context.Context, req Request, offset int64, v Validator) (*Stream, error) {
	t, err := newTrust(req)
	if err != nil {
		return nil, err
	}
	s, err := c.openSpan(ctx, req, span{offset, -1}, v, &lines{c: c, t: t, trace: req.Trace})
	if err != nil || !c.spreads(req, s) {
		return s, err
	}
	return c.spread(ctx, req, t, s), nil
}

// openSpan asks for a part of the file and follows redirects itself, because each hop is decided anew: the address, the
// certificate, and whether the credentials may go along.
func (c *Client) openSpan(ctx context.Context, req Request, part span, v Validator, l *lines) (*Stream, error) {
	cred := req.Credentials
	u := req.URL
	for hop := 0; ; hop++ {
		wanted := part
		if req.Unproved && part.From > 0 && Origin(u) != v.Origin {
			// Two servers may give two files one entity tag, and nobody would notice.
			wanted = span{0, -1}
		}
		resp, err := l.get(ctx, u, cred, wanted, v)
		if err != nil {
			return nil, err
		}
		if !isRedirect(resp.StatusCode) {
			s, err := streamHTTP(resp, u, req, wanted, v)
			if err != nil {
				resp.Body.Close()
				return nil, err
			}
			s.TLSVerified = l.t.verified()
			s.close = func() error {
				resp.Body.Close() // what matters was read; a body that is given up half-way has nothing to say
				return nil
			}
			return s, nil
		}
		resp.Body.Close()
		if hop == MaxRedirects {
			return nil, NewError("redirects", fmt.Sprintf("More than %d redirects.", MaxRedirects), nil)
		}
		next, err := redirect(u, resp.Header.Get("Location"))
		if err != nil {
			return nil, err
		}
		if Origin(next) != Origin(u) {
			cred = nil // for good: a later hop back gets none either
		}
		u = next
	}
}

func isRedirect(code int) bool {
	switch code {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirect is where location leads from u, if it may.
func redirect(u *url.URL, location string) (*url.URL, error) {
	if location == "" {
		return nil, NewError("redirect", "The server redirected without saying where.", nil)
	}
	ref, err := url.Parse(location)
	if err != nil {
		return nil, malformed(err)
	}
	next := u.ResolveReference(ref)
	switch {
	case next.Scheme != "http" && next.Scheme != "https":
		return nil, NewError("redirect_scheme", "Redirected to a scheme that is not allowed.", nil)
	case u.Scheme == "https" && next.Scheme == "http":
		return nil, NewError("redirect_downgrade", "Redirected from https to http, which is refused.", nil)
	}
	next, _, err = ParseURL(next.String()) // userinfo that a server put there is not ours to send
	if err != nil {
		return nil, malformed(err)
	}
	return next, nil
}

// lines are the connections of one attempt. Unless they are kept, each is closed with its answer. They are safe for
// concurrent use.
type lines struct {
	c    *Client
	t    *trust
	keep bool
	// trace is for connections that are not kept; nil: nobody asks.
	trace *Trace

	mu   sync.Mutex
	kept map[string]*http.Transport // by origin and whether credentials go there
}

// get sends one request.
func (l *lines) get(ctx context.Context, u *url.URL, cred *Credentials, part span, v Validator) (*http.Response, error) {
	hop := l.trace.begin(u)
	proxy, err := l.c.proxy(u)
	if err != nil {
		return nil, NewError("proxy", "The proxy settings of the agent are not usable for this URL.", err)
	}
	if proxy != nil {
		if err := l.c.checkLiteral(u.Hostname()); err != nil {
			return nil, err
		}
	}
	hop.via(proxy)
	var conn atomic.Pointer[rolling] // behind a proxy the one to it, which may break before there is any other
	ctx = httptrace.WithClientTrace(hop.context(context.WithValue(ctx, dialledKey{}, &conn)), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { conn.Store(raw(i.Conn)) }})
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, malformed(err)
	}
	r.Header.Set("User-Agent", l.c.cfg.UserAgent)
	r.Header.Set("Accept", "*/*")
	r.Header.Set("Accept-Encoding", "identity")
	r.Header.Set("Want-Repr-Digest", wantDigest)
	if cred != nil {
		r.SetBasicAuth(cred.Username, cred.Password)
	}
	if part.From > 0 || part.To >= 0 {
		last := ""
		if part.To >= 0 {
			last = strconv.FormatInt(part.To, 10)
		}
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-%s", part.From, last))
		if v.ETag != "" {
			r.Header.Set("If-Range", v.ETag)
		} else {
			r.Header.Set("If-Range", v.Modified)
		}
	}
	resp, err := l.transport(u, proxy, cred != nil, hop).RoundTrip(r)
	if err != nil {
		return nil, headerCut(conn.Load(), err)
	}
	hop.response(resp)
	return resp, nil
}

// dialledKey is for where to leave the connection that is dialled.
type dialledKey struct{}

// raw is our own connection below all TLS, or nil.
func raw(conn net.Conn) *rolling {
	for {
		switch c := conn.(type) {
		case *rolling:
			return c
		case *tls.Conn:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}

// headerCut gives the reason if err is only because the connection ended within a header: net/http takes half a line for a
// whole one, and calls it malformed.
func headerCut(c *rolling, err error) error {
	if c == nil || c.lost.Load() == nil {
		return err
	}
	text := err.Error()
	_, version, _ := strings.Cut(text, `malformed HTTP response "`)
	version = strings.TrimSuffix(version, `"`)
	if strings.Contains(text, "malformed MIME header") || strings.Contains(text, "malformed HTTP status code") ||
		version != "" && (strings.HasPrefix("HTTP/1.1", version) || strings.HasPrefix("HTTP/1.0", version)) {
		return *c.lost.Load()
	}
	return err
}

func (l *lines) transport(u, proxy *url.URL, credentials bool, hop *tracer) *http.Transport {
	if !l.keep {
		return l.c.transport(u, proxy, credentials, l.t, hop)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	key := fmt.Sprint(Origin(u), credentials)
	tr := l.kept[key]
	if tr == nil {
		tr = l.c.transport(u, proxy, credentials, l.t, nil)
		tr.DisableKeepAlives, tr.MaxIdleConnsPerHost, tr.IdleConnTimeout = false, maxConnections, l.c.cfg.IdleTimeout
		if l.kept == nil {
			l.kept = map[string]*http.Transport{}
		}
		l.kept[key] = tr
	}
	return tr
}

// close ends what is kept.
func (l *lines) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, tr := range l.kept {
		tr.CloseIdleConnections()
	}
}

// proxyAddress is host:port of a proxy.
func proxyAddress(proxy *url.URL) string {
	port := proxy.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "socks5": "1080"}[proxy.Scheme]
	}
	return net.JoinHostPort(proxy.Hostname(), port)
}

// transport speaks HTTP/1.1 only: HTTP/2 is slower for one stream, and after a GOAWAY Go reconnects without pause
// (golang/go#52459).
func (c *Client) transport(u, proxy *url.URL, credentials bool, t *trust, hop *tracer) *http.Transport {
	proxyAddr := ""
	if proxy != nil {
		proxyAddr = proxyAddress(proxy)
	}
	tr := &http.Transport{
		Proxy: func(*http.Request) (*url.URL, error) { return proxy, nil },
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return c.dial(ctx, network, address, address == proxyAddr)
		},
		TLSHandshakeTimeout:    c.cfg.HandshakeTimeout,
		ResponseHeaderTimeout:  c.cfg.HeaderTimeout,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         64 << 10,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		Protocols:              new(http.Protocols),
	}
	tr.Protocols.SetHTTP1(true)
	tr.TLSClientConfig = t.config("", u.Hostname(), credentials, hop)
	tr.TLSClientConfig.NextProtos = []string{"http/1.1"}
	if proxy != nil {
		tr.OnProxyConnectResponse = func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
			return connectError(resp.StatusCode)
		}
	}
	if proxy != nil && proxy.Scheme == "https" { // for the proxy only: the target's TLS is inside
		tr.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			return c.dialProxyTLS(ctx, network, address, proxy.Hostname())
		}
	}
	return tr
}

// connectError is why a proxy opened no tunnel, nil if it did.
func connectError(code int) error {
	says := fmt.Sprintf("The proxy answered %s.", statusText(code))
	switch {
	case code == http.StatusOK:
		return nil
	case code == http.StatusProxyAuthRequired:
		return proxyAuthError()
	case later(code):
		return NewError("proxy_busy", says, nil)
	}
	return NewError("proxy", says, nil)
}

// later tells whether a status is one that may be another the next time.
func later(code int) bool {
	return code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code >= 500
}

func proxyAuthError() *Error {
	return NewError("http_407", "The proxy wants credentials.", nil)
}

// streamHTTP turns an answer that is no redirect into a stream, or says why it is none.
func streamHTTP(resp *http.Response, u *url.URL, req Request, part span, v Validator) (*Stream, error) {
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		if resp.StatusCode == http.StatusUnauthorized && Origin(u) != Origin(req.URL) {
			return nil, NewError("redirect_login", fmt.Sprintf("The server answered %s for %s, to which it was redirected.", statusText(resp.StatusCode), Redact(u)), nil)
		}
		return nil, statusError(resp, u)
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, NewError("encoding", "The server insists on a content encoding, though the image was asked for as it is.", nil)
	}
	if err := checkDigest(resp.Header, req.SHA256); err != nil {
		return nil, err
	}
	s := &Stream{Validator: Validator{ETag: strongETag(resp.Header.Get("ETag")), Modified: modified(resp.Header), Size: resp.ContentLength, Origin: Origin(u)},
		read: resp.Body, Endless: resp.ContentLength < 0 && len(resp.TransferEncoding) == 0, ranges: !strings.EqualFold(resp.Header.Get("Accept-Ranges"), "none")}
	if resp.StatusCode == http.StatusOK {
		return s, nil // also the answer to a Range whose file has changed: the stream starts at 0
	}
	start, end, total, ok := contentRange(resp.Header.Get("Content-Range"))
	switch {
	case part.From == 0 && part.To < 0, !ok, start != part.From,
		v.Size >= 0 && total != v.Size,
		resp.ContentLength >= 0 && resp.ContentLength != end-start+1,
		part.To < 0 && end != total-1, part.To >= 0 && end != part.To,
		req.Unproved && s.Validator.ETag == "",
		!v.fits(resp.Header):
		return nil, errBadResume
	}
	s.Offset = part.From
	s.Validator.ETag, s.Validator.Modified, s.Validator.Size = v.ETag, v.Modified, total // of the whole file; a 206 need not repeat them
	return s, nil
}

var errBadResume = NewError("bad_resume", "The server does not resume correctly.", nil)

// fits tells whether nothing in the header of a part speaks against its being of the same file: a server may not know If-Range.
func (v Validator) fits(h http.Header) bool {
	tag, date := h.Get("ETag"), h.Get("Last-Modified")
	if v.ETag != "" && tag != "" {
		return tag == v.ETag
	}
	return date == "" || v.Modified == "" || date == v.Modified
}

func strongETag(tag string) string {
	if len(tag) >= 2 && tag[0] == '"' && tag[len(tag)-1] == '"' {
		return tag
	}
	return "" // absent, weak (W/"…") or malformed
}

// modified is Last-Modified where it proves something: it must be older than the answer by a second, else the
// file may change again within it (RFC 9110, 8.8.2.2).
func modified(h http.Header) string {
	m, err := http.ParseTime(h.Get("Last-Modified"))
	if err != nil {
		return ""
	}
	if d, err := http.ParseTime(h.Get("Date")); err != nil || d.Sub(m) < time.Second {
		return ""
	}
	return h.Get("Last-Modified")
}

// contentRange reads "bytes START-END/TOTAL"; ok is false for anything else, an unknown total too.
func contentRange(s string) (start, end, total int64, ok bool) {
	rest, found := strings.CutPrefix(s, "bytes ")
	span, size, found2 := strings.Cut(rest, "/")
	from, to, found3 := strings.Cut(span, "-")
	if !found || !found2 || !found3 {
		return 0, 0, 0, false
	}
	var n [3]int64
	for i, part := range []string{from, to, size} {
		v, err := strconv.ParseUint(part, 10, 63)
		if err != nil {
			return 0, 0, 0, false
		}
		n[i] = int64(v)
	}
	return n[0], n[1], n[2], n[0] <= n[1] && n[1] < n[2]
}

func statusError(resp *http.Response, u *url.URL) *Error {
	code := resp.StatusCode
	says := fmt.Sprintf("The server answered %s for %s.", statusText(code), Redact(u))
	switch {
	case code == http.StatusProxyAuthRequired:
		return proxyAuthError()
	case code == http.StatusRequestedRangeNotSatisfiable:
		return NewError("range", says, nil)
	case code < 300:
		says = fmt.Sprintf("The server answered %s and no file for %s.", statusText(code), Redact(u))
	}
	e := NewError(fmt.Sprintf("http_%d", code), says, nil)
	if later(code) {
		e.RetryAfter = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	return e
}

// retryAfter reads seconds or a date; garbage and the past are 0, more than ten minutes are ten minutes.
func retryAfter(s string, now time.Time) time.Duration {
	const most = 10 * time.Minute
	var d time.Duration
	if n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 31); err == nil {
		d = time.Duration(n) * time.Second
	} else if errors.Is(err, strconv.ErrRange) {
		d = most
	} else if t, err := http.ParseTime(s); err == nil {
		d = t.Sub(now)
	}
	return min(max(d, 0), most)
}
