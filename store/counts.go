package store

import (
	"context"
	"fmt"
)

// Counts is how many fetches have each status; a status that none has is not in it.
func (s *Store) Counts(ctx context.Context) (map[Status]int64, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT status, count(*) FROM fetches GROUP BY status`)
	if err != nil {
		return nil, fmt.Errorf("cannot count fetches: %w", err)
	}
	defer rows.Close()
	counts := map[Status]int64{}
	for rows.Next() {
		var status Status
		var n int64
		if err := rows.Scan(&status, &n); err != nil {
			return nil, fmt.Errorf("cannot count fetches: %w", err)
		}
		counts[status] = n
	}
	return counts, rows.Err()
}
