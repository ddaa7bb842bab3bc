package source

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/jlaffaye/ftp"
)

// maxReply bounds what an FTP server may say on the control connection before we speak again.
const maxReply = 64 << 10

// openFTP logs in and opens the file. ftps on port 990 is implicit TLS, on any other port explicit (AUTH TLS).
func (c *Client) openFTP(ctx context.Context, req Request, offset int64, v Validator) (_ *Stream, err error) {
	name, err := ftpPath(req.URL)
	if err != nil {
		return nil, err
	}
	t, err := newTrust(req)
	if err != nil {
		return nil, err
	}
	conn, d, err := c.dialFTP(ctx, req, t)
	if err != nil {
		return nil, err
	}
	ok := false
	defer func() {
		if !ok {
			d.release()
			err = d.explain(err)
		}
	}()
	user, password := "anonymous", "anonymous@"
	if req.Credentials != nil {
		user, password = req.Credentials.Username, req.Credentials.Password
	}
	if err := conn.Login(user, password); err != nil {
		return nil, loginError(conn, req.URL.Scheme == "ftps", err)
	}
	got, err := ftpStat(conn, name)
	if err != nil {
		return nil, err
	}
	if offset > 0 && !(got.same(v) && offset < v.Size) {
		offset = 0
	}
	resp, offset, err := ftpRetrieve(conn, name, offset)
	if err == nil || !unusable(err) {
		d.hop.answered()
	}
	if err != nil {
		return nil, err
	}
	ok = true
	d.clock.Stop()
	body := &ftpBody{resp: resp, d: d, left: -1}
	if got.Size >= 0 {
		body.left = got.Size - offset
	}
	return &Stream{Offset: offset, Validator: got, TLSVerified: t.verified(), read: body, close: body.Close}, nil
}

// ftpRetrieve starts the transfer. A server that refuses REST gets asked for the whole file.
func ftpRetrieve(conn *ftp.ServerConn, name string, offset int64) (*ftp.Response, int64, error) {
	resp, err := conn.RetrFrom(name, uint64(offset))
	var reply *textproto.Error
	if offset > 0 && errors.As(err, &reply) && reply.Code >= 500 && reply.Code != ftp.StatusFileUnavailable {
		offset = 0
		resp, err = conn.RetrFrom(name, 0)
	}
	return resp, offset, err
}

// ftpStat asks for size and time; a server need know neither.
func ftpStat(conn *ftp.ServerConn, name string) (Validator, error) {
	v := Validator{Size: -1}
	size, err := conn.FileSize(name)
	switch {
	case err == nil && size >= 0:
		v.Size = size
	case err != nil && unusable(err):
		return v, err
	case err != nil:
		if e, err := conn.GetEntry(name); err == nil && e.Type == ftp.EntryTypeFile && e.Size > 0 {
			v.Size = int64(e.Size)
		} else if err != nil && unusable(err) {
			return v, err
		}
	}
	if conn.IsGetTimeSupported() {
		m, err := conn.GetTime(name)
		if err == nil {
			v.Modified = m.UTC().Format(time.RFC3339)
		} else if unusable(err) {
			return v, err
		}
	}
	return v, nil
}

// unusable tells whether the connection is lost, or out of step, after err. Else the server has answered, if only no
// or nonsense.
func unusable(err error) bool {
	var own *Error
	var protocol textproto.ProtocolError
	return errors.As(err, &own) || errors.As(err, &protocol) || classifyTLS(err) != nil || classifyNet(err) != nil
}

// ftpPath is the name to ask for: RFC 1738 puts it relative to the login directory, so the first slash only
// separates; %2F at the start makes it absolute.
func ftpPath(u *url.URL) (string, error) {
	name := strings.TrimPrefix(u.Path, "/")
	if i := strings.LastIndex(name, ";type="); i >= 0 {
		if t := name[i+len(";type="):]; t != "i" && t != "I" {
			return "", NewError("ftp_type", "Images are fetched in binary: leave out ;type= or use ;type=i.", nil)
		}
		name = name[:i]
	}
	if name == "" || strings.HasSuffix(name, "/") {
		return "", NewError("no_file", "The URL names no file.", nil)
	}
	return name, nil
}

// dialFTP connects. All sockets are opened by our own function: the library's ways of dialling ignore the context
// after the connect, know no idle limit, and leave the data connections of FTPS in the clear (jlaffaye/ftp#256,
// #425). Closing every socket is also how a transfer is cancelled.
func (c *Client) dialFTP(ctx context.Context, req Request, t *trust) (*ftp.ServerConn, *ftpDialer, error) {
	u := req.URL
	port := u.Port()
	if port == "" {
		port = map[string]string{"ftp": "21", "ftps": "990"}[u.Scheme]
	}
	implicit := u.Scheme == "ftps" && port == "990"
	d := &ftpDialer{c: c, ctx: ctx, wrapControl: implicit, wrapData: u.Scheme == "ftps", hop: req.Trace.begin(u)}
	d.tls = t.config(u.Hostname(), u.Hostname(), req.Credentials != nil, d.hop)
	// Servers demand that the data connection resumes the control connection's TLS session; a cache of its own
	// for each control connection keeps sessions apart (jlaffaye/ftp#342).
	d.tls.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	d.stop = context.AfterFunc(ctx, d.closeAll)
	d.clock = time.AfterFunc(c.cfg.LowSpeedTime, d.tooSlow)

	opts := []ftp.DialOption{ftp.DialWithDialFunc(d.dial)}
	switch {
	case implicit:
		opts = append(opts, ftp.DialWithTLS(d.tls))
	case u.Scheme == "ftps":
		opts = append(opts, ftp.DialWithExplicitTLS(d.tls))
	}
	conn, err := ftp.Dial(net.JoinHostPort(u.Hostname(), port), opts...)
	if err != nil {
		d.release()
		var reply *textproto.Error
		if u.Scheme == "ftps" && errors.As(err, &reply) && reply.Code >= 500 {
			err = NewError("ftp_tls", "The FTP server offers no TLS.", err)
		}
		return nil, nil, d.explain(err)
	}
	return conn, d, nil
}

// ftpDialer opens the control connection first, then data connections to the same address only.
type ftpDialer struct {
	c                     *Client
	ctx                   context.Context
	tls                   *tls.Config
	wrapControl, wrapData bool
	hop                   *tracer
	stop                  func() bool // takes back what ctx would do
	// clock runs while we wait for replies: the idle limit does not end a server that says a little all the time.
	clock *time.Timer

	mu           sync.Mutex
	conns        []net.Conn // raw sockets: closing a TLS wrapper would first want to say goodbye
	host         string
	control      *boundedReplies
	closed, slow bool
}

// release closes all and stops waiting for the context.
func (d *ftpDialer) release() {
	d.stop()
	d.clock.Stop()
	d.closeAll()
}

func (d *ftpDialer) tooSlow() {
	d.mu.Lock()
	d.slow = true
	d.mu.Unlock()
	d.closeAll()
}

// explain gives the cause of err where err is only its consequence.
func (d *ftpDialer) explain(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var protocol textproto.ProtocolError
	switch {
	case err == nil:
		return nil
	case d.slow:
		return NewError("stalled", "The server sent no data in time.", err)
	case errors.As(err, &protocol) && d.control != nil && d.control.lost() != nil:
		return fmt.Errorf("%w: %w", d.control.lost(), err) // half a line
	}
	return err
}

func (d *ftpDialer) dial(network, address string) (net.Conn, error) {
	d.mu.Lock()
	data := d.host != ""
	d.mu.Unlock()
	ctx := d.hop.context(d.ctx)
	if data {
		ctx = d.ctx
		if err := dataPort(address); err != nil {
			return nil, err
		}
	}
	raw, err := d.c.dial(ctx, network, address, false)
	if err != nil {
		return nil, err
	}
	ip, _, err := net.SplitHostPort(raw.RemoteAddr().String())
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil || d.closed || d.host != "" && ip != d.host {
		raw.Close()
		return nil, NewError("ftp_data", "The FTP server named another host for the data connection, which is refused.", nil)
	}
	d.conns = append(d.conns, raw)
	conn, wrap := raw, d.wrapData
	if d.host == "" {
		d.host, wrap = ip, d.wrapControl
		d.control = &boundedReplies{Conn: &handshake{Conn: raw, h: d.hop}}
		conn = d.control
	}
	if wrap {
		// No handshake here: some servers begin theirs only after they have answered the command.
		conn = tls.Client(conn, d.tls)
	}
	return conn, nil
}

func (d *ftpDialer) closeAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for _, c := range d.conns {
		c.Close()
	}
}

// dataPort refuses ports where other services listen: a server must not make us talk to those.
func dataPort(address string) error {
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		return malformed(err)
	}
	n, err := net.LookupPort("tcp", p)
	if err != nil {
		return malformed(err)
	}
	if n < 1024 {
		return NewError("ftp_data_port", fmt.Sprintf("The FTP server named data port %d, which is not allowed.", n), nil)
	}
	return nil
}

// boundedReplies ends a control connection that says too much between two commands.
type boundedReplies struct {
	net.Conn

	mu    sync.Mutex
	read  int
	ended error
}

// lost is what the first Read that failed said, nil if none has.
func (b *boundedReplies) lost() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ended
}

func (b *boundedReplies) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	b.mu.Lock()
	b.read += n
	if b.ended == nil {
		b.ended = err
	}
	over := b.read > maxReply
	b.mu.Unlock()
	if over {
		b.Conn.Close()
		return 0, malformed(errors.New("reply too long"))
	}
	return n, err
}

func (b *boundedReplies) Write(p []byte) (int, error) {
	b.mu.Lock()
	b.read = 0
	b.mu.Unlock()
	return b.Conn.Write(p)
}

// ftpBody reads the data connection. Bytes beyond the announced size are an error: that is how a REST that was
// accepted but ignored shows itself.
type ftpBody struct {
	resp   *ftp.Response
	d      *ftpDialer
	left   int64 // -1: unknown
	eof    bool  // the data connection came to its end
	closed bool
}

func (b *ftpBody) Read(p []byte) (int, error) {
	n, err := b.resp.Read(p)
	if b.left >= 0 {
		if int64(n) > b.left {
			return 0, NewError("bad_resume", "The FTP server sent more than it announced.", nil)
		}
		b.left -= int64(n)
	}
	b.eof = b.eof || err == io.EOF
	if err == io.EOF && b.left > 0 {
		// The reason, if the server gives one, comes on the control connection.
		if cerr := b.Close(); cerr != nil {
			return n, cerr
		}
		return n, io.ErrUnexpectedEOF
	}
	return n, err
}

// Close takes the server's verdict on the transfer if the data came to its end, and drops the connection: after
// a transfer, and all the more after an abort, it is never used again.
func (b *ftpBody) Close() error {
	defer b.d.release()
	if !b.eof || b.closed {
		return nil
	}
	b.closed = true
	b.d.clock.Reset(b.d.c.cfg.LowSpeedTime)
	return b.d.explain(b.resp.Close())
}

// loginError finds out which of the commands of a login was refused.
func loginError(conn *ftp.ServerConn, secure bool, err error) error {
	var reply *textproto.Error
	switch {
	case unusable(err), errors.As(err, &reply) && reply.Code < 500:
		return err
	case reply == nil:
		// Of a refused USER the library gives only the text. A server that is too busy (421) hangs up after it, one
		// that does not want this user listens on.
		if e := conn.NoOp(); e != nil && unusable(e) {
			return e
		}
		fallthrough
	case reply.Code == ftp.StatusNotLoggedIn:
		return NewError("ftp_login", "The FTP server refused the login.", err)
	case secure: // a login fails with 530, so this was PBSZ or PROT
		return NewError("ftp_prot", "The FTP server refuses to protect data connections (PROT P).", err)
	}
	return NewError("ftp_login", fmt.Sprintf("The FTP server refused the login with %d.", reply.Code), err)
}

// ftpReply maps a reply code; the server's text is not shown, it may hold anything.
func ftpReply(reply *textproto.Error) *Error {
	says := fmt.Sprintf("The FTP server answered %d.", reply.Code)
	switch {
	case reply.Code == ftp.StatusFileUnavailable, reply.Code == ftp.StatusBadFileName:
		says = fmt.Sprintf("The FTP server has no such file (%d).", reply.Code)
	case reply.Code == ftp.StatusNotLoggedIn:
		says = "The FTP server refused the login."
	case reply.Code == 522 || reply.Code == ftp.StatusCanNotOpenDataConnection && strings.Contains(reply.Msg, "permitted"):
		return NewError("ftp_data_tls", fmt.Sprintf("The FTP server refused the TLS data connection (%d).", reply.Code), reply)
	case reply.Code >= 400 && reply.Code < 500:
		says = fmt.Sprintf("The FTP server answered %d and may work later.", reply.Code)
	}
	return NewError(fmt.Sprintf("ftp_%d", reply.Code), says, reply)
}
