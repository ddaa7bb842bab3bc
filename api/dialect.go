package api

import (
	"net/http"
	"strings"
)

// Dialect is how one family of paths is spoken. Everything in it is set.
type Dialect struct {
	// Prefix is the path above all of them, without a slash at its end.
	Prefix string
	// ContentType is that of replies in JSON.
	ContentType string
	// Authenticator finds out who calls.
	Authenticator Authenticator
	// Error puts into words what went wrong: the one encoder of errors.
	Error func(*Error) Reply
}

// dialect is the one in which r is answered.
func (s *Server) dialect(r *http.Request) Dialect {
	for _, d := range s.cfg.Dialects {
		if rest, ok := strings.CutPrefix(r.URL.Path, d.Prefix); ok && (rest == "" || rest[0] == '/') {
			return d
		}
	}
	return s.sps
}

// spsError is the envelope of SPS (contract section 3).
func spsError(e *Error) Reply {
	body := ErrorReply{ErrorBody{Type: e.Type, Message: e.Message, Code: e.Code, Details: e.Details}}
	if body.Error.Details == nil {
		body.Error.Details = map[string]any{}
	}
	return Reply{Status: e.Status, Header: e.Header, Body: body}
}
