package slots

// DeleteImage is [Slots.Delete] for whoever means an image, of that digest, and not whatever a slot may hold by now. The error
// also wraps [ErrEmpty] if the slot has another image, or is damaged.
func (s *Slots) DeleteImage(id int, sha256 string) error { return s.delete(id, sha256) }
