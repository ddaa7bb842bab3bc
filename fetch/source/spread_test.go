package source_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

// ranged is a real HTTP server with ranges and kept connections, which notes how many answers it gives at a time.
type ranged struct {
	*httptest.Server
	img     *fetchtest.Image
	etag    atomic.Value
	before  func(http.ResponseWriter, *http.Request, int64) bool // may answer itself, and says so
	now     atomic.Int64
	most    atomic.Int64
	asked   atomic.Int64
	ranges  atomic.Int64
	ignores bool // ranges with an end
}

func newRanged(t *testing.T, img *fetchtest.Image, change func(*ranged)) *ranged {
	t.Helper()
	s := &ranged{img: img}
	s.etag.Store(`"one"`)
	if change != nil {
		change(s)
	}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.Config.ErrorLog = nil
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func (s *ranged) serve(w http.ResponseWriter, r *http.Request) {
	n := s.now.Add(1)
	defer s.now.Add(-1)
	s.asked.Add(1)
	for most := s.most.Load(); n > most && !s.most.CompareAndSwap(most, n); most = s.most.Load() {
	}
	if s.before != nil && s.before(w, r, n) {
		return
	}
	w.Header().Set("ETag", s.etag.Load().(string))
	if rng := r.Header.Get("Range"); s.ignores && rng != "" && !strings.HasSuffix(rng, "-") {
		r.Header.Del("Range")
	}
	http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(s.img, 0, s.img.Size()))
}

const mib = 1 << 20

// spreading is a client that spreads early, and at each look if any rate above 0 is growth; connections as in the
// configuration.
func spreading(t *testing.T, connections int) *source.Client {
	t.Helper()
	cfg := patient()
	cfg.Connections = connections
	c := client(t, cfg)
	c.Spread(1*mib, 128*kib, 0, math.Inf(1), 0)
	return c
}

// readAll reads the whole of req and compares it with img.
func readAll(t *testing.T, c *source.Client, req source.Request, img *fetchtest.Image, offset int64, v source.Validator) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 2*fetchtest.Patience)
	defer stop()
	s, err := c.Open(ctx, req, offset, v)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := io.ReadAll(s)
	if err != nil {
		t.Fatalf("after %d bytes: %v", len(got), err)
	}
	if !bytes.Equal(got, img.Bytes()[s.Offset:]) {
		t.Errorf("%d bytes, not those of the image", len(got))
	}
	if s.Offset != offset {
		t.Errorf("it began at %d, not at %d", s.Offset, offset)
	}
}

func TestSpread(t *testing.T) {
	img := fetchtest.NewImage(60, 12*mib+345)
	refuse := func(w http.ResponseWriter, _ *http.Request, n int64) bool {
		if n > 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		}
		return n > 1
	}
	var broken atomic.Int64
	cut := func(w http.ResponseWriter, r *http.Request, _ int64) bool {
		rng := r.Header.Get("Range")
		if rng == "" || strings.HasSuffix(rng, "-") || broken.Add(1) != 5 {
			return false
		}
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			conn.Close()
		}
		return true
	}
	// together holds each range back, but for some at the beginning, until n are under way at the same time.
	together := func(n int64) func(*ranged) {
		return func(s *ranged) {
			var once sync.Once
			all := make(chan struct{})
			s.before = func(_ http.ResponseWriter, r *http.Request, _ int64) bool {
				var from, to int64
				if k, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); k == 2 && from > 2*mib {
					if s.ranges.Add(1) == n {
						once.Do(func() { close(all) })
					}
					select {
					case <-all:
					case <-time.After(fetchtest.Patience):
					}
					s.ranges.Add(-1)
				}
				return false
			}
		}
	}
	for _, tc := range []struct {
		name        string
		connections int
		change      func(*ranged)
		most        int64 // ranges with an end that are under way at a time
	}{
		{"as many as bring more", 0, together(8), 8},
		{"only one is allowed", 1, nil, 0},
		{"four from the start", 4, together(4), 4},
		{"more than one are refused", 4, func(s *ranged) { s.before = refuse }, 4},
		{"ranges with an end are ignored", 4, func(s *ranged) { s.ignores = true }, 4},
		{"a connection breaks", 4, func(s *ranged) { s.before = cut }, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ignore := goleak.IgnoreCurrent()
			t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
			s := newRanged(t, img, tc.change)
			start := time.Now()
			readAll(t, spreading(t, tc.connections), source.Request{URL: parse(t, s.URL+"/x.iso")}, img, 0, source.Validator{})
			if got := s.most.Load(); got > tc.most+1 { // the first connection, which is given up, may overlap
				t.Errorf("%d connections at a time, want %d", got, tc.most)
			}
			if took := time.Since(start); took >= fetchtest.Patience {
				t.Errorf("there were never %d at a time", tc.most)
			}
		})
	}
	t.Run("resume", func(t *testing.T) {
		s := newRanged(t, img, nil)
		readAll(t, spreading(t, 4), source.Request{URL: parse(t, s.URL+"/x.iso")}, img, 5*mib+1, source.Validator{ETag: `"one"`, Size: img.Size()})
	})
	t.Run("too short to be worth it", func(t *testing.T) {
		short := fetchtest.NewImage(61, mib-1)
		s := newRanged(t, short, nil)
		readAll(t, spreading(t, 4), source.Request{URL: parse(t, s.URL+"/x.iso")}, short, 0, source.Validator{})
		if got := s.asked.Load(); got != 1 {
			t.Errorf("%d requests", got)
		}
	})
	t.Run("no proof that it is the same file", func(t *testing.T) {
		s := newRanged(t, img, func(s *ranged) { s.etag.Store(`W/"weak"`) })
		readAll(t, spreading(t, 4), source.Request{URL: parse(t, s.URL+"/x.iso")}, img, 0, source.Validator{})
		if got := s.asked.Load(); got != 1 {
			t.Errorf("%d requests", got)
		}
	})
}

// How many connections there are is decided by what the last step brought.
func TestMeter(t *testing.T) {
	const m = mib
	for _, tc := range []struct {
		name  string
		rates []float64 // of one window each
		want  []int     // connections after it
	}{
		{"each is limited", []float64{5 * m, 5 * m, 8 * m, 10 * m, 15 * m, 20 * m, 30 * m, 40 * m, 40 * m}, []int{1, 2, 2, 4, 4, 8, 8, 8, 8}},
		{"all are limited", []float64{5 * m, 5 * m, 5 * m, 5 * m, 5 * m, 9 * m}, []int{1, 2, 2, 1, 1, 1}},
		{"two are as good as four", []float64{5 * m, 5 * m, 8 * m, 10 * m, 10 * m, 10 * m, 99 * m}, []int{1, 2, 2, 4, 4, 2, 2}},
		{"a slow start is waited for", []float64{1 * m, 2 * m, 4 * m, 8 * m, 8 * m}, []int{1, 1, 1, 1, 2}},
		{"fast enough", []float64{90 * m, 90 * m, 90 * m, 90 * m}, []int{1, 1, 1, 1}},
		{"fast, then slow", []float64{90 * m, 90 * m, 9 * m, 9 * m}, []int{1, 1, 2, 2}},
	} {
		if got := source.Meter(tc.rates...); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// A file that changes under several connections is never put together from both: what comes is of the first one, all of it if the
// first connection goes on with it.
func TestSpreadChanged(t *testing.T) {
	img, other := fetchtest.NewImage(62, 12*mib), fetchtest.NewImage(63, 12*mib)
	s := newRanged(t, img, func(s *ranged) {
		s.before = func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			if s.asked.Load() < 20 {
				return false
			}
			w.Header().Set("ETag", `"two"`)
			http.ServeContent(w, r, "", time.Time{}, other.Reader())
			return true
		}
	})
	st, err := spreading(t, 4).Open(t.Context(), source.Request{URL: parse(t, s.URL+"/x.iso")}, 0, source.Validator{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	data, err := io.ReadAll(st)
	var e *source.Error
	switch {
	case !bytes.HasPrefix(img.Bytes(), data):
		t.Errorf("%d bytes are not of the first file: %v", len(data), err)
	case len(data) < len(img.Bytes()) && (!errors.As(err, &e) || e.Code != "bad_resume"), len(data) == len(img.Bytes()) && err != nil:
		t.Errorf("after %d bytes: %v", len(data), err)
	}
}

// A cancel ends all connections before Close returns.
func TestSpreadCancel(t *testing.T) {
	img := fetchtest.NewImage(63, 12*mib)
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	var stalled sync.WaitGroup
	stalled.Add(3)
	var once atomic.Int64
	s := newRanged(t, img, func(s *ranged) {
		s.before = func(_ http.ResponseWriter, r *http.Request, _ int64) bool {
			if s.asked.Load() < 8 {
				return false
			}
			if once.Add(1) <= 3 {
				stalled.Done()
			}
			<-r.Context().Done()
			return true
		}
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	st, err := spreading(t, 4).Open(ctx, source.Request{URL: parse(t, s.URL+"/x.iso")}, 0, source.Validator{})
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("gone")
	go func() {
		stalled.Wait()
		cancel(gone)
	}()
	if _, err := io.Copy(io.Discard, st); !errors.Is(err, gone) {
		t.Errorf("error %v", err)
	}
	if err := st.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// TestSpreadBack has a server on which a second connection brings nothing: there is one again, to the end of the file, and it
// is there before the last segment has come.
func TestSpreadBack(t *testing.T) {
	img := fetchtest.NewImage(65, 12*mib+345)
	for _, tc := range []struct {
		name   string
		refuse bool // the first request for the rest
		rests  int64
	}{
		{"at once", false, 1},
		{"the connection to the end is refused at first", true, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ignore := goleak.IgnoreCurrent()
			t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
			var rests, ranges atomic.Int64
			s := newRanged(t, img, func(s *ranged) {
				s.before = func(w http.ResponseWriter, r *http.Request, _ int64) bool {
					switch rng := r.Header.Get("Range"); {
					case strings.HasSuffix(rng, "-"):
						if rests.Add(1) == 1 && tc.refuse {
							w.WriteHeader(http.StatusServiceUnavailable)
							return true
						}
					case rng != "":
						ranges.Add(1)
					}
					return false
				}
			})
			c := spreading(t, 0)
			c.Spread(1*mib, 128*kib, 0, math.Inf(1), math.Inf(1)) // nothing is growth enough
			readAll(t, c, source.Request{URL: parse(t, s.URL+"/x.iso")}, img, 0, source.Validator{})
			if ranges.Load() == 0 || ranges.Load() > 4 || rests.Load() != tc.rests {
				t.Errorf("%d segments and %d requests for the rest", ranges.Load(), rests.Load())
			}
		})
	}
}

// Without proof, a file that has no strong entity tag comes over one connection.
func TestSpreadUnproved(t *testing.T) {
	img := fetchtest.NewImage(69, 8*mib)
	for unproved, spread := range map[bool]bool{false: true, true: false} {
		s := newRanged(t, img, func(s *ranged) {
			s.before = func(w http.ResponseWriter, r *http.Request, _ int64) bool {
				w.Header().Set("Last-Modified", "Mon, 04 May 2020 08:00:01 GMT")
				http.ServeContent(w, r, "", time.Date(2020, 5, 4, 8, 0, 1, 0, time.UTC), io.NewSectionReader(img, 0, img.Size()))
				return true
			}
		})
		readAll(t, spreading(t, 4), source.Request{URL: parse(t, s.URL+"/x.iso"), Unproved: unproved}, img, 0, source.Validator{})
		if got := s.asked.Load() > 1; got != spread {
			t.Errorf("unproved %v: asked %d times", unproved, s.asked.Load())
		}
	}
}
