package slots

import "slotfetch/api"

// Document is slot on the wire, as in the list of slots.
func Document(slot Slot) api.Slot { return document(slot, "") }

// Key is that of the fetch, or the upload, that the Writer belongs to.
func (w *Writer) Key() string { return w.key }
