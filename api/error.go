package api

import (
	"errors"
	"fmt"
	"net/http"
)

// Error is what a caller may read of a failure: a stable type for scripts, a message with a remedy for people.
type Error struct {
	// Status is the HTTP status.
	Status int
	// Type is one of the contract's (section 3).
	Type    string
	Message string
	// Code is only set for a path that no dialect knows.
	Code    string
	Details map[string]any
	// Header is added to the reply.
	Header http.Header
	// Err is the cause, for the log only.
	Err error
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Type, e.Message, e.Err)
	}
	return e.Type + ": " + e.Message
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Syntactic says that the body is not one JSON object.
func Syntactic(why string) *Error {
	return &Error{Status: http.StatusBadRequest, Type: "SyntacticError", Message: "The request body must be one JSON object: " + why + "."}
}

// Missing says that a required field is not there; found is a key that looks like it, or empty.
func Missing(field, found string) *Error {
	e := &Error{Status: http.StatusBadRequest, Type: "IncompleteRequestBodyError", Message: fmt.Sprintf("Field %q is missing.", field),
		Details: map[string]any{"field": field}}
	if found != "" {
		e.Message += fmt.Sprintf(" Found %q: did you mean %q?", found, field)
		e.Details["found"] = found
	}
	return e
}

// Semantic says that a field has a bad type or value.
func Semantic(field, expected string) *Error {
	return &Error{Status: http.StatusBadRequest, Type: "SemanticError", Message: fmt.Sprintf("Field %q must be %s.", field, expected),
		Details: map[string]any{"field": field, "expected": expected}}
}

// NotFound says that resource does not exist below mount.
func NotFound(mount, resource string) *Error {
	return &Error{Status: http.StatusNotFound, Type: "ResourceNotFound", Message: fmt.Sprintf("There is no %q below %s.", resource, mount),
		Details: map[string]any{"mount_point": mount, "resource": resource}}
}

// Conflict says that the state of a resource forbids the request.
func Conflict(message string, details map[string]any) *Error {
	return &Error{Status: http.StatusConflict, Type: "Conflict", Message: message, Details: details}
}

// Unauthenticated says that the request has no valid session.
func Unauthenticated(path string) *Error {
	return &Error{Status: http.StatusUnauthorized, Type: "Unauthenticated",
		Message: "No valid session. Log in with GET /api/authentication and send the session_id cookie.", Details: map[string]any{"path": path}}
}

// Unavailable says that the agent cannot serve this now.
func Unavailable(message string) *Error {
	return &Error{Status: http.StatusServiceUnavailable, Type: "ServiceUnavailable", Message: message, Header: http.Header{"Retry-After": {"5"}}}
}

// unknownPath is understood by clients of both dialects.
func unknownPath(path string) *Error {
	e := NotFound("/api", path)
	e.Message, e.Code = "API not found", "3"
	return e
}

// publicError is err as the caller may see it; what is unknown becomes an internal error with an id to quote.
func (s *Server) publicError(err error, id string) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if s.cfg.Explain != nil {
		if e := s.cfg.Explain(err); e != nil {
			return e
		}
	}
	return &Error{Status: http.StatusInternalServerError, Type: "InternalError",
		Message: fmt.Sprintf("Internal error. Quote the id %s; the agent's journal has the details.", id), Details: map[string]any{"id": id}, Err: err}
}
