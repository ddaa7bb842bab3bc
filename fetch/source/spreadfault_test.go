package source_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

// bounds are the first and last byte of a range with an end.
func bounds(r *http.Request) (from, to int64, ok bool) {
	n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
	return from, to, n == 2
}

// partial answers a range with an end, without saying how many bytes come.
func (s *ranged) partial(w http.ResponseWriter, from, to int64) {
	w.Header().Set("ETag", s.etag.Load().(string))
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, s.img.Size()))
	w.WriteHeader(http.StatusPartialContent)
}

func (s *ranged) bytes(from, to int64) []byte {
	b := make([]byte, to-from+1)
	_, _ = s.img.ReadAt(b, from)
	return b
}

// hangUp closes the connection.
func hangUp(w http.ResponseWriter) {
	if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
		conn.Close()
	}
}

// TestSpreadFaults has servers that answer single ranges badly: the whole image comes all the same.
func TestSpreadFaults(t *testing.T) {
	img := fetchtest.NewImage(64, 6*mib+345)
	for _, tc := range []struct {
		name   string
		before func(s *ranged) func(http.ResponseWriter, *http.Request, int64) bool
	}{
		{"it answers only once", func(s *ranged) func(http.ResponseWriter, *http.Request, int64) bool {
			return func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
				if s.asked.Load() > 1 {
					w.WriteHeader(http.StatusForbidden)
					return true
				}
				return false
			}
		}},
		{"it forbids ranges after a while", func(s *ranged) func(http.ResponseWriter, *http.Request, int64) bool {
			return func(w http.ResponseWriter, r *http.Request, _ int64) bool {
				if from, _, ok := bounds(r); ok && from > 3*mib {
					w.WriteHeader(http.StatusForbidden)
					return true
				}
				return false
			}
		}},
		{"chunks without an end", func(s *ranged) func(http.ResponseWriter, *http.Request, int64) bool {
			return func(w http.ResponseWriter, r *http.Request, _ int64) bool {
				from, to, ok := bounds(r)
				if ok {
					s.partial(w, from, to)
					_, _ = w.Write(s.bytes(from, to))
					_ = http.NewResponseController(w).Flush()
					<-r.Context().Done()
				}
				return ok
			}
		}},
		{"more than asked for", func(s *ranged) func(http.ResponseWriter, *http.Request, int64) bool {
			return func(w http.ResponseWriter, r *http.Request, _ int64) bool {
				from, to, ok := bounds(r)
				if ok {
					s.partial(w, from, to)
					_, _ = w.Write(s.bytes(from, to))
					_, _ = w.Write(make([]byte, mib))
				}
				return ok
			}
		}},
		{"less than asked for, in order", func(s *ranged) func(http.ResponseWriter, *http.Request, int64) bool {
			return func(w http.ResponseWriter, r *http.Request, _ int64) bool {
				from, to, ok := bounds(r)
				if ok {
					s.partial(w, from, to)
					_, _ = w.Write(s.bytes(from, max(from, to-1000)))
				}
				return ok
			}
		}},
		{"it closes after each answer", func(*ranged) func(http.ResponseWriter, *http.Request, int64) bool {
			return func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
				w.Header().Set("Connection", "close")
				return false
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ignore := goleak.IgnoreCurrent()
			t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
			s := newRanged(t, img, func(s *ranged) { s.before = tc.before(s) })
			start := time.Now()
			readAll(t, spreading(t, 4), source.Request{URL: parse(t, s.URL+"/x.iso")}, img, 0, source.Validator{})
			if took := time.Since(start); took >= fetchtest.Patience {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// TestSpreadContinues breaks a range in its middle: only what is missing of it is asked for again.
func TestSpreadContinues(t *testing.T) {
	img := fetchtest.NewImage(65, 6*mib)
	var mu sync.Mutex
	var asked []int64 // where ranges begin
	var once atomic.Bool
	s := newRanged(t, img, func(s *ranged) {
		s.before = func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			from, to, ok := bounds(r)
			if !ok {
				return false
			}
			mu.Lock()
			asked = append(asked, from)
			mu.Unlock()
			if from != 2*mib || !once.CompareAndSwap(false, true) {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(to-from+1))
			s.partial(w, from, to)
			_, _ = w.Write(s.bytes(from, from+100*kib-1))
			_ = http.NewResponseController(w).Flush()
			hangUp(w)
			return true
		}
	})
	readAll(t, spreading(t, 4), source.Request{URL: parse(t, s.URL+"/x.iso")}, img, 0, source.Validator{})
	mu.Lock()
	defer mu.Unlock()
	if !slices.Contains(asked, 2*mib+100*kib) {
		t.Errorf("ranges from %v", asked)
	}
}

// TestSpreadHandsOn has ranges of which only the beginning has come: it is handed on.
func TestSpreadHandsOn(t *testing.T) {
	img := fetchtest.NewImage(66, 6*mib)
	release := make(chan struct{})
	s := newRanged(t, img, func(s *ranged) {
		s.before = func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			from, to, ok := bounds(r)
			if ok {
				s.partial(w, from, to)
				_, _ = w.Write(s.bytes(from, from+999))
				_ = http.NewResponseController(w).Flush()
				<-release
				_, _ = w.Write(s.bytes(from+1000, to))
			}
			return ok
		}
	})
	ctx, stop := context.WithTimeout(t.Context(), 2*fetchtest.Patience)
	defer stop()
	st, err := spreading(t, 4).Open(ctx, source.Request{URL: parse(t, s.URL+"/x.iso")}, 0, source.Validator{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	head := make([]byte, 128*kib+1000) // the first connection's part, and what has come of the first range
	_, err = io.ReadFull(st, head)
	close(release)
	rest, rerr := io.ReadAll(st)
	if err != nil || rerr != nil || !bytes.Equal(append(head, rest...), img.Bytes()) {
		t.Errorf("%v, then %d bytes, %v", err, len(rest), rerr)
	}
}

// TestSpreadTrickle has a server that sends a byte of each range now and then: it is too slow, however many there are.
func TestSpreadTrickle(t *testing.T) {
	img := fetchtest.NewImage(67, 6*mib)
	s := newRanged(t, img, func(s *ranged) {
		s.before = func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			from, to, ok := bounds(r)
			if !ok {
				if r.Header.Get("Range") == "" {
					return false
				}
				from, to = 128*kib, s.img.Size()-1
			}
			s.partial(w, from, to)
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for ; from <= to; from++ {
				if _, err := w.Write(s.bytes(from, from)); err != nil {
					break
				}
				_ = http.NewResponseController(w).Flush()
				select {
				case <-tick.C:
				case <-r.Context().Done():
					return true
				}
			}
			return true
		}
	})
	cfg := patient()
	cfg.Connections, cfg.LowSpeedLimit, cfg.LowSpeedTime = 4, 16*kib, 100*time.Millisecond
	c := client(t, cfg)
	c.Spread(1*mib, 128*kib, 0, math.Inf(1), 0)
	ctx, stop := context.WithTimeout(t.Context(), fetchtest.Patience)
	defer stop()
	st, err := c.Open(ctx, source.Request{URL: parse(t, s.URL+"/x.iso")}, 0, source.Validator{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	_, err = io.Copy(io.Discard, st)
	var e *source.Error
	if !errors.As(err, &e) || e.Code != "low_speed" || e.Class != source.Temporary {
		t.Errorf("got %v", err)
	}
}

// TestSpreadCertificates has a server whose certificate verifies on its first connections only. What the first one
// promised is not broken quietly: it goes on alone, or, if it is given up already, whoever allowed it gets another attempt.
func TestSpreadCertificates(t *testing.T) {
	img := fetchtest.NewImage(68, 6*mib)
	for _, tc := range []struct {
		name   string
		policy source.Verify
		good   int64
		code   string // empty: all of it comes
	}{
		{"the first only", source.VerifyAuto, 1, ""},
		{"the first only", source.VerifyAlways, 1, ""},
		{"some", source.VerifyAuto, 4, "certificate_changed"},
		{"some", source.VerifyNever, 4, "certificate_changed"},
		{"some", source.VerifyAlways, 4, "certificate"},
		{"all", source.VerifyAlways, math.MaxInt64, ""},
	} {
		t.Run(fmt.Sprint(tc.name, " ", tc.policy), func(t *testing.T) {
			var shown atomic.Int64
			good, bad := ca.Certificate(fetchtest.Good), ca.Certificate(fetchtest.SelfSigned)
			s := &ranged{img: img}
			s.etag.Store(`"one"`)
			s.before = func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
				w.Header().Set("Connection", "close") // a new handshake for each
				return false
			}
			s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				if shown.Add(1) <= tc.good {
					return &good, nil
				}
				return &bad, nil
			}}
			s.StartTLS()
			t.Cleanup(s.Close)
			url := parse(t, strings.Replace(s.URL, "127.0.0.1", "localhost", 1)+"/x.iso")
			st, err := spreading(t, 4).Open(t.Context(), source.Request{URL: url, Verify: tc.policy, SHA256: img.SHA256()}, 0, source.Validator{})
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			if st.TLSVerified == nil || !*st.TLSVerified {
				t.Error("not verified")
			}
			n, err := io.Copy(io.Discard, st)
			var e *source.Error
			if tc.code == "" && (n != img.Size() || err != nil) ||
				tc.code != "" && (!errors.As(err, &e) || e.Code != tc.code || (e.Class == source.Temporary) != (tc.policy != source.VerifyAlways) || n == img.Size()) {
				t.Errorf("%d bytes, %#v", n, err)
			}
		})
	}
}

// TestSpreadRedirects has each range redirected to another origin: credentials stay at the first one.
func TestSpreadRedirects(t *testing.T) {
	img := fetchtest.NewImage(69, 6*mib)
	var secrets, hops atomic.Int64
	behind := newRanged(t, img, func(s *ranged) {
		s.before = func(_ http.ResponseWriter, r *http.Request, _ int64) bool {
			if _, _, ok := r.BasicAuth(); ok {
				secrets.Add(1)
			}
			return false
		}
	})
	front := newRanged(t, img, func(s *ranged) {
		s.before = func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			if u, p, _ := r.BasicAuth(); u != "admin" || p != "s3cret" {
				t.Error("no credentials")
			}
			hops.Add(1)
			http.Redirect(w, r, behind.URL+"/x.iso", http.StatusMovedPermanently)
			return true
		}
	})
	req := source.Request{URL: parse(t, strings.Replace(front.URL, "127.0.0.1", "localhost", 1)+"/x.iso"), Credentials: credentials()}
	readAll(t, spreading(t, 4), req, img, 0, source.Validator{})
	if secrets.Load() > 0 || hops.Load() < 10 || hops.Load() != behind.asked.Load() {
		t.Errorf("%d requests, %d of them redirected, %d with credentials", behind.asked.Load(), hops.Load(), secrets.Load())
	}
}
