package main_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

const (
	networkSize = 8 << 20
	networkIdle = 3 * time.Second
	// slowSize takes six seconds at slowRate, which is in bytes a second.
	slowSize, slowRate, slowBurst = 600_000, 100_000, 16 << 10
	// again is what a network fault may cost, in bytes; keeps is what an attempt that breaks off may give up of what it
	// has received: less than one block, to which it cuts.
	again, keeps = 1 << 20, 4096
	// talk is more than all headers and replies of a fetch.
	talk = 64 << 10
)

// mishap happens to the network, or to the origin, while it sends.
type mishap struct {
	name, scheme string
	first        bool // it is there before the fetch is ordered
	strike, lift func(*origin) error
	// ends is how attempts have to end, by code, for it to be lifted; the last one more than once, perhaps.
	ends []string
}

var mishaps = []mishap{
	{"blackhole", "http", false, blackhole, relent, []string{"stalled"}},
	{"reset", "http", false, reset, relent, []string{"broken", "refused"}},
	{"cable out", "http", false, unplug, plug, []string{"stalled"}},
	{"interface down", "http", false, down, up, []string{"stalled", "unreachable"}},
	{"origin restarts", "http", false, (*origin).stop, (*origin).start, []string{"broken", "refused"}},
	{"unreachable at first", "http", true, down, up, []string{"unreachable"}},
	{"ftp blackhole", "ftp", false, blackhole, relent, []string{"stalled"}},
	{"ftp reset", "ftp", false, reset, relent, []string{"broken", "refused"}},
}

func blackhole(o *origin) error { return o.w.filter(swallows) }
func reset(o *origin) error     { return o.w.filter(resets) }
func relent(o *origin) error    { return o.w.filter("") }
func unplug(o *origin) error    { return o.w.end(o.w.far, "down") }
func plug(o *origin) error      { return o.w.end(o.w.far, "up") }
func down(o *origin) error      { return o.w.end(o.w.near, "down") }
func up(o *origin) error        { return o.w.end(o.w.near, "up") }

// network is an agent at one end of a wire.
type network struct {
	w   *wire
	a   *agent
	c   *client
	img *fetchtest.Image

	fetches, faults      int
	sent, ordered, twice int64 // bytes; twice is what the agent itself received again
	worst                int64 // of what was sent beyond an image for one fault
}

// TestNetwork breaks the network between an agent and its origins in all ways that a packet filter and a cable have. Each
// fetch finishes by itself, and what a fault costs is bounded, at the origin and by the agent's own record.
// SLOTFETCH_FAULTS is how many rounds there are; the places of the faults are random, in the first one in the middle.
// SLOTFETCH_SEED repeats them.
func TestNetwork(t *testing.T) {
	t.Parallel()
	rounds, seed := setting(t, "SLOTFETCH_FAULTS", 1), setting(t, "SLOTFETCH_SEED", uint64(time.Now().UnixNano()))
	rng := rand.New(rand.NewPCG(seed, 5))
	x := &network{w: newWire(t), img: fetchtest.NewImage(91, networkSize)}
	x.a = newAgent(t, fmt.Sprintf("[slots]\ncount = 1\nreserve = 0\n[fetch]\nidle_timeout = %q\nretry_initial = \"500ms\"\nretry_max = \"500ms\"\nretry_rounds = 1000\n",
		networkIdle))
	x.a.under = []string{"ip", "netns", "exec", x.w.near}
	x.a.first(t)
	x.c = x.a.local(t)
	row := func(name string, f func(t *testing.T)) {
		if !t.Run(name, f) {
			t.Fatalf("SLOTFETCH_SEED=%d", seed)
		}
	}
	row("loss", x.loss)
	before := x.c.samples(t)
	for round := range rounds {
		for _, m := range mishaps {
			at := place(rng, round)
			row(m.name, func(t *testing.T) { x.befall(t, m, at) })
		}
		at := place(rng, round)
		row("flap", func(t *testing.T) { x.flap(t, at) })
		if round > 0 {
			row("loss", x.loss)
		}
	}
	row("slow", x.slow)
	for _, name := range []string{"go_goroutines{}", "process_open_fds{}"} {
		const few = 4 // of SQLite's readers, and for our own requests
		x.c.awaitSample(t, name, before[name]+few)
	}
	const memory = "process_resident_memory_bytes{}"
	t.Logf("RAN %d fetches with %d faults: %d bytes sent for %d, at most %d for one fault; %d received twice; %.0f MB of memory, %.0f before; SLOTFETCH_SEED=%d",
		x.fetches, x.faults, x.sent, x.ordered, x.worst, x.twice, x.c.samples(t)[memory]/1e6, before[memory]/1e6, seed)
}

// place is where a fault comes: in the middle at first, then anywhere, and often within headers and replies.
func place(rng *rand.Rand, round int) int64 {
	switch {
	case round == 0:
		return networkSize/4 + rng.Int64N(networkSize/2)
	case rng.IntN(4) == 0:
		return rng.Int64N(1000)
	}
	return rng.Int64N(networkSize - again) // a reset does not hurt an agent that has it all
}

// awaitSample asks for the metrics until one is at most so high.
func (c *client) awaitSample(t *testing.T, name string, most float64) {
	t.Helper()
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(50 * time.Millisecond) {
		got := c.samples(t)[name]
		if got <= most {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is %v, want at most %v", name, got, most)
		}
	}
}

// await looks at a fetch and its attempts whenever it changes, until they are as wanted.
func (x *network) await(t *testing.T, job, what string, ok func(fetch, attempts reply) bool) (fetch, attempts reply) {
	t.Helper()
	tag := `"none yet"`
	for end := time.Now().Add(fetchtest.Patience); ; {
		if r := x.c.do(t, "GET", job+"?wait=1", "", "If-None-Match", tag); r.code != http.StatusNotModified {
			fetch, tag = r.want(t, 200), r.header.Get("Etag")
		}
		attempts = x.c.do(t, "GET", job+"/attempts", "").want(t, 200)
		if ok(fetch, attempts) {
			return fetch, attempts
		}
		if over := fetch.get("body.end_time") != nil; over || time.Now().After(end) {
			t.Fatalf("the fetch did not get %s: %s: %s", what, fetch.raw, attempts.raw)
		}
	}
}

// befall has a mishap happen when the origin has sent so many bytes, and lifts it when the agent has noticed.
func (x *network) befall(t *testing.T, m mishap, at int64) {
	t.Cleanup(func() { x.w.mend(t) })
	o := newOrigin(t, x.w, m.scheme, x.img)
	if m.first {
		check(t, m.strike(o))
		close(o.struck)
	} else {
		o.aim(at, func() error { return m.strike(o) })
	}
	job := x.c.fetch(t, o.url, x.img.SHA256())
	fetchtest.Await(t, fmt.Sprintf("%d bytes sent", at), o.struck)
	x.await(t, job, fmt.Sprint("attempts that end as ", m.ends), func(_, attempts reply) bool { return slices.Equal(ends(attempts), m.ends) })
	x.c.do(t, "GET", job, "").is(t, "body.status", "in-progress", "body.error", nil)
	check(t, m.lift(o))
	faults := 1
	if m.first {
		faults = 0 // nothing was sent
	}
	x.finished(t, o, job, faults, m.ends)
}

// flap takes the cable out until nothing comes any more, and puts it back before the agent loses patience.
func (x *network) flap(t *testing.T, at int64) {
	t.Cleanup(func() { x.w.mend(t) })
	o := newOrigin(t, x.w, "http", x.img)
	o.aim(at, func() error { return unplug(o) })
	job := x.c.fetch(t, o.url, x.img.SHA256())
	fetchtest.Await(t, fmt.Sprintf("%d bytes sent", at), o.struck)
	began := time.Now()
	var last any
	var since time.Time
	x.c.await(t, job, "no more bytes", func(r reply) bool {
		if n := r.get("body.bytes_downloaded"); n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > networkIdle/20
	})
	check(t, plug(o))
	var want []string
	faults := 0
	if time.Since(began) > networkIdle/3 { // a busy machine took its time: TCP may wait for as long again
		_, attempts := x.await(t, job, "finished", isFinished)
		want, faults = ends(attempts), 1
	}
	x.finished(t, o, job, faults, want)
}

// loss drops one packet of fifty, both ways. TCP bears that.
func (x *network) loss(t *testing.T) {
	t.Cleanup(func() { x.w.mend(t) })
	check(t, x.w.filter(loses))
	o := newOrigin(t, x.w, "http", x.img)
	x.finished(t, o, x.c.fetch(t, o.url, x.img.SHA256()), 0, nil)
	if x.w.lost(t) == 0 {
		t.Error("no packet was dropped")
	}
}

// slow is a link that takes twice the idle timeout for the image, and is no stall.
func (x *network) slow(t *testing.T) {
	t.Cleanup(func() { x.w.mend(t) })
	check(t, x.w.rate(fmt.Sprintf("%dbit burst %d latency 400ms", 8*slowRate, slowBurst)))
	img := fetchtest.NewImage(92, slowSize)
	o := newOrigin(t, x.w, "http", img)
	began := time.Now()
	x.finished(t, o, x.c.fetch(t, o.url, img.SHA256()), 0, nil)
	if took, least := time.Since(began), time.Second*(slowSize-slowBurst)/slowRate; took < least {
		t.Errorf("the link was too fast: %s, want at least %s", took, least)
	}
}

// finished wants a fetch to finish, with the image, and attempts that ended as said before the last one. The origin has
// sent the image, and for each fault at most what it may cost and what was in the kernel's send buffer.
func (x *network) finished(t *testing.T, o *origin, job string, faults int, want []string) {
	t.Helper()
	r, attempts := x.await(t, job, "finished", isFinished)
	r.is(t, "body.sha256", o.img.SHA256(), "body.bytes_downloaded", o.img.Size())
	list := attempts.get("items").([]any)
	if got := ends(attempts); !slices.Equal(got, want) || r.get("body.attempts") != float64(len(list)) || len(list) < len(want)+1 {
		t.Errorf("the attempts ended as %v, want %v and a good one: %s", got, want, attempts.raw)
	}
	var received int64
	for _, item := range list {
		received += int64(reply{json: item}.get("body.bytes_received").(float64))
	}
	sent, size := o.total(), o.img.Size()
	if limit := size + int64(faults)*keeps; received > limit {
		t.Errorf("%d bytes received for %d with %d faults, at most %d are allowed: %s", received, size, faults, limit, attempts.raw)
	}
	if limit := size + talk + int64(faults)*(again+2*sendBuffer); sent > limit {
		t.Errorf("%d bytes sent for %d with %d faults, at most %d are allowed: %s", sent, size, faults, limit, attempts.raw)
	}
	slot := fmt.Sprint(r.get("body.slot_id"))
	f, err := os.Open(filepath.Join(x.a.state, "slots", slot, "image"))
	check(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	check(t, err)
	if got := hex.EncodeToString(h.Sum(nil)); got != o.img.SHA256() {
		t.Errorf("slot %s has %s, want %s", slot, got, o.img.SHA256())
	}
	x.c.do(t, "DELETE", slotsPath+"/"+slot, "").want(t, 200)
	if left := x.a.partials(t); len(left) > 0 {
		t.Errorf("partials are left: %v", left)
	}
	x.fetches++
	x.faults += faults
	x.sent, x.ordered, x.twice = x.sent+sent, x.ordered+size, x.twice+received-size
	x.worst = max(x.worst, (sent-size)*int64(min(faults, 1)))
}

func isFinished(fetch, _ reply) bool { return fetch.str("body.status") == "finished" }

// ends are the codes with which attempts failed, each once where it came several times in a row.
func ends(attempts reply) (codes []string) {
	for _, item := range attempts.get("items").([]any) {
		if code := (reply{json: item}).str("body.error_code"); code != "" {
			codes = append(codes, code)
		}
	}
	return slices.Compact(codes)
}
