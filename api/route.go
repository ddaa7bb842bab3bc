package api

import (
	"context"
	"io"
	"net/http"
	"time"
)

// Access is who may call a route. The zero value is the strictest, so that forgetting it is safe.
type Access int

const (
	// Admin may do everything.
	Admin Access = iota
	// Operator may also start, cancel and prune fetches, and manage slots.
	Operator
	// Viewer may look, and end its own session.
	Viewer
	// Public needs no session; a handler may still use one that is there.
	Public
)

// String gives the role that the access asks for, as users have it.
func (a Access) String() string {
	return [...]string{"admin", "operator", "viewer", "public"}[a]
}

// Principal is the authenticated caller.
type Principal struct {
	Name string
	// Role is Admin, Operator or Viewer.
	Role Access
	// Address is where the request came from, for the audit: an IP address, or "local" on the unix socket.
	Address string
	// Session identifies the session for its own end; nil on the unix socket.
	Session []byte
	// RemainingSeconds is how long the session lives if it stays idle.
	RemainingSeconds int64
}

// May tells whether p may call what needs a.
func (p Principal) May(a Access) bool { return p.Role <= a }

// Authenticator finds out who calls. It is declared here, by its consumer; package auth has the real one.
type Authenticator interface {
	// Authenticate returns the caller; ok is false when there is no valid session. An error is our own fault.
	Authenticate(r *http.Request) (p Principal, ok bool, err error)
}

// Handler answers one request. It returns a reply or an error and writes nothing itself.
type Handler func(r *http.Request) (Reply, error)

// Route is one row of the table from which the server is built.
type Route struct {
	Method, Path string
	Access       Access
	Handler      Handler
	// Wait says how long the handler may take for a request, beyond what is usual; nil: no longer. The handler has to
	// look for the end of the request's context itself.
	Wait func(r *http.Request) time.Duration
	// Idle is for bodies that take long: there is no limit for the whole, but one of this length for nothing to come, and Wait
	// begins when all is there. See [ErrSilent].
	Idle time.Duration
}

// Always is a [Route.Wait] that is the same for all requests.
func Always(d time.Duration) func(*http.Request) time.Duration {
	return func(*http.Request) time.Duration { return d }
}

// Reply is what a handler wants to be written.
type Reply struct {
	// Status is the HTTP status; 0 means 200.
	Status int
	Header http.Header
	// Body is encoded as JSON, unless Stream is set.
	Body any
	// Stream writes the body piece by piece, for lists that must not be held in memory. An error in the middle
	// ends the connection, so that the client does not take a part for the whole.
	Stream func(w io.Writer) error
	// ContentType replaces application/json for a Body that is a []byte.
	ContentType string
	// After runs once the body is on its way, for what must not happen before the caller knows. The connection waits for it.
	After func()
}

type principalKey struct{}

// PrincipalFrom is who calls; ok is false on public routes without a session.
func PrincipalFrom(ctx context.Context) (Principal, bool) {
	p, ok := ctx.Value(principalKey{}).(Principal)
	return p, ok
}

func withPrincipal(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}
