package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestLongQueue has ten thousand fetches behind one that stalls: the agent stays quick and small, and a restart keeps
// them all in their order.
func TestLongQueue(t *testing.T) {
	t.Parallel()
	const long = 10_000
	a := startAgent(t, "[fetch]\nidle_timeout = \"1h\"\n") // it stalls for as long as this takes
	c := a.loginAdmin(t)
	server, slow := serveStalling(t, small)
	running := c.fetch(t, slow, small.SHA256())
	server.Next(t)
	c.awaitPhase(t, running, "downloading")

	url := serveSmall(t)
	began := time.Now()
	keys := make([]string, long)
	var wg sync.WaitGroup
	const callers = 8
	c.http.Transport.(*http.Transport).MaxIdleConnsPerHost = callers
	for n := range callers {
		wg.Go(func() {
			for i := n; i < long; i += callers {
				r, err := c.try("POST", fetches, order(fmt.Sprint(url, "?", i), small.SHA256()))
				if err != nil || r.code != 202 {
					t.Errorf("POST %d: %v, %d %s", i, err, r.code, r.raw)
					return
				}
				keys[i] = r.str("key")
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	t.Logf("%d POSTs took %s", long, time.Since(began))

	one := func(method string, i, code int) {
		t.Helper()
		began := time.Now()
		c.do(t, method, fetches+"/"+keys[i], "").want(t, code)
		if took := time.Since(began); took > time.Second {
			t.Errorf("%s of one of %d took %s", method, long, took)
		}
	}
	for _, i := range []int{0, long / 2, long - 1} {
		one("GET", i, 200)
	}
	a.resetPeak(t)
	before := a.peak(t)
	began = time.Now()
	first, size := c.list(t)
	took := time.Since(began)
	if took > 10*time.Second {
		t.Errorf("a list of %d took %s", long, took)
	}
	for range 4 {
		wg.Go(func() {
			for range 2 {
				if again, _ := c.list(t); !slices.Equal(again, first) {
					t.Errorf("a list of %d fetches, the first had %d, or their order changed", len(again), len(first))
				}
			}
		})
	}
	wg.Wait()
	grown := a.peak(t) - before
	t.Logf("a list has %d bytes and took %s; after 9 of them, 4 at a time, the agent's peak grew by %d bytes", size, took, grown)
	// Streamed, it is 1 to 3 × size under the race detector; with the rows in memory before, it was 40 × size.
	if grown > 8*size {
		t.Errorf("the lists are not streamed: the peak grew by %d bytes for lists of %d", grown, size)
	}
	if len(first) != long+1 || fetches+"/"+first[0] != running {
		t.Errorf("the list has %d fetches", len(first))
	}
	sorted := func(in []string) []string { in = slices.Clone(in); slices.Sort(in); return in }
	if !slices.Equal(sorted(first[1:]), sorted(keys)) {
		t.Error("the list has other fetches than those that were accepted")
	}

	cancelled := []int{0, long / 2, long - 1}
	for _, i := range cancelled {
		one("DELETE", i, 200)
		one("DELETE", i, 200) // pruned
		one("GET", i, 404)
	}
	began = time.Now()
	a.restart(t, syscall.SIGKILL)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("a restart took %s", took)
	} else {
		t.Logf("the restart took %s", took)
	}
	server.Next(t) // the same fetch again
	want := slices.DeleteFunc(slices.Clone(first), func(key string) bool {
		return slices.ContainsFunc(cancelled, func(i int) bool { return keys[i] == key })
	})
	if now, _ := c.list(t); !slices.Equal(now, want) {
		t.Errorf("after the restart %d fetches are listed, before it were %d, or their order changed", len(now), len(want))
	}
}

// list reads the list as it comes and gives its keys and its length in bytes. It may run in any goroutine.
func (c *client) list(t *testing.T) (keys []string, size int64) {
	t.Helper()
	r, err := http.NewRequest("GET", c.a.base+fetches, nil)
	if err != nil {
		t.Error(err)
		return nil, 0
	}
	r.Header.Set("Cookie", c.cookie)
	resp, err := c.http.Do(r)
	if err != nil {
		t.Error(err)
		return nil, 0
	}
	defer resp.Body.Close()
	count := &counter{r: resp.Body}
	d := json.NewDecoder(count)
	for range 3 { // { "items" [
		if _, err := d.Token(); err != nil {
			t.Error(err)
			return nil, 0
		}
	}
	for d.More() {
		var item struct{ Key string }
		if err := d.Decode(&item); err != nil {
			t.Errorf("after %d items: %v", len(keys), err)
			return nil, 0
		}
		keys = append(keys, item.Key)
	}
	rest, err := io.ReadAll(io.MultiReader(d.Buffered(), count))
	if err != nil || !strings.HasSuffix(string(rest), "}\n") {
		t.Errorf("the list does not end well: %v, %q", err, rest)
	}
	return keys, count.n
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

var peakLine = regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB$`)

// peak is the most memory that the agent has had, in bytes.
func (a *agent) peak(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	check(t, err)
	m := peakLine.FindSubmatch(text)
	if m == nil {
		t.Fatalf("no VmHWM in %s", text)
	}
	kb, err := strconv.ParseInt(string(m[1]), 10, 64)
	check(t, err)
	return kb << 10
}

// resetPeak makes what the agent has now its peak.
func (a *agent) resetPeak(t *testing.T) {
	t.Helper()
	check(t, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", a.cmd.Process.Pid), []byte("5"), 0))
}
