package fetch

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"slotfetch/fetch/source"
	"slotfetch/store"
)

// metrics counts what happens to fetches from the start of the agent on. Its labels have few values: statuses, outcomes
// and rows of the table of faults, never a URL, a key or a name.
type metrics struct {
	fetches, attempts, uploads *prometheus.CounterVec
	received, uploaded         prometheus.Counter
	after                      func() // what is to be done when a fetch has ended; may be nil
}

func newMetrics() *metrics {
	m := &metrics{
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "slotfetch_fetches_total",
			Help: "Fetches that came to their end since the start of the agent, by final status."}, []string{"outcome"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "slotfetch_attempts_total",
			Help: "Attempts that ended since the start of the agent: succeeded, interrupted, or failed with code and class of docs/errors.md."},
			[]string{"outcome", "code", "class"}),
		received: prometheus.NewCounter(prometheus.CounterOpts{Name: "slotfetch_received_bytes_total",
			Help: "Bytes that came from sources since the start of the agent."}),
		uploads: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "slotfetch_uploads_total",
			Help: "Uploads that came to their end since the start of the agent: finished, failed, or interrupted by its stop."}, []string{"outcome"}),
		uploaded: prometheus.NewCounter(prometheus.CounterOpts{Name: "slotfetch_uploaded_bytes_total",
			Help: "Bytes of images that clients sent since the start of the agent."}),
	}
	for _, outcome := range []string{"finished", "failed", "interrupted"} {
		m.uploads.WithLabelValues(outcome)
	}
	for _, s := range []store.Status{store.Finished, store.Failed, store.Cancelled} {
		m.fetches.WithLabelValues(string(s)) // so that a rate sees the first one
	}
	return m
}

// ended counts a fetch that came to its end.
func (m *metrics) ended(s store.Status) {
	m.fetches.WithLabelValues(string(s)).Inc()
	if m.after != nil {
		m.after()
	}
}

// count counts an attempt that ended with err.
func (d *download) count(ctx context.Context, err error) {
	outcome, code, class := "succeeded", "", ""
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	switch {
	case errors.Is(err, errShutdown), errors.Is(err, errCancelled), errors.Is(err, errPaused), errors.Is(err, errOutside):
		outcome = "interrupted"
	case err != nil:
		fault := source.FaultOf(d.explain(err).Code)
		outcome, code, class = "failed", fault.Code, fault.Class.String()
	}
	d.m.metrics.attempts.WithLabelValues(outcome, code, class).Inc()
}

// Metrics are the counters of the manager, to be registered once.
func (m *Manager) Metrics() []prometheus.Collector {
	return []prometheus.Collector{m.metrics.fetches, m.metrics.attempts, m.metrics.received, m.metrics.uploads, m.metrics.uploaded,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "slotfetch_running", Help: "Fetches that a worker has in hand."},
			func() float64 { return float64(m.Running()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "slotfetch_waiting", Help: "Requests that wait for something to happen to a fetch."},
			func() float64 { return float64(m.waiting.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "slotfetch_uploads", Help: "Uploads that are under way."},
			func() float64 {
				m.mu.Lock()
				defer m.mu.Unlock()
				return float64(m.uploads)
			})}
}
