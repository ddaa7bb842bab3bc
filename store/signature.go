package store

// SetSigned notes the signed manifest that was found for a fetch, with the SHA-256 that it promises. It may be repeated.
func (s *Store) SetSigned(key, sha256, signature string) (Fetch, error) {
	return s.change("note the signed manifest of", key, `sha256 = ?1, signature = ?2`, running+` AND coalesce(sha256, ?1) = ?1`, sha256, signature)
}
