package fetch_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
	"slotfetch/store"
)

// keeping keeps the attributes of records, by message.
type keeping struct {
	slog.Handler
	mu   sync.Mutex
	seen map[string]map[string]string
}

func (h *keeping) Handle(_ context.Context, r slog.Record) error {
	attrs := map[string]string{}
	r.Attrs(func(a slog.Attr) bool {
		attrs[a.Key] = a.Value.String()
		return true
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen[r.Message] = attrs
	return nil
}

func (h *keeping) WithAttrs([]slog.Attr) slog.Handler { return h }

// TestLogTells: the log has code, class, message and remedy of an error in the words of the table.
func TestLogTells(t *testing.T) {
	t.Parallel()
	log := &keeping{seen: map[string]map[string]string{}}
	b := newBox(t, t.TempDir(), func(c *fetch.Config) {
		log.Handler = c.Log.Handler()
		c.Log = slog.New(log)
		c.Retry = fetch.Retry{Rounds: 1, Initial: time.Millisecond, Max: time.Millisecond}
	})
	for status, code := range map[int]string{401: "http_401", 404: "http_404", 502: "http_502"} {
		fault := source.FaultOf(code)
		url := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Status(status))
		f := b.until(b.enqueue(url, strings.Repeat("0", 64)), final)
		log.mu.Lock()
		for _, message := range []string{"attempt failed", "fetch failed"} {
			got := log.seen[message]
			if got["code"] != code || got["class"] != fault.Class.String() || got["remedy"] != fault.Remedy || !strings.HasPrefix(f.Error, got["err"]) || got["err"] == "" {
				t.Errorf("%s %s: %v", code, message, got)
			}
		}
		log.mu.Unlock()
		sentence := log.seen["fetch failed"]["err"]
		if fault.Class == source.Human {
			sentence += " " + fault.Remedy
		}
		if f.Status != store.Failed || f.ErrorCode != code || f.Error != sentence {
			t.Errorf("%s: %s %s %q", code, f.Status, f.ErrorCode, f.Error)
		}
	}
}
