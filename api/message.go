package api

import (
	"encoding/json"
	"time"
)

// This file holds the JSON shapes of the SPS dialect: what the agent writes and the client reads. They repeat
// fields of store rows and slot manifests on purpose: the client must not link SQLite, and a row may grow
// columns that must not leak.

// TimeLayout is how the SPS dialect writes a moment: UTC, numeric offset, no fraction
// (contract section 2; [time.RFC3339] would write Z).
const TimeLayout = "2006-01-02T15:04:05-07:00"

// FormatTime renders t in UTC by [TimeLayout]; the zero time becomes nil, which is JSON null.
func FormatTime(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := t.UTC().Format(TimeLayout)
	return &s
}

// Meta is the "meta" object of the SPS envelopes. Which keys are present says which of the four shapes it is:
// answer to a POST, list, item of a list, single document.
type Meta struct {
	Href    string `json:"href"`
	Parent  string `json:"parent,omitempty"`
	Slots   string `json:"slots,omitempty"`
	Test    string `json:"test,omitempty"`
	Upgrade string `json:"upgrade,omitempty"`
	Slot    string `json:"slot,omitempty"`
}

// MetaOnly is a reply that carries nothing but its links: logout, prune, a deleted slot.
type MetaOnly struct {
	Meta Meta `json:"meta"`
}

// Accepted answers the POST of a fetch: the key under which to ask for it.
type Accepted struct {
	Key  string `json:"key"`
	Meta Meta   `json:"meta"`
}

// Fetch is one fetch document, and one item of the list (then without meta.parent).
type Fetch struct {
	Key  string    `json:"key"`
	Body FetchBody `json:"body"`
	Meta Meta      `json:"meta"`
}

// FetchBody is what a fetch says of itself. The first eight keys are those of SPS, the rest are ours; all are
// always present (contract section 5.2).
type FetchBody struct {
	// Status is queued, in-progress, finished, failed or cancelled.
	Status string `json:"status"`
	// Info is the SPS text for the phase or the ending; null while queued and when finished.
	Info *string `json:"info"`
	// Error is one sentence with its remedy, non-null exactly when Status is failed.
	Error *string `json:"error"`
	// BytesDownloaded may fall when an attempt starts again.
	BytesDownloaded int64 `json:"bytes_downloaded"`
	// BytesTotal is 0 while unknown.
	BytesTotal int64 `json:"bytes_total"`
	// SlotID is null until finished, then a fact of history.
	SlotID *int `json:"slot_id"`
	// StartTime is the first start, kept across retries and restarts.
	StartTime *string `json:"start_time"`
	// URL is the one posted, without userinfo.
	URL string `json:"url"`

	SHA256  *string `json:"sha256"`
	EndTime *string `json:"end_time"`
	// BytesPerSecond is the recent rate while downloading, the average when finished.
	BytesPerSecond *int64 `json:"bytes_per_second"`
	ETASeconds     *int64 `json:"eta_seconds"`
	// Attempts counts the attempts begun, over all sources and restarts.
	Attempts int `json:"attempts"`
	// TLSVerified is null when no TLS was spoken yet.
	TLSVerified *bool `json:"tls_verified"`
	// ResumedFrom is the offset in bytes at which the last attempt went on; 0 if it began at the beginning.
	ResumedFrom int64 `json:"resumed_from"`
	// NextAttemptTime is when the next attempt comes; null unless the phase is waiting.
	NextAttemptTime *string `json:"next_attempt_time"`
	// RetryReason is one sentence on what the last attempt ended with; null unless the phase is waiting.
	RetryReason *string `json:"retry_reason"`
	// ErrorDetails is what Error is about, while waiting what RetryReason is about; null otherwise.
	ErrorDetails *Fault `json:"error_details"`
	// Deduplicated tells that the slot had the image already; mostly nothing was downloaded then.
	Deduplicated bool `json:"deduplicated"`
	// Phase is downloading, waiting, verifying or installing; null unless in-progress.
	Phase *string `json:"phase"`

	// QueuePosition counts from 1; null unless the fetch is queued and not paused.
	QueuePosition *int `json:"queue_position"`
	// Priority is 0 for most; the highest goes first.
	Priority int `json:"priority"`
	// Paused keeps the fetch queued until it is resumed.
	Paused bool `json:"paused"`
	// NotBefore and Window are as they were asked for.
	NotBefore *string `json:"not_before"`
	Window    *string `json:"window"`
	// EligibleTime is when the time of a queued fetch comes; null if it has come.
	EligibleTime *string `json:"eligible_time"`
	// RateLimit is in bytes a second; null for none of its own.
	RateLimit *int64 `json:"rate_limit"`
	// ChecksumURL is where the SHA-256 was to be read from; null if the request had it.
	ChecksumURL *string `json:"checksum_url"`
}

// Fault is what kind of failure an error of a fetch is. The code decides the rest.
type Fault struct {
	// Code is a row of docs/errors.md, or a number of which it has the hundred: http_418 is http_4xx.
	Code string `json:"code"`
	// Class is temporary, human or permanent.
	Class string `json:"class"`
	// Remedy is what an admin can do; empty where nothing but waiting helps.
	Remedy string `json:"remedy"`
	// Doc is the row, as a file and an anchor.
	Doc string `json:"doc"`
}

// FetchList is the whole queue, oldest first, not paged.
type FetchList struct {
	Items []Fetch `json:"items"`
	Meta  Meta    `json:"meta"`
}

// FetchRequest is the body of POST /api/firmware/fetch as the client writes it. The agent reads it field by
// field (see fetch.ParseRequest), because keys must match exactly.
type FetchRequest struct {
	URL string `json:"url"`
	// Checksum may only be left out of a dry run.
	Checksum    Checksum     `json:"checksum,omitzero"`
	SlotID      *int         `json:"slot_id,omitempty"`
	Credentials *Credentials `json:"credentials,omitempty"`
	TLS         *TLS         `json:"tls,omitempty"`
	Mirrors     []string     `json:"mirrors,omitempty"`
	Force       bool         `json:"force,omitempty"`
	Signature   *Signature   `json:"signature,omitempty"`
	FetchSchedule
}

// FetchSchedule says when, in which order and how fast. A request that leaves a field out leaves it as it is.
type FetchSchedule struct {
	Paused   *bool `json:"paused,omitempty"`
	Priority *int  `json:"priority,omitempty"`
	// RateLimit is in bytes a second, 0 for none.
	RateLimit *int64 `json:"rate_limit,omitempty"`
	// NotBefore is by RFC 3339, Window is HH:MM-HH:MM; empty for none.
	NotBefore *string `json:"not_before,omitempty"`
	Window    *string `json:"window,omitempty"`
}

// FetchChange is the body of PATCH /api/firmware/fetch/<key> as the client writes it.
type FetchChange struct {
	FetchSchedule
	// Position is first, last or before:KEY.
	Position string `json:"position,omitempty"`
}

// Checksum holds the digests wanted, in hex, or the URL of a file that has the SHA-256.
type Checksum struct {
	SHA256 string `json:"sha256,omitempty"`
	SHA512 string `json:"sha512,omitempty"`
	URL    string `json:"url,omitempty"`
}

// Credentials are for the origin of the request's url only.
type Credentials struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// TLS overrides the policy for servers whose certificate does not verify.
type TLS struct {
	Verify *bool  `json:"verify,omitempty"`
	CA     string `json:"ca,omitempty"`
}

// Slot is one slot document, and one item of the list (then without meta.parent).
type Slot struct {
	Key  string   `json:"key"`
	Body SlotBody `json:"body"`
	Meta Meta     `json:"meta"`
}

// SlotBody describes the image in a slot. The first five keys are those of SPS. The zero value means that the
// slot is empty and encodes as {}.
type SlotBody struct {
	Version      string  `json:"version"`
	Current      bool    `json:"current"`
	AfterReboot  bool    `json:"after_reboot"`
	UpgradeNotes string  `json:"upgrade_notes"`
	UpgradeNews  *string `json:"upgrade_news"`

	SHA256 string `json:"sha256"`
	// Size is in bytes.
	Size int64 `json:"size"`
	// Source is the URL the image came from, without userinfo, query and fragment.
	Source    string  `json:"source"`
	FetchedAt *string `json:"fetched_at"`
	// VolumeID is the ISO 9660 volume identifier, empty when the image is no ISO.
	VolumeID string `json:"volume_id"`
	// State is ok, not-iso when the image is no ISO 9660 file system, damaged when the slot is not whole, or degraded when
	// the image was found not to have its digest any more.
	State string `json:"state"`
	// ScrubbedAt is when the image was last read as a whole; null if never.
	ScrubbedAt *string `json:"scrubbed_at"`
	// Pinned keeps the image from being deleted or evicted.
	Pinned bool `json:"pinned"`
	// Label is what people call the image; empty if nothing.
	Label string `json:"label"`
	// SignedBy is the id of the key that signed the image's manifest; empty if it had none.
	SignedBy string `json:"signed_by"`
	// These are from there, else from the manifest inside the image; empty if it does not say. MinVersion is the lowest version
	// that may replace the image, UpgradeFrom the lowest from which it may be activated.
	Product     string `json:"product"`
	MinVersion  string `json:"min_version"`
	UpgradeFrom string `json:"upgrade_from"`
}

// Empty tells whether the slot holds no image.
func (b SlotBody) Empty() bool { return b == SlotBody{} }

// MarshalJSON writes {} for an empty slot: clients count those.
func (b SlotBody) MarshalJSON() ([]byte, error) {
	if b.Empty() {
		return []byte("{}"), nil
	}
	type fields SlotBody
	return json.Marshal(fields(b))
}

// SlotList lists every slot in number order, empty ones too.
type SlotList struct {
	Key   string       `json:"key"`
	Body  SlotsSummary `json:"body"`
	Items []Slot       `json:"items"`
	Meta  SlotsMeta    `json:"meta"`
}

// SlotsSummary is the body of the slot list.
type SlotsSummary struct {
	NumberOfSlots      int `json:"number_of_slots"`
	NumberOfEmptySlots int `json:"number_of_empty_slots"`
}

// SlotsMeta links the current slot and the one that boots next; null where unknown.
type SlotsMeta struct {
	Href               string  `json:"href"`
	Parent             string  `json:"parent"`
	CurrentSlot        *string `json:"current_slot"`
	SlotAfterReboot    *string `json:"slot_after_reboot"`
	NumberOfEmptySlots int     `json:"number_of_empty_slots"`
}

// Index lists what lies below a path.
type Index struct {
	Items []IndexItem       `json:"items"`
	Meta  map[string]string `json:"meta"`
}

// IndexItem is one entry of an [Index].
type IndexItem struct {
	Key  string `json:"key"`
	Meta Meta   `json:"meta"`
}

// Info is the reply of GET /api/info.
type Info struct {
	Key  string   `json:"key"`
	Body InfoBody `json:"body"`
	Meta InfoMeta `json:"meta"`
}

// InfoBody says what box this is.
type InfoBody struct {
	Hostname    string `json:"hostname"`
	Domainname  string `json:"domainname"`
	Nickname    string `json:"nickname"`
	SupportLink string `json:"support_link"`

	// InfoSession is nil, and its keys are absent, for a caller without a session.
	*InfoSession
}

// InfoSession is what strangers are not told of a box.
type InfoSession struct {
	// Version and FirmwareVersion are the version of the current slot, null when no slot is current.
	Version         *string `json:"version"`
	FirmwareVersion *string `json:"firmware_version"`
	AgentVersion    string  `json:"agent_version"`
}

// InfoMeta carries the seconds until the caller's session ends if it stays idle; 0 without a session.
type InfoMeta struct {
	Href             string `json:"href"`
	Parent           string `json:"parent,omitempty"`
	RemainingSeconds int64  `json:"remaining_seconds"`
}

// Setup is the reply of GET /api/setup; Status is always completed.
type Setup struct {
	Status string   `json:"status"`
	Meta   InfoMeta `json:"meta"`
}

// UserInfo is the reply of GET /api/user_info.
type UserInfo struct {
	User      UserName   `json:"user"`
	Endpoints []Endpoint `json:"endpoints"`
	Meta      Meta       `json:"meta"`
}

// UserName names the caller and, beyond SPS, says the caller's role.
type UserName struct {
	Name string `json:"name"`
	Role string `json:"role"`
}

// Endpoint is one path and the methods that the caller may use on it.
type Endpoint struct {
	URL     string   `json:"url"`
	Methods []string `json:"methods"`
}

// LoginMethods is the reply of GET /api/authentication/login_methods.
type LoginMethods struct {
	LoginMethods []LoginMethod `json:"login_methods"`
	Meta         Meta          `json:"meta"`
}

// LoginMethod is one way to log in.
type LoginMethod struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

// ErrorReply is every reply with a status of 400 and above.
type ErrorReply struct {
	Error ErrorBody `json:"error"`
}

// ErrorBody says what was wrong; scripts branch on Type, people read Message.
type ErrorBody struct {
	Type    string         `json:"type"`
	Message string         `json:"message"`
	Code    string         `json:"code,omitempty"`
	Details map[string]any `json:"details"`
}
