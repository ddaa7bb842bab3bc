package main_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

const (
	trafficSize       = 40 << 20
	trafficCheckpoint = 8 << 20
	// inFlight is what an unlucky kill may cost beyond the checkpoint: what is in the agent's four buffers of 1 MiB, and in
	// the two sockets.
	inFlight = 4<<20 + 2*socketBuffer
	// socketBuffer is what the kernel doubles for its own needs, in bytes.
	socketBuffer = 512 << 10
)

// TestTortureTraffic kills the agent at random while it downloads large images from an origin that also breaks off. All
// that the origin sent is at most 1.02 times what was ordered and one checkpoint interval for each kill; for a single
// image, what was in flight comes on top. SLOTFETCH_TRAFFIC is the number of kills.
func TestTortureTraffic(t *testing.T) {
	t.Parallel()
	kills, seed := setting(t, "SLOTFETCH_TRAFFIC", 4), setting(t, "SLOTFETCH_SEED", uint64(time.Now().UnixNano()))
	rng := rand.New(rand.NewPCG(seed, 4))
	img := fetchtest.NewImage(90, trafficSize)
	o := newCountingOrigin(t, img)
	a := startAgent(t, fmt.Sprintf("[slots]\ncount = 2\nreserve = 0\n[fetch]\ncheckpoint_bytes = %d\n", trafficCheckpoint))
	c := a.loginAdmin(t)
	var cost []int64 // of the kills of each fetch, beyond the image, in bytes a kill
	var total int64
	n, killed := 0, 0
	for ; killed < kills; n++ {
		job := c.fetch(t, fmt.Sprintf("%s/%d", o.url, n), img.SHA256())
		hurt := 0
		for range 1 + rng.IntN(3) {
			before := o.sentOf(n)
			most := before + rng.Int64N(trafficSize/3)
			done := false
			c.await(t, job, "so many bytes", func(r reply) bool {
				done = r.get("body.end_time") != nil
				return done || o.sentOf(n) > most
			})
			if done {
				break
			}
			a.restart(t, syscall.SIGKILL)
			hurt++
		}
		killed += hurt
		c.awaitStatus(t, job, "finished")
		sent := o.sentOf(n)
		total += sent
		if limit := trafficSize*102/100 + int64(hurt)*(trafficCheckpoint+inFlight); sent > limit {
			t.Errorf("SLOTFETCH_SEED=%d: fetch %d: %d bytes sent for %d with %d kills, at most %d are allowed", seed, n, sent, trafficSize, hurt, limit)
		}
		if hurt > 0 {
			cost = append(cost, (sent-trafficSize)/int64(hurt))
		}
		c.do(t, "DELETE", slotsPath+"/1", "").want(t, 200)
	}
	if limit := int64(n)*trafficSize*102/100 + int64(killed)*trafficCheckpoint; total > limit {
		t.Errorf("SLOTFETCH_SEED=%d: %d bytes sent for %d images of %d with %d kills, at most %d are allowed", seed, total, n, trafficSize, killed, limit)
	}
	t.Logf("RAN %d kills: %d bytes sent for %d images of %d; SLOTFETCH_SEED=%d", killed, total, n, trafficSize, seed)
	t.Logf("bytes sent twice for each kill, by fetch: %d", cost)
}

// countingOrigin counts what it sends for each path. It breaks off the first answer for each, and is about as fast as a
// good network.
type countingOrigin struct {
	url  string
	mu   sync.Mutex
	sent map[int]int64
}

func newCountingOrigin(t *testing.T, img *fetchtest.Image) *countingOrigin {
	o := &countingOrigin{sent: map[int]int64{}}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("ETag", strconv.Quote(img.SHA256()[:16]))
		http.ServeContent(&countingWriter{ResponseWriter: w, o: o, n: n}, r, "", time.Time{},
			&slow{SectionReader: img.Reader(), breaks: r.Header.Get("Range") == ""})
	}))
	s.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			check(t, c.(*net.TCPConn).SetWriteBuffer(socketBuffer))
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	o.url = s.URL
	return o
}

func (o *countingOrigin) sentOf(n int) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.sent[n]
}

// countingWriter hides ReadFrom, which would count a whole image at once.
type countingWriter struct {
	http.ResponseWriter
	o *countingOrigin
	n int
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.o.mu.Lock()
	defer w.o.mu.Unlock()
	w.o.sent[w.n] += int64(n)
	return n, err
}
