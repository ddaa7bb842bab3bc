package api

// This file holds the JSON shapes of testing and activating a slot.

// SlotTest answers POST /api/firmware/test and POST /api/firmware/upgrade.
type SlotTest struct {
	Key  string       `json:"key"`
	Body SlotTestBody `json:"body"`
	Meta Meta         `json:"meta"`
}

// SlotTestBody has one line for each check.
type SlotTestBody struct {
	TestSummary string `json:"test_summary"`
	// UpgradeID is only in the answer of upgrade: the key of its entry in the history.
	UpgradeID string `json:"upgrade_id,omitempty"`
}

// SlotTestRequest is the body of POST /api/firmware/test as the client writes it.
type SlotTestRequest struct {
	SlotID int `json:"slot_id"`
}

// UpgradeRequest is the body of POST /api/firmware/upgrade as the client writes it.
type UpgradeRequest struct {
	SlotID int `json:"slot_id"`
	RollbackRequest
}

// RollbackRequest is the body of POST /api/firmware/rollback as the client writes it.
type RollbackRequest struct {
	Message string `json:"message,omitempty"`
	// Reboot is now, next or none.
	Reboot string `json:"reboot,omitempty"`
}

// Upgrade is one entry of the history, and one item of its list (then without meta.parent and meta.slot).
type Upgrade struct {
	Key  string      `json:"key"`
	Body UpgradeBody `json:"body"`
	Meta Meta        `json:"meta"`
}

// UpgradeBody says who activated which slot, why, and what became of it. All keys are always present.
type UpgradeBody struct {
	// Status is requested, activated, booted, reverting, confirmed or failed.
	Status string `json:"status"`
	// FromSlot and FromVersion are null if it was unknown which slot ran.
	FromSlot    *int    `json:"from_slot"`
	FromVersion *string `json:"from_version"`
	ToSlot      int     `json:"to_slot"`
	ToVersion   string  `json:"to_version"`
	SHA256      string  `json:"sha256"`
	// Message is the commit log, or empty.
	Message string `json:"message"`
	Reboot  string `json:"reboot"`
	// Rollback tells that it led back to the slot before.
	Rollback bool `json:"rollback"`
	// Reason is why it goes back or has failed, else null.
	Reason      *string `json:"reason"`
	RequestedBy string  `json:"requested_by"`
	RequestTime *string `json:"request_time"`
	// EndTime is null until confirmed or failed.
	EndTime *string `json:"end_time"`
}

// UpgradeList is the history, newest first.
type UpgradeList struct {
	Items []Upgrade `json:"items"`
	Meta  Meta      `json:"meta"`
}
