package ontap

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"slotfetch/api"
	"slotfetch/fetch/source"
)

// The codes that ONTAP documents, as far as they are sent (contract section 6).
const (
	codeField          = 2
	codeNotSupported   = 3
	codeNoEntry        = 4
	codePermission     = 6
	codeTooMany        = 262160
	codeMissing        = 262177
	codeUnexpected     = 262179
	codeInvalid        = 262197
	codeSyntax         = 262199
	codeSecretInURL    = 262202
	codeEnded          = 458762
	codeCannotResume   = 458771
	codeCannotPause    = 458783
	codeCannotCancel   = 458784
	codeUnauthorized   = 6691623
	codeUpdatePause    = 10551300
	codeUpdateResume   = 10551303
	codeUpdateCancel   = 10551306
	codeNoPackage      = 10551325
	codeSameName       = 10551327
	codeValidated      = 10551346
	codeUpdating       = 10551357
	codeProcessing     = 10551359
	codePackageInUse   = 10551367
	codeDownload       = 10551381
	codeDownloading    = 10551382
	codeTimeLimit      = 10551383
	codeNotStarted     = 10551384
	codeInternal       = 10551391
	codeValidation     = 10551396
	codeValidating     = 10551656
	codeUnknownIfMay   = 10551797
	codeSwitchedOff    = 10551798
	codeLongName       = 10551799
	codeUploadWrite    = 10551800
	codeUploadSpace    = 10551804
	codeSecondFile     = 10551807
	codeNotMultipart   = 10551808
	codeRunningVersion = 10551854
	codeNoPlace        = 10551859
	codeNoVersion      = 10551872
	codeBadURL         = 10551885
	codeUnhealthy      = 10551892
	codeURLSyntax      = 39387137
	codeURLScheme      = 39387138
)

// Words that clients look for, or that several answers have.
const (
	messageNoEntry      = "entry doesn't exist"
	messageUnauthorized = "User is not authorized."
	messageNoPackage    = "There is no package of that version."
	messageStopping     = "The agent is stopping. Try again when it runs again."
	messageInternal     = "An internal error ended the job. The agent's journal has the details."
)

// failed is what a handler answers if it cannot do what it was asked. The code decides the status, see statusOf.
func failed(code int, target, message string) *api.Error {
	e := &api.Error{Status: statusOf(code), Type: "Ontap", Code: strconv.Itoa(code), Message: message, Details: map[string]any{}}
	if target != "" {
		e.Details["target"] = target
	}
	return e
}

func failedf(code int, target, format string, args ...any) *api.Error {
	return failed(code, target, fmt.Sprintf(format, args...))
}

func noEntry(target string) *api.Error { return failed(codeNoEntry, target, messageNoEntry) }

// statusOf is the HTTP status of a failure (contract section 6, last column).
func statusOf(code int) int {
	switch code {
	case codeField, codeMissing, codeUnexpected, codeInvalid, codeSyntax, codeSecretInURL, codeURLSyntax, codeURLScheme, codeBadURL, codeNoVersion,
		codeLongName, codeSecondFile, codeNotMultipart:
		return http.StatusBadRequest
	case codeUnauthorized:
		return http.StatusUnauthorized
	case codePermission, codeSwitchedOff:
		return http.StatusForbidden
	case codeNotSupported, codeNoEntry, codeNoPackage:
		return http.StatusNotFound
	case codeSameName, codeUpdating, codeNoPlace, codeEnded, codeCannotResume, codeCannotPause, codeCannotCancel, codeUpdatePause, codeUpdateResume,
		codeUpdateCancel, codeValidated, codePackageInUse, codeValidating, codeRunningVersion, codeValidation:
		return http.StatusConflict
	case codeTooMany:
		return http.StatusTooManyRequests
	case codeUnhealthy, codeUnknownIfMay:
		return http.StatusServiceUnavailable
	case codeUploadSpace:
		return http.StatusInsufficientStorage
	}
	return http.StatusInternalServerError
}

// encodeError writes errors as ONTAP does: those of this package, and those of the gate and of what is behind us.
func encodeError(e *api.Error) api.Reply {
	body := ErrorReply{Error: Error{Message: e.Message, Code: e.Code}}
	body.Error.Target, _ = e.Details["target"].(string)
	header := e.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	if body.Error.Code == "" {
		body.Error.Code = strconv.Itoa(codeOf(e))
		body.Error.Target, _ = e.Details["field"].(string)
	}
	switch e.Status {
	case http.StatusUnauthorized:
		body.Error.Message = messageUnauthorized
		header.Set("WWW-Authenticate", `Basic realm="slotfetch"`)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		if header.Get("Retry-After") == "" { // rule 23
			header.Set("Retry-After", "5")
		}
	}
	return api.Reply{Status: e.Status, Header: header, Body: body}
}

// codeOf is the code of an error that speaks the words of SPS.
func codeOf(e *api.Error) int {
	switch e.Type {
	case "SyntacticError", "RequestTooLarge":
		return codeSyntax
	case "IncompleteRequestBodyError":
		return codeMissing
	case "SemanticError":
		return codeInvalid
	}
	switch e.Status {
	case http.StatusBadRequest:
		return codeField
	case http.StatusUnauthorized:
		return codeUnauthorized
	case http.StatusForbidden:
		return codePermission
	case http.StatusNotFound:
		return codeNoEntry
	case http.StatusMethodNotAllowed:
		return codeNotSupported
	case http.StatusTooManyRequests:
		return codeTooMany
	case http.StatusServiceUnavailable:
		return codeUnhealthy
	case http.StatusInsufficientStorage:
		return codeUploadSpace
	}
	return codeInternal
}

// faultCode is the code of a fetch that failed (contract section 6, column "job").
func faultCode(code string) int {
	switch source.FaultOf(code).Code {
	case "dns", "http_404", "http_410", "ftp_550", "ftp_553", "no_file", "file_missing", "file_root", "scheme", "redirect", "redirects", "redirect_scheme",
		"redirect_downgrade", "egress", "egress_deny", "html":
		return codeBadURL
	case "deadline", "stalled", "low_speed":
		return codeTimeLimit
	case "digest", "not_iso", "too_large", "too_long":
		return codeProcessing
	case "version_exists":
		return codeSameName
	case "no_slot", "slot_occupied", "slot_protected", "slot_unknown", "read_only":
		return codeNoPlace
	case "space", "inodes", "disk", "boot":
		return codeUnhealthy
	case "internal":
		return codeInternal
	}
	if strings.HasPrefix(code, "signature_") {
		return codeProcessing
	}
	return codeDownload
}
