package api_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"slotfetch/api"
)

// nobody has a session.
type nobody struct{}

func (nobody) Authenticate(*http.Request) (api.Principal, bool, error) {
	return api.Principal{}, false, nil
}

// What comes after the reply waits until the caller has all of it, by HTTP/1.1 and by HTTP/2, and is not done for a failure.
func TestAfter(t *testing.T) {
	t.Parallel()
	read, ran := make(chan struct{}), make(chan struct{}, 1)
	after := func() {
		select {
		case <-read:
		case <-time.After(10 * time.Second):
			t.Error("the caller has not got the body before")
		}
		ran <- struct{}{}
	}
	srv := httptest.NewUnstartedServer(api.NewServer(api.Config{Authenticator: nobody{}, Log: slog.New(slog.DiscardHandler), Routes: []api.Route{
		{Method: "POST", Path: "/ok", Access: api.Public, Handler: func(*http.Request) (api.Reply, error) {
			return api.Reply{Body: map[string]string{"text": strings.Repeat("x", 1000)}, After: after}, nil
		}},
		{Method: "POST", Path: "/fails", Access: api.Public, Handler: func(*http.Request) (api.Reply, error) {
			return api.Reply{After: func() { t.Error("it ran after a failure") }}, api.Conflict("no", nil)
		}},
	}}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	c := srv.Client()
	for _, proto := range []int{1, 2} {
		tr := c.Transport.(*http.Transport).Clone()
		tr.ForceAttemptHTTP2 = proto == 2
		if proto == 1 {
			tr.TLSClientConfig.NextProtos = []string{"http/1.1"}
		}
		c := &http.Client{Transport: tr}
		resp, err := c.Post(srv.URL+"/ok", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.ProtoMajor != proto {
			t.Fatalf("it speaks %s", resp.Proto)
		}
		body := make([]byte, resp.ContentLength)
		if _, err := io.ReadFull(resp.Body, body); err != nil || resp.ContentLength < 1000 {
			t.Fatalf("%d bytes: %v", len(body), err)
		}
		read <- struct{}{}
		<-ran
		resp.Body.Close()
		if resp, err := c.Post(srv.URL+"/fails", "", nil); err != nil || resp.StatusCode != 409 {
			t.Errorf("%v %v", resp, err)
		} else {
			resp.Body.Close()
		}
		tr.CloseIdleConnections()
	}
}
