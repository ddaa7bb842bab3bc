package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"slotfetch/api"
	"slotfetch/store"
)

// This file answers for one fetch, at once or, with ?wait=N, when something about it has changed.

const (
	// maxWait is the most that a GET waits: some clients give up after 100 s (contract section 9, rule 19).
	maxWait = 90 * time.Second
	// maxWaiting is how many requests wait at a time. Each looks again at every change of any fetch. More get their answer at
	// once, as if nobody could wait.
	maxWaiting = 64
)

// etag names the state of a fetch. It is weak (RFC 9110, 8.8.1): what only counts or measures is left out, so that it
// changes when something happens.
func etag(d api.Fetch) string {
	b := d.Body
	b.BytesDownloaded, b.BytesPerSecond, b.ETASeconds, b.QueuePosition = 0, nil, nil, nil
	text, _ := json.Marshal(b) //nolint:errcheck // numbers and strings
	sum := sha256.Sum256(text)
	return fmt.Sprintf(`W/"%x"`, sum[:12])
}

// handleGet answers at once unless it is asked to wait. Only then does If-None-Match count: a copy that is otherwise the
// same has old counts.
func (m *Manager) handleGet(r *http.Request) (api.Reply, error) {
	key, err := keyOf(r)
	if err != nil {
		return api.Reply{}, err
	}
	wait, waits, err := waitTime(r)
	if err != nil {
		return api.Reply{}, err
	}
	ctx := context.WithoutCancel(r.Context()) // the answer to somebody who has gone is no error
	f, err := m.Get(ctx, key)
	known := tags(r.Header)
	if waits && err == nil {
		f, err = m.await(r.Context(), f, wait, known)
	}
	if errors.Is(err, store.ErrNotFound) {
		return api.Reply{}, api.NotFound(path, key)
	}
	if err != nil {
		return api.Reply{}, err
	}
	reply, err := m.reply(ctx, f)
	if err == nil && waits && matches(known, reply.Header.Get("Etag")) {
		reply.Status = http.StatusNotModified
	}
	return reply, err
}

// await gives f when its state is none of known, or without known when it is no longer what it is; or as [Manager.Hold] does.
func (m *Manager) await(ctx context.Context, f store.Fetch, wait time.Duration, known []string) (store.Fetch, error) {
	if len(known) == 0 {
		known = []string{m.tag(f)}
	}
	return m.Hold(ctx, f, wait, func(f store.Fetch) bool { return f.Status.Final() || !matches(known, m.tag(f)) })
}

// Hold gives the fetch of f as soon as done says so, or as it is after wait, or when ctx or the manager ends. If too many are
// held already, that is f, at once. The error is store.ErrNotFound if it is gone.
func (m *Manager) Hold(ctx context.Context, f store.Fetch, wait time.Duration, done func(store.Fetch) bool) (store.Fetch, error) {
	leave, ok := m.Waiter()
	defer leave()
	if !ok {
		return f, nil
	}
	ctx, stop := context.WithTimeout(ctx, wait)
	defer stop()
	defer context.AfterFunc(m.ctx, stop)()
	last, err := m.Wait(ctx, f.Key, done)
	if err != nil && ctx.Err() != nil && !errors.Is(err, store.ErrNotFound) {
		return m.Get(context.WithoutCancel(ctx), f.Key)
	}
	return last, err
}

// Waiter counts a request in that is to be held, for a fetch or anything else; ok is false if too many are, and then it must be
// answered at once. Leave counts it out again, whatever ok is.
func (m *Manager) Waiter() (leave func(), ok bool) {
	n := m.waiting.Add(1)
	return func() { m.waiting.Add(-1) }, n <= maxWaiting
}

func (m *Manager) tag(f store.Fetch) string { return etag(m.document(f, path, nil)) }

// waitTime reads ?wait=N, seconds; ok is false without it.
func waitTime(r *http.Request) (d time.Duration, ok bool, err error) {
	q := r.URL.Query()
	if !q.Has("wait") {
		return 0, false, nil
	}
	n, err := strconv.ParseUint(q.Get("wait"), 10, 16)
	if d = time.Duration(n) * time.Second; err != nil || d > maxWait {
		return 0, false, api.Semantic("wait", fmt.Sprintf("a number of seconds up to %d", maxWait/time.Second))
	}
	return d, true, nil
}

// matches compares weakly (RFC 9110, 8.8.3.2).
func matches(known []string, tag string) bool {
	return slices.ContainsFunc(known, func(k string) bool { return k == "*" || strings.TrimPrefix(k, "W/") == strings.TrimPrefix(tag, "W/") })
}

// tags are those of If-None-Match.
func tags(h http.Header) []string {
	var out []string
	for _, line := range h.Values("If-None-Match") {
		for _, t := range strings.Split(line, ",") {
			if t = strings.TrimSpace(t); t != "" {
				out = append(out, t)
			}
		}
	}
	return out
}
