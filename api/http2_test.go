package api_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"testing"

	"slotfetch/api"
)

// Over HTTP/2 "Connection: close" ends the whole connection: net/http says GOAWAY and closes, and a client that is still
// sending its body may never see the answer. curl 7.88 loses it.
func TestRefusalOverHTTP2(t *testing.T) {
	b := newBox(t)
	srv := httptest.NewUnstartedServer(b.server)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	for i := range 3 {
		r, err := http.NewRequest("POST", srv.URL+"/api/fetch", strings.NewReader(strings.Repeat("x", 2*api.MaxBody)))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Cookie", b.session["operator"])
		reused := false
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused }}))
		resp, err := srv.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.ProtoMajor != 2 || resp.StatusCode != 413 || !strings.Contains(string(body), "RequestTooLarge") {
			t.Errorf("%s %d %q, %v", resp.Proto, resp.StatusCode, body, err)
		}
		if reused != (i > 0) {
			t.Errorf("request %d: reused is %v", i, reused)
		}
	}
}
