package ontap

import (
	"net/url"
	"strings"

	"slotfetch/api"
)

// This file holds the JSON shapes of the dialect. What is unset is left out: clients take neither "" nor null for a moment
// (contract section 2.3). The numbers that are codes are numbers, but the code of an error is a string (rule 6).

// Links has the one link that every resource has (rule 1).
type Links struct {
	Self Href `json:"self"`
}

// Href is one link.
type Href struct {
	Href string `json:"href"`
}

func link(href string) Links { return Links{Self: Href{Href: href}} }

// ErrorReply is every reply with a status of 400 and above.
type ErrorReply struct {
	Error Error `json:"error"`
}

// Error says what was wrong; Target is the field or parameter.
type Error struct {
	Message   string   `json:"message"`
	Code      string   `json:"code"`
	Target    string   `json:"target,omitempty"`
	Arguments []string `json:"arguments,omitempty"`
}

// JobReply answers whatever makes a job.
type JobReply struct {
	Job JobLink `json:"job"`
}

// JobLink names a job.
type JobLink struct {
	UUID  string `json:"uuid"`
	Links Links  `json:"_links"`
}

// Job is one job. State is queued, running, success or failure, never anything else (rule 3).
type Job struct {
	UUID        string  `json:"uuid"`
	Description string  `json:"description"`
	State       string  `json:"state"`
	Message     string  `json:"message"`
	Code        int     `json:"code"`
	Error       *Error  `json:"error,omitempty"`
	StartTime   *string `json:"start_time,omitempty"`
	EndTime     *string `json:"end_time,omitempty"`
	Node        Named   `json:"node"`
	// Progress is ours: of a download.
	Progress *Progress `json:"progress,omitempty"`
	Links    Links     `json:"_links"`
}

// Named is something with a name.
type Named struct {
	Name string `json:"name"`
}

// Download is the state of the one download that there is room to show.
type Download struct {
	// State is not_started, running, success or failure.
	State    string    `json:"state"`
	Message  string    `json:"message"`
	Code     int       `json:"code"`
	Progress *Progress `json:"progress,omitempty"`
	// Error is there exactly after a failure (rule 8).
	Error *Error `json:"error,omitempty"`
	Links Links  `json:"_links"`
}

// Progress counts bytes; Percent is null while the whole is unknown.
type Progress struct {
	BytesDownloaded int64  `json:"bytes_downloaded"`
	BytesTotal      int64  `json:"bytes_total"`
	Percent         *int64 `json:"percent"`
}

// Version is the release that clients are to take the box for; the product is in Full (rule 21).
type Version struct {
	Full       string `json:"full"`
	Generation int    `json:"generation"`
	Major      int    `json:"major"`
	Minor      int    `json:"minor"`
}

// Cluster is the box, and its one node too (rule 20).
type Cluster struct {
	Name                 string      `json:"name"`
	UUID                 string      `json:"uuid"`
	Version              Version     `json:"version"`
	ManagementInterfaces []Interface `json:"management_interfaces"`
	Links                Links       `json:"_links"`
}

// Interface is an address under which the box was reached.
type Interface struct {
	IP IP `json:"ip"`
}

// IP is an address.
type IP struct {
	Address string `json:"address"`
}

// Software is what the box runs, and what is being done about it.
type Software struct {
	Version        string `json:"version"`
	PendingVersion string `json:"pending_version,omitempty"`
	// State is completed, in_progress or failed.
	State string         `json:"state"`
	Nodes []SoftwareNode `json:"nodes"`
	// ValidationResults is nil, and absent, only while a validation runs.
	ValidationResults *[]Validation `json:"validation_results,omitempty"`
	UpdateDetails     []struct{}    `json:"update_details"`
	StatusDetails     []struct{}    `json:"status_details"`
	// Durations are in seconds, and there while the state is in_progress.
	ElapsedDuration   *int64 `json:"elapsed_duration,omitempty"`
	EstimatedDuration *int64 `json:"estimated_duration,omitempty"`
	Links             Links  `json:"_links"`
}

// SoftwareNode is what the one node runs.
type SoftwareNode struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Validation is one thing that speaks against an update.
type Validation struct {
	UpdateCheck string `json:"update_check"`
	// Status is warning or error.
	Status string `json:"status"`
	Issue  Text   `json:"issue"`
	Action Text   `json:"action"`
}

// Text is a sentence for people.
type Text struct {
	Message string `json:"message"`
}

// Package is an image that could be activated.
type Package struct {
	Version    string  `json:"version"`
	CreateTime *string `json:"create_time,omitempty"`
	SlotID     int     `json:"slot_id"`
	SHA256     string  `json:"sha256"`
	Size       int64   `json:"size"`
	Links      Links   `json:"_links"`
}

// History is an activation that is over. State is successful or canceled.
type History struct {
	Node        NodeRef `json:"node"`
	StartTime   *string `json:"start_time,omitempty"`
	EndTime     *string `json:"end_time,omitempty"`
	FromVersion string  `json:"from_version"`
	ToVersion   string  `json:"to_version"`
	State       string  `json:"state"`
}

// NodeRef names the node.
type NodeRef struct {
	Name string `json:"name"`
	UUID string `json:"uuid"`
}

// jobReply answers with a job: status is that of one which may run on.
func jobReply(status int, uuid, location string) api.Reply {
	reply := api.Reply{Status: status, Body: JobReply{Job: JobLink{UUID: uuid, Links: link(jobsPath + "/" + uuid)}}}
	if location != "" {
		reply.Header = map[string][]string{"Location": {location}} // without a query (rule 14)
	}
	return reply
}

// packageHref is where a package is. Its version is written so that nobody reads a + for a blank.
func packageHref(version string) string {
	return packagesPath + "/" + strings.ReplaceAll(url.PathEscape(version), "+", "%2B")
}
