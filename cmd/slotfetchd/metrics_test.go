package main_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"slotfetch/fetch/fetchtest"
)

// samples are the values of a scrape by name{label="value",…}, labels in order of their names.
func (c *client) samples(t *testing.T) map[string]float64 {
	t.Helper()
	r := c.do(t, "GET", "/api/metrics", "").want(t, 200)
	if got := r.header.Get("Content-Type"); got != "text/plain; version=0.0.4; charset=utf-8" {
		t.Errorf("content type %q", got)
	}
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(strings.NewReader(r.raw))
	check(t, err)
	all := map[string]float64{}
	for name, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			all[name+"{"+strings.Join(labels, ",")+"}"] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return all
}

// TestMetrics: what fetches do shows in the metrics, with nothing in the labels that has no bound or is nobody's business.
func TestMetrics(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "[fetch]\nretry_initial = \"10ms\"\nretry_max = \"10ms\"\n")
	c, viewer := a.loginAdmin(t), a.user(t, "viewer")
	a.stranger(t).do(t, "GET", "/api/metrics", "").want(t, 401)
	before := viewer.samples(t)
	for name, want := range map[string]float64{"slotfetch_slots{state=empty}": 5, "slotfetch_slots{state=ok}": 0, "slotfetch_running{}": 0,
		"slotfetch_fetches{status=queued}": 0, "slotfetch_fetches_total{outcome=finished}": 0, "slotfetch_received_bytes_total{}": 0} {
		if got, ok := before[name]; !ok || got != want {
			t.Errorf("at first %s is %v, want %v", name, got, want)
		}
	}
	if before["slotfetch_start_time_seconds{}"] < 1e9 || before["go_goroutines{}"] < 1 || before["process_resident_memory_bytes{}"] < 1e6 {
		t.Errorf("%v", before)
	}

	s := fetchtest.NewHTTP(t, nil)
	url := s.Handle("/secret-name.iso", fetchtest.Sequence(fetchtest.Status(503), fetchtest.Whole(small).Serve))
	c.awaitStatus(t, c.fetch(t, url, small.SHA256()), "finished")
	c.awaitStatus(t, c.fetch(t, url, small.SHA256(), "force", false), "finished") // the slot has it already
	for _, status := range []int{418, 499} {
		c.awaitStatus(t, c.fetch(t, s.Handle("/"+strconv.Itoa(status), fetchtest.Status(status)), strings.Repeat("ab", 32)), "failed")
	}
	_, slow := serveStalling(t, small)
	running := c.fetch(t, slow, strings.Repeat("cd", 32))
	c.awaitPhase(t, running, "downloading")
	if got := viewer.samples(t)["slotfetch_running{}"]; got != 1 {
		t.Errorf("running: %v", got)
	}
	queued := c.fetch(t, slow, strings.Repeat("ef", 32))
	for _, key := range []string{queued, running} {
		c.do(t, "DELETE", key, "").want(t, 200)
	}

	got := viewer.samples(t)
	// A fetch is counted right after its row has changed.
	for end := time.Now().Add(fetchtest.Patience); got["slotfetch_running{}"] > 0 && time.Now().Before(end); {
		got = viewer.samples(t)
	}
	for name, want := range map[string]float64{
		"slotfetch_fetches{status=finished}": 2, "slotfetch_fetches{status=failed}": 2, "slotfetch_fetches{status=cancelled}": 2,
		"slotfetch_fetches{status=queued}": 0, "slotfetch_fetches{status=in-progress}": 0,
		"slotfetch_fetches_total{outcome=finished}": 2, "slotfetch_fetches_total{outcome=failed}": 2, "slotfetch_fetches_total{outcome=cancelled}": 2,
		"slotfetch_attempts_total{class=,code=,outcome=succeeded}":               1,
		"slotfetch_attempts_total{class=temporary,code=http_5xx,outcome=failed}": 1,
		"slotfetch_attempts_total{class=permanent,code=http_4xx,outcome=failed}": 2,
		"slotfetch_attempts_total{class=,code=,outcome=interrupted}":             1,
		"slotfetch_slots{state=not-iso}":                                         1,
		"slotfetch_slots{state=empty}":                                           4,
		"slotfetch_running{}":                                                    0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v", name, v, want)
		}
	}
	if n := got["slotfetch_received_bytes_total{}"]; n < float64(small.Size()) {
		t.Errorf("received %v bytes", n)
	}
	for name := range got {
		if strings.Contains(name, "secret") || strings.Contains(name, "admin") || strings.Contains(name, "127.0.0.1") {
			t.Errorf("a label says too much: %s", name)
		}
	}
}
