package api_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"slotfetch/api"
)

// serverLimit is for a whole request, and for a whole answer, where a route does not say otherwise.
const serverLimit = 2 * time.Second

// anybody lets all in.
type anybody struct{}

func (anybody) Authenticate(*http.Request) (api.Principal, bool, error) {
	return api.Principal{}, true, nil
}

// longServer reads bodies on a route with that Idle, over HTTP/1 and 2. The server's own limits are too short for some.
func longServer(t *testing.T, idle time.Duration, reading chan<- struct{}) (*api.Server, *httptest.Server) {
	t.Helper()
	s := api.NewServer(api.Config{Authenticator: anybody{}, Log: slog.New(slog.DiscardHandler), Routes: []api.Route{{
		Method: http.MethodPost, Path: "/api/long", Idle: idle, Wait: api.Always(time.Minute),
		Handler: func(r *http.Request) (api.Reply, error) {
			if reading != nil {
				close(reading)
			}
			data, err := io.ReadAll(r.Body)
			if errors.Is(err, api.ErrSilent) {
				return api.Reply{}, api.Conflict("silent", nil)
			}
			if err != nil {
				return api.Reply{}, err
			}
			if len(data) == 6 {
				time.Sleep(serverLimit + 200*time.Millisecond)
			}
			if r.Context().Err() != nil {
				return api.Reply{}, r.Context().Err()
			}
			return api.Reply{Body: len(data)}, nil
		}}}})
	srv := httptest.NewUnstartedServer(s)
	srv.EnableHTTP2 = true
	srv.Config.ReadTimeout, srv.Config.WriteTimeout = serverLimit, serverLimit
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return s, srv
}

// send posts body over one of the two protocols.
func send(t *testing.T, srv *httptest.Server, http2 bool, body io.Reader) (status int, text string) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: http2} // its certificate is made up
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Post(srv.URL+"/api/long", "", body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if (resp.ProtoMajor == 2) != http2 {
		t.Fatalf("spoke %s", resp.Proto)
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

// slowly gives a byte at a time, with a pause before each.
type slowly struct{ n int }

func (s *slowly) Read(p []byte) (int, error) {
	if s.n == 0 {
		return 0, io.EOF
	}
	time.Sleep(serverLimit / 5)
	s.n--
	p[0] = 'x'
	return 1, nil
}

func TestLongBody(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", http2), func(t *testing.T) {
			t.Parallel()
			t.Run("slow", func(t *testing.T) {
				_, srv := longServer(t, time.Minute, nil)
				if status, text := send(t, srv, http2, &slowly{6}); status != 200 || strings.TrimSpace(text) != "6" {
					t.Errorf("%d %s", status, text)
				}
				if status, text := send(t, srv, http2, bytes.NewReader(make([]byte, 3<<20))); status != 200 || strings.TrimSpace(text) != "3145728" {
					t.Errorf("%d %s", status, text)
				}
				if status, text := send(t, srv, http2, nil); status != 200 || strings.TrimSpace(text) != "0" {
					t.Errorf("%d %s", status, text)
				}
			})
			t.Run("silent", func(t *testing.T) {
				_, srv := longServer(t, 100*time.Millisecond, nil)
				r, w := io.Pipe()
				defer w.Close()
				go w.Write([]byte("x"))
				if status, text := send(t, srv, http2, r); status != 409 || !strings.Contains(text, "silent") {
					t.Errorf("%d %s", status, text)
				}
			})
			t.Run("stopping", func(t *testing.T) {
				reading := make(chan struct{})
				s, srv := longServer(t, time.Minute, reading)
				r, w := io.Pipe()
				defer w.Close()
				go func() {
					_, _ = w.Write([]byte("x"))
					<-reading
					s.Stopping()
				}()
				if status, text := send(t, srv, http2, r); status != 503 || !strings.Contains(text, "stopping") {
					t.Errorf("%d %s", status, text)
				}
			})
		})
	}
}
