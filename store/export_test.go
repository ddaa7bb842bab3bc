package store

import "database/sql"

// Writer and Reader are the two connection pools, so that tests can look at their settings.
func (s *Store) Writer() *sql.DB { return s.w }

// Reader is the read-only pool.
func (s *Store) Reader() *sql.DB { return s.r }

// Page is the number of rows that one read of Fetches spans.
const Page = page

// Waiting is how many wait for their turn to share a transaction.
func (s *Store) Waiting() int {
	s.turns.mu.Lock()
	defer s.turns.mu.Unlock()
	return len(s.turns.waiting)
}
