package source_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

const wholeHeader = "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 5\r\n\r\n"

// TestHTTPHeaderCut: wherever in its header an answer ends, it is the connection that broke, and another attempt may help.
func TestHTTPHeaderCut(t *testing.T) {
	ca := fetchtest.NewCA()
	for scheme, conf := range map[string]*tls.Config{"http": nil, "https": ca.TLS(fetchtest.Good)} {
		s := fetchtest.NewHTTP(t, conf)
		for n := range len(wholeHeader) {
			for _, reset := range []bool{false, true} {
				t.Run(fmt.Sprint(scheme, " after ", n, " reset ", reset), func(t *testing.T) {
					url := s.Handle("/x.iso", func(x *fetchtest.Exchange) {
						x.Printf("%s", wholeHeader[:n])
						x.Cut(reset)
					})
					got, _ := attempt(t, patient(), source.Request{URL: parse(t, url), CA: ca.PEM}, image, 0, source.Validator{})
					wantOutcome(t, failure(source.Temporary, "broken", broke), got)
				})
			}
		}
	}
}

// TestHTTPHeaderStalls is the same with a server that falls silent.
func TestHTTPHeaderStalls(t *testing.T) {
	s := fetchtest.NewHTTP(t, nil)
	for _, n := range []int{3, 8, 11, 20, 45} {
		t.Run(fmt.Sprint("after ", n), func(t *testing.T) {
			url := s.Handle("/x.iso", func(x *fetchtest.Exchange) {
				x.Printf("%s", wholeHeader[:n])
				x.Stall()
			})
			got, _ := attempt(t, quick(100*time.Millisecond), source.Request{URL: parse(t, url)}, image, 0, source.Validator{})
			wantOutcome(t, failure(source.Temporary, "stalled", silent), got)
		})
	}
}

// TestProxyHeaderCut is the same with the answer of a proxy to CONNECT.
func TestProxyHeaderCut(t *testing.T) {
	const opened = "HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n"
	for n := range len(opened) {
		t.Run(fmt.Sprint("after ", n), func(t *testing.T) {
			addr := fetchtest.Listen(t, "", func(c net.Conn) {
				_, _ = c.Read(make([]byte, 64*kib))
				fmt.Fprint(c, opened[:n])
			})
			cfg := patient()
			cfg.Proxy = &httpproxy.Config{HTTPSProxy: "http://" + addr}
			got, _ := attempt(t, cfg, source.Request{URL: parse(t, "https://198.51.100.1/x.iso"), SHA256: image.SHA256()}, image, 0, source.Validator{})
			wantOutcome(t, failure(source.Temporary, "broken", broke), got)
		})
	}
}
