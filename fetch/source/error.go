package source

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Class says what can help after an error.
type Class int

const (
	// Temporary: the same URL may work later.
	Temporary Class = iota + 1
	// Human: it works once somebody changes something.
	Human
	// Permanent: this server does not deliver this image.
	Permanent
)

// String gives the class as it is on the wire, in logs and in metrics.
func (c Class) String() string {
	switch c {
	case Temporary:
		return "temporary"
	case Human:
		return "human"
	case Permanent:
		return "permanent"
	}
	return fmt.Sprintf("class %d", int(c))
}

// Error is why an attempt failed. [NewError] makes one.
type Error struct {
	// Code is a row of the table in faults.go, or belongs to one of its families.
	Code  string
	Class Class
	// Message is one or two sentences for the admin: what happened. It holds no secret, no Go error chain and no path
	// of the box. What can be done about it is the Remedy.
	Message string
	// RetryAfter is the server's wish, at most ten minutes; 0 if it had none.
	RetryAfter time.Duration
	// Err is the cause, for errors.Is only; it may hold a URL and is never shown.
	Err error
}

// NewError is an Error of the class that the table gives to code.
func NewError(code, message string, cause error) *Error {
	return &Error{Code: code, Class: FaultOf(code).Class, Message: message, Err: cause}
}

// Error is what a user reads: the message, and the remedy where somebody can do something. Of a permanent fault it is
// the message alone: this server does not deliver, and the remedy, to look for another, is advice.
func (e *Error) Error() string {
	if remedy := e.Remedy(); remedy != "" && e.Class != Permanent {
		return e.Message + " " + remedy
	}
	return e.Message
}

// Remedy is what the table says can be done, by the code alone; empty if nothing but waiting helps.
func (e *Error) Remedy() string { return FaultOf(e.Code).Remedy }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

func malformed(err error) *Error {
	return NewError("malformed_answer", "The server sent a malformed answer.", err)
}

// PanicError is the cause of an Error when what reads foreign bytes panicked.
type PanicError struct {
	Stack string
	value any
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// caught, when deferred, makes an error of a panic. The FTP library can panic on a hostile reply (jlaffaye/ftp#451): that
// costs one attempt, not the agent.
func caught(err *error) {
	if p := recover(); p != nil {
		*err = malformed(&PanicError{Stack: string(debug.Stack()), value: p})
	}
}

func schemeError(scheme string) *Error {
	return NewError("scheme", fmt.Sprintf("The scheme %q is not supported: use http, https, ftp, ftps or file.", scheme), nil)
}

// classify turns whatever net, tls, http and ftp return into an Error. The order matters: the more specific
// cause is inside the more general one.
func classify(err error) error {
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	if e := classifyTLS(err); e != nil {
		return e
	}
	var reply *textproto.Error
	if errors.As(err, &reply) {
		return ftpReply(reply)
	}
	if e := classifyNet(err); e != nil {
		return e
	}
	if e := classifyHTTP(err); e != nil {
		return e
	}
	return NewError("connection", "The connection to the server failed.", err)
}

// classifyRead is classify for what ends a transfer that has begun to deliver, when there is no handshake any more that could fail.
func classifyRead(err error) error {
	err = classify(err)
	if e := (*Error)(nil); errors.As(err, &e) && (e.Code == "tls" || e.Code == "no_tls" || e.Code == "tls_version") {
		return NewError("broken", "The connection broke.", e.Err)
	}
	return err
}

func classifyTLS(err error) *Error {
	var record tls.RecordHeaderError
	var alert tls.AlertError
	switch {
	case errors.As(err, &record):
		return NewError("no_tls", "The server does not speak TLS on this port.", err)
	case errors.As(err, &alert) && alert == 120, strings.Contains(err.Error(), "server selected unadvertised ALPN"),
		strings.Contains(err.Error(), "tls: no application protocol"),
		strings.Contains(err.Error(), `malformed HTTP response "\x00\x00`): // a frame
		return NewError("only_http2", "The server speaks only HTTP/2.", err)
	case errors.As(err, &alert) && alert == 70, strings.Contains(err.Error(), "tls: server selected unsupported protocol version"),
		strings.Contains(err.Error(), "tls: protocol version not supported"):
		return NewError("tls_version", "The server offers no TLS newer than 1.1.", err)
	case strings.Contains(err.Error(), "remote error: tls: internal error"):
		return NewError("connection", "The server has trouble with TLS.", err)
	case errors.As(err, &alert), strings.Contains(err.Error(), "remote error: tls:"):
		return NewError("tls", "The server refused the TLS handshake.", err)
	case strings.Contains(err.Error(), "TLS handshake timeout"):
		return NewError("tls_timeout", "The server did not complete the TLS handshake in time.", err)
	}
	return nil
}

func classifyNet(err error) *Error {
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &dns):
		// A name that does not exist today may exist when the resolver is back: temporary (contract section 5.1).
		return NewError("dns", fmt.Sprintf("The name %s could not be resolved.", dns.Name), err)
	case errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err):
		return NewError("stalled", "The server sent no data in time.", err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return NewError("refused", "The server refused the connection.", err)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return NewError("unreachable", "The server cannot be reached from this box.", err)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return NewError("descriptors", "The box ran out of file descriptors.", err)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return NewError("broken", "The connection broke.", err)
	case errors.As(err, &op) && op.Op == "dial":
		return NewError("connect", "The connection to the server failed.", err)
	}
	return nil
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// classifyHTTP recognises what net/http says of answers that are none; it has no typed errors for them.
func classifyHTTP(err error) *Error {
	var protocol textproto.ProtocolError
	var number *strconv.NumError
	if errors.As(err, &protocol) || errors.As(err, &number) {
		return malformed(err)
	}
	text := err.Error()
	for _, sign := range []string{"malformed HTTP", "malformed MIME", "bad Content-Length", "invalid header", "invalid byte in chunk",
		"multiple Content-Length", "headers exceeded", "chunked line too long", "malformed chunked", "bad status code", "invalid Transfer-Encoding",
		"unsupported transfer encoding", "too many transfer encodings", "too many 1xx", "line too long", "message too large", "EOF PASV", "invalid EPSV", "invalid PASV"} {
		if strings.Contains(text, sign) {
			return malformed(err)
		}
	}
	return nil
}
