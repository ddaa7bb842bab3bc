package ontap

import (
	"context"
	"errors"
	"net/http"

	"slotfetch/api"
	"slotfetch/store"
)

// This file lists jobs. There may be very many, so that they are looked at one by one.

const (
	// maxLists is how many lists of jobs are made at a time; the others wait.
	maxLists = 4
	// piece is how many rows are read at a time.
	piece = 500
)

// getJobs lists what was asked for, oldest first: downloads by when they were accepted, the others by when they began.
func (s *Server) getJobs(r *http.Request) (api.Reply, error) {
	q, err := readQuery(r, jobFields.names(), nil)
	if err != nil {
		return api.Reply{}, err
	}
	node, err := s.name()
	if err != nil {
		return api.Reply{}, err
	}
	select {
	case s.lists <- struct{}{}:
		defer func() { <-s.lists }()
	case <-r.Context().Done():
		return api.Reply{}, failed(codeUnhealthy, "", "Other lists of jobs come first. Try again in a moment.")
	}
	p := pager[Job]{q: q, f: jobFields}
	if err := s.eachJob(r.Context(), node, p.add); err != nil && !errors.Is(err, errFull) {
		return api.Reply{}, err
	}
	return p.reply(), nil
}

// eachJob calls yield for every job, oldest first. After the clock was set back, that holds for downloads and for the others, but
// not for one beside the other.
func (s *Server) eachJob(ctx context.Context, node string, yield func(Job) error) error {
	var rows []store.Job // the others, as far as they are read
	last, more := int64(0), true
	// others yields those that come before f, or all that are left.
	others := func(f *store.Fetch) error {
		for {
			if len(rows) == 0 && more {
				var err error
				if rows, err = s.rows(func() ([]store.Job, error) { return s.cfg.Store.Jobs(ctx, last, piece) }); err != nil {
					return err
				}
				more = len(rows) == piece
			}
			if len(rows) == 0 || f != nil && rows[0].StartTime.After(f.CreatedAt) {
				return nil
			}
			j, err := s.other(ctx, rows[0], node)
			if err == nil {
				err = yield(j)
			}
			if err != nil {
				return err
			}
			last, rows = rows[0].Seq, rows[1:]
		}
	}
	err := s.cfg.Fetch.Each(ctx, func(f store.Fetch) error {
		if err := others(&f); err != nil {
			return err
		}
		return yield(s.download(f, node))
	})
	if err != nil {
		return err
	}
	return others(nil)
}
