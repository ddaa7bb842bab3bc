package api

// This file holds the JSON shapes of POST /api/upload/firmware.

// Upload answers an upload: the slot that has the image now.
type Upload struct {
	Key  string     `json:"key"`
	Body SlotBody   `json:"body"`
	Meta UploadMeta `json:"meta"`
}

// UploadMeta has the links of an [Upload].
type UploadMeta struct {
	Href               string `json:"href"`
	Slot               string `json:"slot"`
	Test               string `json:"test"`
	Upgrade            string `json:"upgrade"`
	NumberOfEmptySlots int    `json:"number_of_empty_slots"`
}
