package store

import (
	"context"
	"database/sql"
	"errors"
	"sync"
)

// turns are the callers of together that wait for the connection that writes.
type turns struct {
	mu      sync.Mutex
	waiting []*turn
}

type turn struct {
	f    func(tx *sql.Tx) error
	err  error
	done chan struct{}
}

func (t *turns) take() []*turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.waiting
	t.waiting = nil
	return all
}

// errPanic is what the others get when one of those who shared a transaction panicked.
var errPanic = errors.New("another write in the same transaction panicked")

// together is like update, but all that wait for their turn at the same time share one transaction, and so one flush to the
// disk. The first of them does the work of all, in the order in which they came. One that fails takes no other along.
func (s *Store) together(f func(tx *sql.Tx) error) (err error) {
	own := &turn{f: f, done: make(chan struct{})}
	s.turns.mu.Lock()
	s.turns.waiting = append(s.turns.waiting, own)
	first := len(s.turns.waiting) == 1
	s.turns.mu.Unlock()
	if !first {
		<-own.done
		return own.err
	}
	var all []*turn
	shared := errPanic
	defer func() {
		if all == nil { // there was no connection to be had
			all = s.turns.take()
		}
		for _, t := range all {
			if shared != nil { // also if it has an error of its own: what it saw of the others did not last
				t.err = shared
			}
			close(t.done)
		}
		err = own.err
	}()
	shared = s.write(func(c *sql.Conn) error {
		all = s.turns.take() // those who come from now on wait for another
		return inOne(c, all)
	})
	return nil // the deferred function knows better
}

// inOne runs all in one transaction. Its error is that of all; without one, each has its own.
func inOne(c *sql.Conn, all []*turn) error {
	tx, err := c.BeginTx(context.Background(), nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit it has nothing to do
	for _, t := range all {
		if _, err := tx.Exec("SAVEPOINT turn"); err != nil {
			return err
		}
		if t.err = t.f(tx); t.err != nil {
			// Some errors, such as a full disk, have undone the whole transaction already.
			if _, err := tx.Exec("ROLLBACK TO turn"); err != nil {
				return t.err
			}
		}
		if _, err := tx.Exec("RELEASE turn"); err != nil {
			return err
		}
	}
	return tx.Commit()
}
