package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// ErrSilent is what reading the body of a request ends with when nothing came for the time that [Route.Idle] gives.
var ErrSilent = errors.New("nothing more of the body came in time")

const (
	// idlePace is how often the deadlines of a body are moved.
	idlePace = time.Second
	// restLimit is for what net/http itself reads of a body that the handler did not want.
	restLimit = time.Second
)

// longBody is the body of a request that may take as long as bytes come. It is for one goroutine.
type longBody struct {
	io.ReadCloser
	deadlines  *http.ResponseController
	idle, wait time.Duration
	stop       context.Context // of the server
	moved      time.Time       // when the deadlines were
	ended      bool
}

// readLong gives r a body that has no limit but idle, and that ends when the server stops. The caller calls end before
// it answers.
func (s *Server) readLong(w http.ResponseWriter, r *http.Request, idle, wait time.Duration) (long *http.Request, end func()) {
	b := &longBody{ReadCloser: r.Body, deadlines: http.NewResponseController(w), idle: idle, wait: wait, stop: s.stop}
	woken := make(chan struct{})
	unhook := context.AfterFunc(s.stop, func() {
		defer close(woken)
		_ = b.deadlines.SetReadDeadline(time.Now())
	})
	long = r.WithContext(r.Context()) // the server keeps r and looks at its body
	long.Body = b
	b.move(time.Now())
	return long, sync.OnceFunc(func() {
		if !unhook() {
			<-woken // the deadlines are only ours for as long as the handler runs
		}
		if !b.ended {
			_ = b.deadlines.SetReadDeadline(time.Now().Add(restLimit))
			_ = b.deadlines.SetWriteDeadline(time.Now().Add(writeLimit))
		}
	})
}

// move gives the client more time. Not all writers have deadlines; then there are none in the way.
func (b *longBody) move(now time.Time) {
	b.moved = now
	_ = b.deadlines.SetReadDeadline(now.Add(b.idle))
	_ = b.deadlines.SetWriteDeadline(now.Add(b.idle + b.wait + writeLimit)) // also for the 100 Continue
}

// Read reads what has come. Its errors are [ErrSilent], an *[Error] when the server stops, and those of the connection.
func (b *longBody) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(b.moved) >= idlePace && !b.ended {
		b.move(now)
	}
	if b.stop.Err() != nil { // only now: the deadline that says so may just have been moved
		return 0, stopping()
	}
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == nil:
	case err == io.EOF:
		b.ended = true
		// From now on the server reads on by itself to see whether the client goes away; the deadline would look like that.
		_ = b.deadlines.SetReadDeadline(time.Time{})
		_ = b.deadlines.SetWriteDeadline(time.Now().Add(b.wait + writeLimit))
	case b.stop.Err() != nil:
		err = stopping()
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = ErrSilent
	}
	return n, err
}

func stopping() *Error { return Unavailable("The agent is stopping.") }
