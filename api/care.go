package api

// This file holds the JSON shapes of the care of slots, which SPS does not have.

// SlotChange is the body of PATCH /api/firmware/slots/<slot_id> as the client writes it. What is left out stays as it is.
type SlotChange struct {
	// Pinned keeps the image from being deleted or evicted.
	Pinned *bool `json:"pinned,omitempty"`
	// Label is at most 64 printable characters; empty for none.
	Label *string `json:"label,omitempty"`
}

// SlotPlan answers GET /api/firmware/slots/plan.
type SlotPlan struct {
	Body SlotPlanBody `json:"body"`
	Meta Meta         `json:"meta"`
}

// SlotPlanBody says whether an image would fit now, and where. All keys are always present.
type SlotPlanBody struct {
	// Size is the one asked for, in bytes.
	Size int64 `json:"size"`
	// Fits tells whether there is a slot and space.
	Fits bool `json:"fits"`
	// SlotID is the slot that would be used, null if there is none.
	SlotID *int `json:"slot_id"`
	// EvictsSlotID is the slot that would be emptied first, null if none.
	EvictsSlotID *int `json:"evicts_slot_id"`
	// Free is what slots may still take, and Gain what an eviction would add to it, in bytes.
	Free int64 `json:"free"`
	Gain int64 `json:"gain"`
	// Reserve is what is kept free on the file system besides, in bytes.
	Reserve int64 `json:"reserve"`
	// ReservedSlots are held by fetches or uploads that run.
	ReservedSlots []int `json:"reserved_slots"`
	// NumberOfEmptySlots counts the slots that are empty and not reserved.
	NumberOfEmptySlots int `json:"number_of_empty_slots"`
	// Message is one sentence on what would happen, or why it would not fit.
	Message string `json:"message"`
}

// Signature is a signed manifest in the request of a fetch.
type Signature struct {
	// Manifest is its text, byte for byte as it was signed.
	Manifest string `json:"manifest"`
	// Minisig is the signature that minisign made of it.
	Minisig string `json:"minisig"`
}

// Health is the reply of GET /healthz when the agent can do its work.
type Health struct {
	// Status is ok, or degraded when a slot needs somebody.
	Status string `json:"status"`
	// DegradedSlots are the numbers of the slots that are degraded or damaged; absent if there is none.
	DegradedSlots []int `json:"degraded_slots,omitempty"`
}
