package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"slotfetch/api"
)

const (
	// dialLimit bounds the way to the connection.
	dialLimit = 10 * time.Second
	// callLimit bounds one call. A test, and so an upgrade, may take the 80 seconds in which the agent reads an image.
	callLimit = 95 * time.Second
	// bodyLimit bounds an answer; a list of 100,000 fetches is smaller.
	bodyLimit = 64 << 20
)

// client calls one box.
type client struct {
	app      *app
	box      box
	http     *http.Client
	verifier *verifier
	session  string
	// firstUse is what to do with a certificate that nothing vouches for.
	firstUse firstUse
	// limit is for one call; 0: callLimit.
	limit time.Duration
}

// firstUse says how a certificate is met that nothing vouches for.
type firstUse int

const (
	firstUseAsk  firstUse = iota // on a terminal, else refuse
	firstUsePin                  // trust it and say so
	firstUseFail                 // refuse without a question
)

// open makes the client for the box of this run, with its login. It does not connect.
func (a *app) open() (*client, error) {
	b, err := a.resolveBox()
	if err != nil {
		return nil, err
	}
	c, err := a.openBox(b)
	if err != nil {
		return nil, err
	}
	return c, c.useLogin()
}

// with opens the box of this run for do, which begins with this call. With --curl that is only printed.
func (a *app) with(method, path string, body any, do func(*client) error) error {
	c, err := a.open()
	if err != nil {
		return err
	}
	defer c.close()
	if a.curl {
		return c.printCurl(method, path, body)
	}
	return do(c)
}

// openBox makes the client for b without a login.
func (a *app) openBox(b box) (*client, error) {
	c := &client{app: a, box: b}
	transport := &http.Transport{
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: callLimit,
		IdleConnTimeout:       60 * time.Second,
	}
	dialer := &net.Dialer{Timeout: dialLimit}
	if b.local() {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", b.socket)
		}
	} else {
		v, err := a.newVerifier(b)
		if err != nil {
			return nil, err
		}
		c.verifier = v
		transport.Proxy = http.ProxyFromEnvironment
		transport.DialContext = dialer.DialContext
		transport.TLSClientConfig = v.tlsConfig()
		if a.insecure {
			fmt.Fprintf(a.stderr, "WARNING: the certificate of %s is NOT checked (--insecure); anybody on the way can read the login.\n", b)
		}
	}
	c.http = &http.Client{
		Transport: transport,
		// A box never redirects; following one could carry the session elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// useLogin takes the session from the environment, else from the jar.
func (c *client) useLogin() error {
	if token := os.Getenv("SLOTFETCH_SESSION"); token != "" {
		if !validToken(token) {
			return usage("$SLOTFETCH_SESSION is not a session", "Take the value of the cookie session_id.")
		}
		c.session = token
		return nil
	}
	if c.box.local() {
		return nil
	}
	j, err := jarFor(c.box)
	if err != nil {
		return err
	}
	s, err := j.load(c.app.now())
	c.session = s.token
	return err
}

// close gives the connections back.
func (c *client) close() { c.http.CloseIdleConnections() }

// call performs one request with a JSON body and decodes a JSON answer into out, where they are not nil. Every
// answer of 400 and above is a *failure.
func (c *client) call(ctx context.Context, method, path string, body, out any) (*http.Response, error) {
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	return c.perform(req, out)
}

func (c *client) request(ctx context.Context, method, path string, body any) (*http.Request, error) {
	var data io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("cannot encode the request: %w", err)
		}
		data = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.box.baseURL()+path, data)
	if err != nil {
		return nil, fmt.Errorf("cannot make the request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "slotfetch/"+version)
	if c.session != "" {
		req.Header.Set("Cookie", sessionCookie+"="+c.session)
	}
	return req, nil
}

// perform sends req. When the certificate is met for the first time it settles that and sends it once more: the
// handshake came to nothing, so nothing of the request was sent.
func (c *client) perform(req *http.Request, out any) (*http.Response, error) {
	resp, err := c.send(req, out)
	stranger, ok := errors.AsType[*errUntrusted](err)
	if !ok {
		return resp, err
	}
	if err := c.meet(req.Context(), stranger); err != nil {
		return nil, err
	}
	again := req.Clone(req.Context())
	if req.GetBody != nil {
		if again.Body, err = req.GetBody(); err != nil {
			return nil, fmt.Errorf("cannot repeat the request: %w", err)
		}
	}
	return c.send(again, out)
}

func (c *client) send(req *http.Request, out any) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(req.Context(), cmp.Or(c.limit, callLimit))
	defer cancel()
	start := c.app.now()
	if c.app.verbose {
		fmt.Fprintf(c.app.stderr, "> %s %s\n", req.Method, req.URL.Redacted())
	}
	resp, err := c.http.Do(req.WithContext(ctx)) // #nosec G704 -- the box is the admin's own choice.
	if err != nil {
		return nil, c.unreachable(req.Context(), err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, bodyLimit+1))
	if c.app.verbose {
		fmt.Fprintf(c.app.stderr, "< %s %d bytes in %s\n", resp.Status, len(data), c.app.now().Sub(start).Round(time.Millisecond))
	}
	switch {
	case err != nil:
		return nil, c.unreachable(req.Context(), err)
	case len(data) > bodyLimit:
		return nil, c.stranger("its answer is longer than 64 MiB")
	case resp.StatusCode >= 400:
		return resp, c.refusal(resp, data)
	case resp.StatusCode >= 300:
		return resp, c.stranger("it answered " + resp.Status)
	case out != nil:
		if err := json.Unmarshal(data, out); err != nil {
			return resp, c.stranger("its answer is not the JSON that was expected")
		}
	}
	return resp, nil
}

// stranger is an answer that no slotfetch box gives.
func (c *client) stranger(why string) error {
	return &failure{code: exitNetwork, kind: "NotABox", message: fmt.Sprintf("%s does not answer like a box that runs slotfetchd: %s", c.box, why),
		hint: strings.TrimSpace("Check the address and the port. " + c.box.portHint())}
}

// unreachable sorts the errors below HTTP.
func (c *client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ended(ctx)
	}
	if _, ok := errors.AsType[*errUntrusted](err); ok {
		return err
	}
	if _, ok := errors.AsType[*errObserved](err); ok {
		return err
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	why, hint := c.explain(err)
	return &failure{code: exitNetwork, kind: "Network", temporary: true, cause: err, hint: hint,
		message: fmt.Sprintf("cannot reach %s: %s", c.box, why)}
}

// explain says why the box cannot be reached, and what may help.
func (c *client) explain(err error) (why, hint string) {
	why, hint = plain(err), c.box.portHint()
	dns, unknownHost := errors.AsType[*net.DNSError](err)
	op, isOp := errors.AsType[*net.OpError](err)
	switch {
	case unknownHost:
		return why, c.box.nameHint(dns)
	case isOp && op.Op == "dial" && op.Timeout():
		return fmt.Sprintf("no connection within %s", dialLimit), hint
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("no answer within %s", callLimit), ""
	case strings.Contains(why, "server gave HTTP response to HTTPS client"):
		return "it speaks plain http on this port", "Check the port: a box speaks https only."
	case strings.Contains(why, "first record does not look like a TLS handshake"):
		return "it does not speak https on this port", "Check the port."
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "it closed the connection without an answer", hint
	case c.box.local() && errors.Is(err, os.ErrPermission):
		return why, "The socket is open to root and to the group of the agent."
	case c.box.local():
		return why, "Does slotfetchd run? Look with: systemctl status slotfetchd"
	}
	return why, hint
}

// plain takes the request line off an error of net/http: the message names the box already.
func plain(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		if dns, ok := errors.AsType[*net.DNSError](err); ok {
			return "cannot find the host " + dns.Name + ": " + dns.Err
		}
		return strings.TrimPrefix(op.Err.Error(), "connect: ")
	}
	text := err.Error()
	if _, after, ok := strings.Cut(text, `": `); ok {
		return after
	}
	return text
}

// refusal makes a failure of an answer of 400 and above.
func (c *client) refusal(resp *http.Response, data []byte) error {
	var reply api.ErrorReply
	f := &failure{code: codeOfStatus(resp.StatusCode), status: resp.StatusCode, temporary: codeOfStatus(resp.StatusCode) == exitNetwork}
	if json.Unmarshal(data, &reply) == nil && reply.Error.Message != "" {
		f.kind, f.message, f.details = reply.Error.Type, reply.Error.Message, reply.Error.Details
	} else if resp.StatusCode < 500 {
		return c.stranger("it answered " + resp.Status)
	} else {
		f.kind, f.message = "HTTP"+strconv.Itoa(resp.StatusCode), fmt.Sprintf("%s answered %s", c.box, resp.Status)
	}
	switch {
	case resp.StatusCode == http.StatusUnauthorized && !c.box.local():
		if f.kind == "Unauthenticated" && c.session == "" { // The agent's sentence is for those who call by hand.
			f.message = fmt.Sprintf("not logged in to %s", c.box)
		} else if f.kind == "Unauthenticated" {
			f.message = fmt.Sprintf("the session on %s has ended", c.box)
		}
		f.hint = "Log in with: slotfetch login -H " + quote(c.box.name)
		if os.Getenv("SLOTFETCH_SESSION") != "" {
			f.hint = "The session in $SLOTFETCH_SESSION is not valid (any more). Unset it, or " + lowerFirst(f.hint)
		}
	case resp.StatusCode == http.StatusForbidden:
		if role, ok := f.details["required_role"].(string); ok {
			f.hint = fmt.Sprintf("This needs the role %s. Look at yours with: slotfetch whoami", role)
		}
	case resp.StatusCode >= 500:
		if id := resp.Header.Get("X-Request-ID"); id != "" {
			f.hint = "The log of the box says more, under request " + id + "."
		}
	}
	return f
}
