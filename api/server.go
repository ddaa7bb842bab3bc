// Package api is the wire: routes as data, the gate before every handler, envelopes, and the one place that turns
// replies and errors into bytes. It knows no feature; those bring their routes.
package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"
)

// writeLimit is how long the reply of a handler that was allowed to wait may take to be written.
const writeLimit = 60 * time.Second

// Config is what a [Server] is built from.
type Config struct {
	Routes        []Route
	Authenticator Authenticator
	// Dialects are spoken below their prefixes; everywhere else it is that of SPS.
	Dialects []Dialect
	// Explain gives an error that is no *[Error] its public form; nil from it, or no Explain, makes it an internal one.
	Explain func(error) *Error
	Log     *slog.Logger
}

// Server routes, gates and answers. It is an http.Handler, safe for concurrent use.
type Server struct {
	cfg    Config
	router *mux.Router
	origin *http.CrossOriginProtection
	sps    Dialect
	stop   context.Context // ends when the agent stops
	ending context.CancelFunc
}

// resource is all routes of one path.
type resource struct {
	handlers map[string]Route
	allow    []string
	options  Access // of OPTIONS: each role, and anybody where a method is public
}

// NewServer builds the router from the table. Each path is registered once, without methods: with methods, mux
// answers 404 where 405 is right (gorilla/mux#751).
func NewServer(cfg Config) *Server {
	s := &Server{cfg: cfg, router: mux.NewRouter().SkipClean(true).StrictSlash(false), origin: http.NewCrossOriginProtection()}
	s.stop, s.ending = context.WithCancel(context.Background())
	s.sps = Dialect{ContentType: "application/json", Authenticator: cfg.Authenticator, Error: spsError}
	paths := map[string]*resource{}
	for _, r := range cfg.Routes {
		p := paths[r.Path]
		if p == nil {
			p = &resource{handlers: map[string]Route{}, allow: []string{http.MethodOptions}, options: Viewer}
			paths[r.Path] = p
			s.router.Path(r.Path).Handler(s.serve(p))
		}
		p.handlers[r.Method] = r
		p.allow = append(p.allow, r.Method)
		p.options = max(p.options, r.Access)
		if r.Method == http.MethodGet {
			r.Method = http.MethodHead
			p.handlers[r.Method] = r
			p.allow = append(p.allow, r.Method)
		}
	}
	for _, p := range paths {
		slices.Sort(p.allow)
	}
	s.router.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, unknownPath(r.URL.Path))
	})
	return s
}

// Stopping makes every further request a 503, and every body that still comes on a route with Idle an error.
func (s *Server) Stopping() { s.ending() }

// ServeHTTP wraps the whole router: what runs here runs for 404 and 405 too, unlike mux's own middleware.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	id := requestID(r)
	h := w.Header()
	h.Set("X-Request-ID", id)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	rec := &recorder{ResponseWriter: w}
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			s.cfg.Log.Error("panic in a handler", "request_id", id, "panic", p, "stack", string(debug.Stack()))
			if rec.status == 0 {
				s.fail(rec, r, errors.New("panic"))
			}
		}
		// The path only: a query may hold what a careless client put there.
		s.cfg.Log.Info("request", "method", r.Method, "path", r.URL.Path, "status", rec.status, "bytes", rec.bytes,
			"duration_ms", time.Since(start).Milliseconds(), "remote", r.RemoteAddr, "request_id", id)
	}()
	if s.stop.Err() != nil {
		s.fail(rec, r, stopping())
		return
	}
	if !normalise(r) {
		s.fail(rec, r, unknownPath(r.URL.Path))
		return
	}
	s.router.ServeHTTP(rec, r)
}

// normalise makes // one slash and drops a trailing one, without a redirect, which would turn a POST into a GET.
// It refuses dot segments and encoded slashes.
func normalise(r *http.Request) bool {
	path := r.URL.EscapedPath()
	if lower := strings.ToLower(path); strings.Contains(lower, "%2f") || strings.Contains(lower, "%00") {
		return false
	}
	parts := strings.FieldsFunc(r.URL.Path, func(c rune) bool { return c == '/' })
	if slices.Contains(parts, ".") || slices.Contains(parts, "..") {
		return false
	}
	r.URL.Path = "/" + strings.Join(parts, "/")
	r.URL.RawPath = ""
	return true
}

// serve checks in the order of the contract: method, cross-origin, session, role; then it runs the handler.
func (s *Server) serve(p *resource) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		route, ok := p.handlers[r.Method]
		if r.Method == http.MethodOptions {
			route, ok = Route{Access: p.options, Handler: func(*http.Request) (Reply, error) {
				return Reply{Body: struct{}{}, Header: http.Header{"Allow": {strings.Join(p.allow, ", ")}}}, nil
			}}, true
		}
		if !ok {
			s.fail(w, r, &Error{Status: http.StatusMethodNotAllowed, Type: "MethodNotAllowed",
				Message: r.Method + " is not allowed here.", Details: map[string]any{"allow": p.allow},
				Header: http.Header{"Allow": {strings.Join(p.allow, ", ")}}})
			return
		}
		if err := s.origin.Check(r); err != nil {
			s.fail(w, r, &Error{Status: http.StatusForbidden, Type: "Unauthorized", Message: "Cross-origin requests are refused.",
				Details: map[string]any{"reason": "cross-origin"}})
			return
		}
		r, err := s.admit(r, route.Access, s.dialect(r).Authenticator)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		var wait time.Duration
		if route.Wait != nil {
			wait = route.Wait(r)
		}
		end := func() {}
		if route.Idle > 0 {
			r, end = s.readLong(w, r, route.Idle, wait)
			defer end() // after a panic
		} else if wait > 0 {
			// Not all writers have deadlines; then there are none in the way.
			c, end := http.NewResponseController(w), time.Now().Add(wait+writeLimit)
			_ = c.SetReadDeadline(end)
			_ = c.SetWriteDeadline(end)
		}
		reply, err := route.Handler(r)
		end()
		if err != nil {
			s.fail(w, r, err)
			return
		}
		s.write(w, r, reply)
	})
}

// admit puts the caller into the context, or says why the caller may not pass.
func (s *Server) admit(r *http.Request, need Access, a Authenticator) (*http.Request, error) {
	p, ok, err := a.Authenticate(r)
	if err != nil {
		if need == Public {
			return r, nil
		}
		return r, err
	}
	if ok {
		r = r.WithContext(withPrincipal(r.Context(), p))
	}
	switch {
	case need == Public, ok && p.May(need):
		return r, nil
	case !ok:
		return r, Unauthenticated(r.URL.Path)
	}
	return r, &Error{Status: http.StatusForbidden, Type: "Unauthorized",
		Message: "This needs the role " + need.String() + ".", Details: map[string]any{"required_role": need.String()}}
}

func (s *Server) write(w http.ResponseWriter, r *http.Request, reply Reply) {
	h := w.Header()
	for k, v := range reply.Header {
		h[k] = v
	}
	if r.ProtoMajor > 1 { // there it is the stream that ends; "close" would cut off all of them, and perhaps this answer
		h.Del("Connection")
	}
	status := reply.Status
	if status == 0 {
		status = http.StatusOK
	}
	if status == http.StatusNotModified { // which has no body
		w.WriteHeader(status)
		return
	}
	h.Set("Content-Type", s.dialect(r).ContentType)
	if reply.Stream != nil {
		w.WriteHeader(status)
		if err := reply.Stream(w); err != nil {
			s.cfg.Log.Warn("cannot complete reply", "path", r.URL.Path, "err", err)
			panic(http.ErrAbortHandler)
		}
		return
	}
	body, raw := reply.Body.([]byte)
	if raw {
		h.Set("Content-Type", reply.ContentType)
	} else {
		var err error
		if body, err = encode(reply.Body); err != nil {
			s.fail(w, r, err)
			return
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client went away; there is nobody to tell
	if reply.After != nil {
		_ = http.NewResponseController(w).Flush() // the same, or it was sent already
		reply.After()
	}
}

// fail is the one encoder of errors.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := s.publicError(err, w.Header().Get("X-Request-ID"))
	if e.Err != nil {
		s.cfg.Log.Error("request failed", "path", r.URL.Path, "type", e.Type, "err", e.Err, "request_id", w.Header().Get("X-Request-ID"))
	}
	s.write(w, r, s.dialect(r).Error(e))
}

// encode writes JSON without escaping & < >, which URLs are full of.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return b.Bytes(), err
}

// EncodeTo writes v as JSON as replies do, for handlers that stream.
func EncodeTo(w io.Writer, v any) error {
	b, err := encode(v)
	if err == nil {
		_, err = w.Write(bytes.TrimSuffix(b, []byte("\n")))
	}
	return err
}

// requestID echoes the caller's id if it is harmless in a log, else makes one.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-ID")
	harmless := func(c rune) bool {
		return c == '-' || c == '_' || c == '.' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
	}
	if id != "" && len(id) <= 64 && strings.IndexFunc(id, func(c rune) bool { return !harmless(c) }) < 0 {
		return id
	}
	return rand.Text()[:16]
}

// recorder notes for the access log what was written.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
