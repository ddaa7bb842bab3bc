package api

import (
	"net/http"
	"slices"
)

// ErrorType is a kind of [Error]: one row of the table from which docs/errors.md takes its words.
type ErrorType struct {
	// Type is error.type on the wire.
	Type string
	// Status is the HTTP status that it comes with.
	Status int
	// Meaning and Remedy are one or two sentences each.
	Meaning, Remedy string
}

// errorTypes are all. None changes its meaning.
var errorTypes = []ErrorType{
	{"SyntacticError", http.StatusBadRequest, "The body of the request is not one JSON object.", "Correct the body. A key may be there only once."},
	{"IncompleteRequestBodyError", http.StatusBadRequest, "A required field is missing; `details.field` says which, `details.found` a key that looks like it. Or an upload has no image, or not all of it.",
		"Add the field; keys match exactly. Send the whole image, raw or as the part `firmware`."},
	{"SemanticError", http.StatusBadRequest, "A field has a bad type or value; `details` says which, and what it must be. For an upload, `details.got` is the digest of what came.",
		"Correct the field, or send the right image."},
	{"FirmwareTestFailed", http.StatusBadRequest, "The image in the slot cannot be activated; `details.test_summary` has a line for each check, those that failed say why.",
		"Do what the line says. A damaged image is deleted and fetched again."},
	{"Unauthenticated", http.StatusUnauthorized, "The request has no valid session: there was no login, or it has ended.", "Log in, and send the cookie `session_id` with each request."},
	{"AuthenticationFailure", http.StatusUnauthorized, "User or password are wrong, or blocked after 20 failures within 10 minutes.",
		"Check both; after a block wait 10 minutes. `slotfetchd user passwd` on the box sets a new password."},
	{"Unauthorized", http.StatusForbidden, "The user's role is too low (`details.required_role`), or a browser sent the request from a page of another origin (`details.reason`).",
		"Log in as a user with that role. `slotfetchd user` on the box manages roles."},
	{"ResourceNotFound", http.StatusNotFound, "There is no such fetch, no image in this slot, no such slot, or no such path.", "List what there is; `slotfetch ls` and `slotfetch slots` do."},
	{"MethodNotAllowed", http.StatusMethodNotAllowed, "The path does not know the method.", "Use one of those in the header `Allow`."},
	{"Conflict", http.StatusConflict, "The state of the fetch or slot forbids it: it is being installed, runs now, boots next, is pinned, damaged, reserved or being tested. Or there is no empty slot for an upload (`details.state`). Or an upgrade is under way. Or the `Idempotency-Key` was used for another request.",
		"Wait for the end of the fetch or upgrade, unpin or choose another slot, or take a new key."},
	{"RequestTooLarge", http.StatusRequestEntityTooLarge, "The body, or the image of an upload, is longer than `details.limit` bytes.",
		"Send less; certificates in `tls.ca` are what is large. For images, raise fetch.max_size in the agent's configuration if they should be allowed."},
	{"InternalError", http.StatusInternalServerError, "A fault of the agent itself.", "Look for `details.id` in the agent's journal."},
	{"ServiceUnavailable", http.StatusServiceUnavailable, "The agent is stopping, its database is busy, or it cannot do its work. Or the test of a slot takes long and goes on (`details.state` is `testing`).",
		"Try again after `Retry-After`, and look first what has become of the request. The agent's journal has the details."},
	{"InsufficientStorage", http.StatusInsufficientStorage, "The disk has no room for an upload (`details.needed`, `details.free`), or for the agent's database.", "Make room, for instance by emptying a slot, and try again."},
}

// ErrorTypes is the table.
func ErrorTypes() []ErrorType { return slices.Clone(errorTypes) }
