package ontap

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"slotfetch/api"
	"slotfetch/fetch/fetchtest"
	"slotfetch/store"
)

// reply is what a handler came to.
type reply struct {
	api.Reply
	err error
}

// post asks for a download, and waits as long as it may for its end.
func post(s *Server, url string) <-chan reply {
	out := make(chan reply, 1)
	go func() {
		body := fmt.Sprintf(`{"url":%q,"checksum":{"sha256":%q}}`, url, strings.Repeat("0", 64))
		r, err := s.postDownload(httptest.NewRequest(http.MethodPost, downloadPath+"?return_timeout=120", strings.NewReader(body)))
		out <- reply{r, err}
	}()
	return out
}

// accepted wants a 202, well before 120 s.
func accepted(t *testing.T, what string, out <-chan reply) {
	t.Helper()
	select {
	case r := <-out:
		if r.err != nil || r.Status != http.StatusAccepted {
			t.Errorf("%s: %+v, %v", what, r.Reply, r.err)
		}
	case <-time.After(fetchtest.Patience):
		t.Fatalf("%s: it is still held", what)
	}
}

// held is a job that works until release is called, and a request that waits for it.
func held(t *testing.T, s *Server, id string) (out <-chan reply, release func()) {
	t.Helper()
	gate, began := make(chan struct{}), make(chan struct{})
	s.mu.Lock()
	s.validating = id
	s.mu.Unlock()
	_, err := s.run(describeUpdate, id, "Working", ann, func(context.Context) finding {
		close(began)
		<-gate
		return finding{message: "success"}
	})
	check(t, err)
	<-began
	c := make(chan reply, 1)
	go func() {
		row, err := s.await(t.Context(), id, 2*time.Minute)
		if err == nil {
			r, err := answer(row, time.Minute, http.StatusOK)
			c <- reply{r, err}
			return
		}
		c <- reply{err: err}
	}()
	return c, func() { close(gate) }
}

// TestHeldAtStop: when the agent stops, who waits is told that the job goes on.
func TestHeldAtStop(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s := b.open(t)
	server := fetchtest.NewHTTP(t, nil)
	out := post(s, server.Handle("/x.iso", fetchtest.Mute))
	eventually(t, "the download runs", func() bool {
		f, err := b.cfg.Fetch.Foremost(t.Context())
		return err == nil && f.Status == store.InProgress
	})
	check(t, b.cfg.Fetch.Close())
	accepted(t, "a download", out)

	out, release := held(t, s, "44444444-4444-4444-8444-444444444444")
	s.stop()
	accepted(t, "a test", out)
	release()
}

// TestManyHeld: more requests than may wait are answered at once.
func TestManyHeld(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s := b.open(t)
	for range 64 {
		leave, ok := b.cfg.Fetch.Waiter()
		defer leave()
		if !ok {
			t.Fatal("too few may wait")
		}
	}
	server := fetchtest.NewHTTP(t, nil)
	accepted(t, "a download", post(s, server.Handle("/x.iso", fetchtest.Mute)))
	out, release := held(t, s, "55555555-5555-4555-8555-555555555555")
	defer release()
	accepted(t, "a test", out)
}
