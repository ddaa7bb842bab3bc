package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"
)

// newLog logs to the journal with native fields if that is where stderr leads, else as text. Close what is behind it at
// the end.
func newLog(stderr io.Writer) (*slog.Logger, *backlog) {
	var out slog.Handler = slog.NewTextHandler(stderr, nil)
	if ok, err := journal.StderrIsJournalStream(); err == nil && ok {
		out = newJournalHandler(journal.Send, out)
	}
	b := newBacklog(out)
	return slog.New(b), b
}

// journalHandler sends records to the systemd journal: the message with its attributes as text, for people, and each
// attribute as a field SLOTFETCH_NAME, for "journalctl SLOTFETCH_KEY=…".
type journalHandler struct {
	send     func(message string, priority journal.Priority, fields map[string]string) error
	fallback slog.Handler // if the journal takes nothing
	attrs    []slog.Attr

	mu   *sync.Mutex
	line *bytes.Buffer
	text slog.Handler // writes the attributes to line
}

func newJournalHandler(send func(string, journal.Priority, map[string]string) error, fallback slog.Handler) *journalHandler {
	h := &journalHandler{send: send, fallback: fallback, mu: &sync.Mutex{}, line: &bytes.Buffer{}}
	h.text = slog.NewTextHandler(h.line, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
			return slog.Attr{}
		}
		return a
	}})
	return h
}

// Enabled is true from Info on.
func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

// Handle sends one record.
func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	h.line.Reset()
	err := h.text.Handle(ctx, r)
	line := strings.TrimSpace(r.Message + " " + h.line.String())
	h.mu.Unlock()
	if err != nil {
		return err
	}
	fields := map[string]string{}
	add := func(a slog.Attr) bool {
		fields[fieldName(a.Key)] = a.Value.Resolve().String()
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	if err := h.send(line, priority(r.Level), fields); err != nil {
		return h.fallback.Handle(ctx, r)
	}
	return nil
}

// WithAttrs is for slog.Logger.With.
func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	with.attrs = append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)
	with.text, with.fallback = h.text.WithAttrs(attrs), h.fallback.WithAttrs(attrs)
	return &with
}

// WithGroup is not used here: the fields of the journal are flat.
func (h *journalHandler) WithGroup(string) slog.Handler { return h }

// fieldName is the journal's spelling: upper case, digits and underscores.
func fieldName(key string) string {
	return "SLOTFETCH_" + strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToUpper(key))
}

func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	}
	return journal.PriInfo
}
