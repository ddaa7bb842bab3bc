package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"slotfetch/api"
)

// The exit codes. They are API: a number is never used again for something else.
const (
	exitOK          = 0
	exitFailed      = 1 // a fetch failed, or the box did
	exitUsage       = 2 // wrong flags, arguments, configuration or request
	exitNetwork     = 3 // the box cannot be reached, or its certificate is not trusted
	exitAuth        = 4 // no login, or the role is too low
	exitNotFound    = 5
	exitConflict    = 6 // the state of the fetch or slot forbids it
	exitIntegrity   = 7 // the image has another digest
	exitPending     = 8 // still going at --timeout
	exitNoSpace     = 9 // no space or no slot
	exitInterrupted = 130
)

// failure is an error with an exit code and, where there is one, a remedy.
type failure struct {
	code    int
	kind    string // error.type in JSON: the agent's own, or one of ours
	message string
	hint    string
	details map[string]any

	// temporary tells a wait that asking again may help.
	temporary bool
	// printed tells that stderr has seen it already.
	printed bool
	// status is the HTTP status, 0 where the box did not answer.
	status int

	cause error
}

func (f *failure) Error() string { return f.message }
func (f *failure) Unwrap() error { return f.cause }

// usage is a mistake in how slotfetch was called.
func usage(message, hint string) error {
	return &failure{code: exitUsage, kind: "Usage", message: message, hint: hint}
}

// asFailure gives any error an exit code.
func asFailure(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if errors.Is(err, context.Canceled) {
		return &failure{code: exitInterrupted, kind: "Interrupted", message: "interrupted", cause: err}
	}
	return &failure{code: exitFailed, kind: "Failed", message: err.Error(), cause: err}
}

// report writes err to stderr and returns the exit code. What carries no code comes from the command line parser.
func (a *app) report(err error) int {
	f, ok := errors.AsType[*failure](err)
	if !ok {
		f = fromParser(err)
	}
	if !f.printed {
		a.printFailure(f)
	}
	return f.code
}

// errorReport is what stderr gets with -o json and -o ndjson: the agent's error envelope and the exit code.
type errorReport struct {
	Code  int       `json:"code"`
	Error errorBody `json:"error"`
	Hint  string    `json:"hint,omitempty"`
}

type errorBody struct {
	Type    string         `json:"type"`
	Message string         `json:"message"`
	Details map[string]any `json:"details"`
}

// ofBox is a command in a hint that asks the same box as this run.
var ofBox = regexp.MustCompile(`with: slotfetch (fetch|probe|ls|show|watch|wait|cancel|prune|slots|history|whoami)\b`)

// sameBox makes the commands in a hint work as they stand when this run was given its box by a flag.
func (a *app) sameBox(hint string) string {
	if a.box == "" {
		return hint
	}
	return ofBox.ReplaceAllString(hint, "with: slotfetch -H "+strings.ReplaceAll(quote(a.box), "$", "$$")+" $1")
}

func (a *app) printFailure(f *failure) {
	hint := a.sameBox(f.hint)
	if a.output == "json" || a.output == "ndjson" {
		r := errorReport{Code: f.code, Error: errorBody{Type: f.kind, Message: f.message, Details: f.details}, Hint: hint}
		if r.Error.Details == nil {
			r.Error.Details = map[string]any{}
		}
		enc := json.NewEncoder(a.stderr)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(r)
		return
	}
	fmt.Fprintf(a.stderr, "slotfetch: %s\n", cleanLines(f.message))
	if hint != "" {
		fmt.Fprintf(a.stderr, "hint: %s\n", cleanLines(hint))
	}
}

// codeOfStatus maps the HTTP status of a refusal to the exit code.
func codeOfStatus(status int) int {
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return exitUsage
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitAuth
	case http.StatusNotFound:
		return exitNotFound
	case http.StatusConflict:
		return exitConflict
	case http.StatusInsufficientStorage:
		return exitNoSpace
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return exitNetwork
	}
	return exitFailed
}

// slotOccupied is how the agent begins the sentence about a slot that was asked for and is not empty.
var slotOccupied = regexp.MustCompile(`^Slot \d+ is occupied`)

// exitOfFault maps the code of a fetch's error to the exit code; what is not here is exitFailed.
var exitOfFault = map[string]int{"digest": exitIntegrity, "no_slot": exitNoSpace, "slot_occupied": exitNoSpace, "space": exitNoSpace, "inodes": exitNoSpace}

// codeOfError maps the error sentence of a failed fetch to the exit code, for agents that tell no more than that.
func codeOfError(sentence string) int {
	switch {
	case strings.HasPrefix(sentence, "SHA-256 mismatch"), strings.HasPrefix(sentence, "SHA-512 mismatch"):
		return exitIntegrity
	case strings.Contains(sentence, "No empty firmware slot"), strings.HasPrefix(sentence, "Not enough space"),
		slotOccupied.MatchString(sentence):
		return exitNoSpace
	}
	return exitFailed
}

// makeRoom is what helps with exitNoSpace, in terms of the client.
const makeRoom = "See the slots with: slotfetch slots\n      Empty one with: slotfetch slots rm N"

// fetchFailure says why a fetch failed. Where the agent tells it apart, the remedy is the hint and not in the message.
func fetchFailure(f api.Fetch, details map[string]any) *failure {
	sentence := text(f.Body.Error)
	code, remedy := codeOfError(sentence), ""
	if d := f.Body.ErrorDetails; d != nil {
		code, remedy = exitFailed, d.Remedy
		if c, ok := exitOfFault[d.Code]; ok {
			code = c
		}
		if remedy != "" {
			sentence = strings.TrimSuffix(sentence, " "+remedy)
		}
		details["error"] = d
	}
	switch {
	case remedy == "" && f.Body.ErrorDetails != nil && f.Body.ErrorDetails.Class == "temporary":
		remedy = "It may work later: start it again."
	case code == exitNoSpace:
		remedy = strings.TrimPrefix(remedy+"\n      "+makeRoom, "\n      ")
	}
	return &failure{code: code, kind: "FetchFailed", details: details, hint: remedy,
		message: fmt.Sprintf("fetch %s failed: %s", f.Key, cmp.Or(sentence, "The box gave no reason."))}
}

// outcome is nil for a finished fetch and says for any other what became of it.
func outcome(f api.Fetch) error {
	details := map[string]any{"key": f.Key, "status": f.Body.Status}
	switch f.Body.Status {
	case "finished":
		return nil
	case "failed":
		return fetchFailure(f, details)
	case "cancelled":
		return &failure{code: exitFailed, kind: "FetchCancelled", details: details,
			message: fmt.Sprintf("fetch %s was cancelled", f.Key)}
	}
	return &failure{code: exitPending, kind: "StillPending", details: details,
		message: fmt.Sprintf("fetch %s is still %s", f.Key, stage(f.Body))}
}

// final tells whether a fetch has come to its end.
func final(status string) bool {
	return status == "finished" || status == "failed" || status == "cancelled"
}

// each runs f for every key. With several keys an error is printed and the next key tried; the first exit code
// counts. What would fail alike for every key ends the loop.
func (a *app) each(keys []string, f func(key string) error) error {
	var first *failure
	for _, key := range keys {
		err := f(key)
		if err == nil {
			continue
		}
		bad := asFailure(err)
		if len(keys) == 1 {
			return bad
		}
		if !bad.printed {
			a.printFailure(bad)
		}
		if first == nil {
			first = &failure{code: bad.code, kind: bad.kind, message: bad.message, printed: true}
		}
		if bad.code == exitNetwork || bad.code == exitAuth || bad.code == exitInterrupted {
			break
		}
	}
	if first == nil {
		return nil
	}
	return first
}
