// Package source opens images where they are: http, https, ftp, ftps and file.
//
// It is the only package that dials out. [Client.Open] starts one attempt and hands back a [Stream] that knows
// its size and its [Validator]; everything that is decided on the way lives here: which addresses may be dialled
// (egress.go), which certificates count (tls.go), which redirects are followed and what they take along
// (http.go), and what of a URL may be shown (redact.go). Every failure is an [*Error] that says whether trying
// again can help.
//
// The package imports nothing of ours and writes no logs.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// MaxRedirects is how many redirects one attempt follows.
const MaxRedirects = 5

// Config says how to reach sources. The zero value works: no proxy, no file roots, default egress policy.
type Config struct {
	// Egress decides which addresses may be dialled.
	Egress Egress
	// FileRoots are absolute directories below which file URLs may be opened. Empty: file URLs are refused.
	FileRoots []string
	// Proxy is for http and https; FTP always goes direct. Nil: none.
	Proxy *httpproxy.Config
	// UserAgent is sent to HTTP servers.
	UserAgent string

	// ConnectTimeout bounds one TCP connect (default 10 s), HandshakeTimeout one TLS handshake (15 s),
	// HeaderTimeout the wait for a complete response header (30 s).
	ConnectTimeout, HandshakeTimeout, HeaderTimeout time.Duration
	// IdleTimeout is the stall limit: an attempt without a byte for this long ends (default 60 s).
	IdleTimeout time.Duration
	// LowSpeedLimit (bytes a second, default 1024) over LowSpeedTime (default 120 s) is the slowest transfer
	// that still counts as one. A negative limit switches it off.
	LowSpeedLimit int64
	LowSpeedTime  time.Duration

	// MaxSize is the largest file that is read, in bytes; 0: any.
	MaxSize int64

	// Connections is how many a large HTTP download may use at a time, at most 16: 1 is never more than one, 0 begins with one
	// and adds more, up to 8, while that makes it faster.
	Connections int
}

// Credentials authenticate to one origin.
type Credentials struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// Request names an image and how far its server is trusted.
type Request struct {
	// URL has no userinfo; ParseURL takes it off.
	URL *url.URL
	// Credentials go to the origin (scheme, host and port) of URL and nowhere else. Nil: none.
	Credentials *Credentials
	// Verify is the policy for certificates that do not verify.
	Verify Verify
	// CA holds PEM certificates that replace the system's roots. It implies VerifyAlways.
	CA []byte
	// SHA256 is the digest, in lower-case hex, that the caller will compare. A server that announces another one is
	// refused before the body moves. Without one (empty), VerifyAuto accepts no unverified server.
	SHA256 string
	// Signed says that the caller will verify a signature over the content, which for VerifyAuto is as good as a digest.
	Signed bool `json:"-"`
	// Unproved says that nobody will prove that the parts of the file belong together: only a strong entity tag lets it come in
	// parts. A date with a size, which is good enough where a digest has the last word, is the same after some changes.
	Unproved bool `json:"-"`
	// Trace, if not nil, is told what the attempt does before its first byte.
	Trace *Trace `json:"-"`

	assumed bool // that there will be a digest, though SHA256 is empty
}

// Validator is what a server gave to prove, later, that a file is still the same one.
type Validator struct {
	// ETag is a strong entity tag with its quotes, or empty.
	ETag string `json:"etag,omitempty"`
	// Modified is Last-Modified (HTTP), MDTM (FTP), or inode and modification time (file); empty if unknown.
	Modified string `json:"modified,omitempty"`
	// Size is the length of the whole file in bytes, -1 if unknown.
	Size int64 `json:"size"`
	// Origin is where it was served in the end, behind redirects (HTTP).
	Origin string `json:"origin,omitempty"`
}

// Resumable tells whether the validator can prove that a partial belongs to the file that is served later.
func (v Validator) Resumable() bool {
	return v.ETag != "" || v.Modified != "" && v.Size >= 0
}

// May tells whether a file with this validator may come in parts, by what req wants of it.
func (v Validator) May(req Request) bool {
	return v.Resumable() && (v.ETag != "" || !req.Unproved)
}

// same tells whether two validators certainly describe the same file.
func (v Validator) same(w Validator) bool {
	if v.Size >= 0 && w.Size >= 0 && v.Size != w.Size {
		return false
	}
	if v.ETag != "" || w.ETag != "" {
		return v.ETag == w.ETag
	}
	return v.Modified != "" && v.Modified == w.Modified && v.Size == w.Size && v.Size >= 0
}

// Stream is an opened source. It must be closed; for FTP the error of Close tells whether the server thinks that
// the transfer was complete. It is used by one goroutine; only the context given to Open stops a blocked Read.
type Stream struct {
	// Offset is where in the file the first byte read lies: the offset asked for, or 0 when the source could
	// not prove that the file is the same or does not resume.
	Offset int64
	// Validator describes the file being read. Its Size includes what lies before Offset.
	Validator Validator
	// TLSVerified is nil without TLS, else whether every server on the way verified.
	TLSVerified *bool
	// Endless tells that neither a length nor a last chunk says where the file ends, so that a connection that breaks looks like
	// the end.
	Endless bool

	read  io.Reader
	begun bool // a byte was read
	close func() error
	wrap  func(error) error
	ended func() error

	ranges bool // it is not known that the server refuses ranges
}

// Read reads image bytes. Its errors are io.EOF, an [*Error], or the cause of the context when that is done.
func (s *Stream) Read(p []byte) (n int, err error) {
	defer caught(&err)
	if err := s.ended(); err != nil { // a file, or a full buffer, would not notice
		return 0, s.wrap(err)
	}
	n, err = s.read.Read(p)
	if err != nil && err != io.EOF {
		err = s.wrap(err)
	}
	s.begun = s.begun || n > 0
	return n, err
}

// Close ends the transfer and the connection. Its error is nil or an [*Error].
func (s *Stream) Close() (err error) {
	defer caught(&err)
	if err := s.close(); err != nil {
		return s.wrap(err)
	}
	return nil
}

// Client opens sources. It is safe for concurrent use; it holds no connections between attempts.
type Client struct {
	cfg   Config
	proxy func(*url.URL) (*url.URL, error)
	limit spreadLimits
	probe probeLimits
}

// New checks cfg and fills in its defaults.
func New(cfg Config) (*Client, error) {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&cfg.ConnectTimeout, 10*time.Second)
	def(&cfg.HandshakeTimeout, 15*time.Second)
	def(&cfg.HeaderTimeout, 30*time.Second)
	def(&cfg.IdleTimeout, 60*time.Second)
	def(&cfg.LowSpeedTime, 120*time.Second)
	if cfg.LowSpeedLimit == 0 {
		cfg.LowSpeedLimit = 1024
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "slotfetch"
	}
	if cfg.Connections < 0 || cfg.Connections > maxConnections {
		return nil, fmt.Errorf("connections must be between 0 and %d, not %d", maxConnections, cfg.Connections)
	}
	var err1, err2 error
	cfg.Egress.Allow, err1 = plain(cfg.Egress.Allow)
	cfg.Egress.Deny, err2 = plain(cfg.Egress.Deny)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, limit: defaultLimits, probe: defaultProbeLimits, proxy: func(*url.URL) (*url.URL, error) { return nil, nil }}
	if cfg.Proxy != nil {
		for _, raw := range []string{cfg.Proxy.HTTPProxy, cfg.Proxy.HTTPSProxy} {
			if err := checkProxy(raw); err != nil {
				return nil, err
			}
		}
		c.proxy = cfg.Proxy.ProxyFunc()
	}
	return c, nil
}

func checkProxy(raw string) error {
	if raw == "" {
		return nil
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5" {
		return errors.New("a proxy must be a URL such as http://proxy.example.com:3128 (http, https or socks5)")
	}
	return nil
}

// Open starts one attempt to read req from offset. With an offset above 0 it asks the source to continue only
// if the file is still the one that v describes; otherwise the stream starts at 0, in the same attempt where
// the protocol allows. The error is an [*Error], or the cause of ctx when that is done.
func (c *Client) Open(ctx context.Context, req Request, offset int64, v Validator) (s *Stream, err error) {
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}()
	defer caught(&err)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if offset > 0 && !v.May(req) {
		offset = 0
	}
	switch req.URL.Scheme {
	case "http", "https":
		s, err = c.openHTTP(ctx, req, offset, v)
	case "ftp", "ftps":
		s, err = c.openFTP(ctx, req, offset, v)
	case "file":
		s, err = c.openFile(req.URL, offset, v)
	default:
		err = schemeError(req.URL.Scheme)
	}
	if err != nil {
		return nil, classify(err)
	}
	if err := c.bound(s, req.Unproved); err != nil {
		_ = s.close()
		return nil, err
	}
	s.read = &paced{r: s.read, limit: c.cfg.LowSpeedLimit, over: c.cfg.LowSpeedTime, now: time.Now}
	s.ended = ctx.Err
	s.wrap = func(err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if s.begun {
			return classifyRead(err)
		}
		return classify(err) // FTP has a handshake still to come
	}
	return s, nil
}

// bound ends s where the file ends, whatever the server sends, and refuses a file that is too large.
func (c *Client) bound(s *Stream, unproved bool) error {
	size, most := s.Validator.Size, c.cfg.MaxSize
	switch {
	case most > 0 && size > most:
		return tooLarge(size, most)
	case size >= 0:
		s.read = &bounded{r: s.read, left: max(0, size-s.Offset), whole: true, strict: unproved,
			over: NewError("too_long", fmt.Sprintf("Longer than announced: the server sent more than %d bytes.", size), nil)}
	case most > 0:
		s.read = &bounded{r: s.read, left: max(0, most-s.Offset), over: tooLarge(size, most)}
	}
	return nil
}

func tooLarge(size, most int64) *Error {
	has := "more"
	if size >= 0 {
		has = fmt.Sprintf("%d", size)
	}
	return NewError("too_large", fmt.Sprintf("The image has %s bytes; fetch.max_size allows %d.", has, most), nil)
}

// bounded reads left bytes and then the end of r, else over. With whole, an end before is a broken connection; one that
// does not come after them is taken for granted, unless it is strict.
type bounded struct {
	r             io.Reader
	left          int64
	whole, strict bool
	over          *Error
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left == 0 {
		var more [1]byte
		n, err := b.r.Read(more[:])
		if n > 0 {
			return 0, b.over
		}
		if b.whole && !b.strict && err != nil && isTimeout(err) {
			err = io.EOF
		}
		return 0, err
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if err == io.EOF && b.whole && b.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// paced ends a transfer that is too slow to be one. Only the time in which it waits for bytes counts: who reads them may
// take its time.
type paced struct {
	r     io.Reader
	limit int64
	over  time.Duration
	now   func() time.Time

	waited time.Duration
	bytes  int64
}

func (p *paced) Read(b []byte) (int, error) {
	began := p.now()
	n, err := p.r.Read(b)
	p.waited += p.now().Sub(began)
	p.bytes += int64(n)
	if err == nil && p.waited >= p.over {
		if p.limit > 0 && float64(p.bytes) < float64(p.limit)*p.waited.Seconds() {
			return n, NewError("low_speed", fmt.Sprintf("The transfer was slower than %d bytes a second for %s.", p.limit, p.over), nil)
		}
		p.waited, p.bytes = 0, 0
	}
	return n, err
}

// rolling is a connection whose idle clock starts again with each Read and Write.
type rolling struct {
	net.Conn
	idle time.Duration
	lost atomic.Pointer[error] // what the last Read that failed said
}

func (c *rolling) Read(b []byte) (int, error) {
	_ = c.Conn.SetReadDeadline(time.Now().Add(c.idle))
	n, err := c.Conn.Read(b)
	if err != nil {
		lost := err // a variable of its own, which costs nothing where nothing is lost
		c.lost.Store(&lost)
	}
	return n, err
}

func (c *rolling) Write(b []byte) (int, error) {
	_ = c.Conn.SetWriteDeadline(time.Now().Add(c.idle))
	return c.Conn.Write(b)
}

// SetDeadline does nothing: the FTP library would leave a deadline behind that later ends a healthy transfer.
func (c *rolling) SetDeadline(time.Time) error { return nil }

// statusText is like "404 Not Found".
func statusText(code int) string {
	if t := http.StatusText(code); t != "" {
		return fmt.Sprintf("%d %s", code, t)
	}
	return fmt.Sprint(code)
}
