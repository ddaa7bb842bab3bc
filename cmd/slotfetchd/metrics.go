package main

import (
	"bytes"
	"context"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"slotfetch/api"
	"slotfetch/slots"
	"slotfetch/store"
)

// newMetrics registers all that GET /api/metrics tells.
func (d *daemon) newMetrics() *prometheus.Registry {
	r := prometheus.NewRegistry()
	constant := func(name, help string, labels prometheus.Labels, value float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 { return value })
	}
	r.MustRegister(d.fetch.Metrics()...)
	r.MustRegister(stock{d}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		constant("slotfetch_build_info", "Always 1; the labels say what runs.", prometheus.Labels{"version": version, "goversion": runtime.Version()}, 1),
		// The process collector takes its own from /proc/stat, which a sandbox may hide (ProcSubset=pid).
		constant("slotfetch_start_time_seconds", "When the agent started, in seconds since 1970.", nil, float64(time.Now().UnixMilli())/1000))
	return r
}

// handleMetrics answers in the text format, which every scraper reads.
func (d *daemon) handleMetrics(*http.Request) (api.Reply, error) {
	families, err := d.metrics.Gather()
	if err != nil {
		return api.Reply{}, err
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	var b bytes.Buffer
	e := expfmt.NewEncoder(&b, format)
	for _, f := range families {
		if err := e.Encode(f); err != nil {
			return api.Reply{}, err
		}
	}
	return api.Reply{Body: b.Bytes(), ContentType: string(format)}, nil
}

// stock tells what there is on the box, by looking at each scrape.
type stock struct{ d *daemon }

var (
	fetchesDesc = prometheus.NewDesc("slotfetch_fetches", "Fetches in the list, by status.", []string{"status"}, nil)
	slotsDesc   = prometheus.NewDesc("slotfetch_slots", "Slots, by what is in them.", []string{"state"}, nil)
)

// Describe names the two metrics.
func (s stock) Describe(ch chan<- *prometheus.Desc) {
	ch <- fetchesDesc
	ch <- slotsDesc
}

// Collect counts. A database or disk that does not answer fails the scrape.
func (s stock) Collect(ch chan<- prometheus.Metric) {
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Second)
	defer stop()
	counts, err := s.d.store.Counts(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(fetchesDesc, err)
		return
	}
	for _, status := range []store.Status{store.Queued, store.InProgress, store.Finished, store.Failed, store.Cancelled} {
		counts[status] += 0
	}
	for status, n := range counts {
		ch <- prometheus.MustNewConstMetric(fetchesDesc, prometheus.GaugeValue, float64(n), string(status))
	}
	list, err := s.d.slots.List()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(slotsDesc, err)
		return
	}
	states := map[string]int{"empty": 0, "reserved": 0, "ok": 0, "not-iso": 0, "damaged": 0, "degraded": 0}
	for _, slot := range list {
		states[slotState(slot)]++
	}
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(slotsDesc, prometheus.GaugeValue, float64(n), state)
	}
}

// slotState is state of the slot's document, or why it has none.
func slotState(s slots.Slot) string {
	switch {
	case s.Damaged:
		return "damaged"
	case s.Manifest != nil && s.Care.Degraded:
		return "degraded"
	case s.Manifest != nil && !s.Manifest.ISO:
		return "not-iso"
	case s.Manifest != nil:
		return "ok"
	case s.Reserved:
		return "reserved"
	}
	return "empty"
}
