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
}

// SlotTestRequest is the body of POST /api/firmware/test as the client writes it.
type SlotTestRequest struct {
	SlotID int `json:"slot_id"`
}
