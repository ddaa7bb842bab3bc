package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"slotfetch/api"
)

const (
	// The pace of asking: quick at first, because many a fetch fails at once, then every two seconds.
	firstPace = 250 * time.Millisecond
	lastPace  = 2 * time.Second
	// patience is how long a box may be away before a wait gives up: long enough for a restart.
	patience = 2 * time.Minute
)

// errTimeout is the cause of the end at --timeout.
var errTimeout = errors.New("--timeout has passed")

// poller asks a box again and again and bears with it when it is away for a while.
type poller struct {
	app    *app
	client *client
	say    func(format string, args ...any) // beside the progress

	pace time.Duration
	away time.Time // since when the box is away; zero: it is there
}

// until limits ctx by --timeout.
func (a *app) until(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, a.timeout, errTimeout)
}

// ended says why ctx is over: errTimeout, or context.Canceled after a signal, whose own cause would name the signal.
func ended(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), errTimeout) {
		return errTimeout
	}
	return ctx.Err()
}

// poll calls look until it says that it is done. Between two calls it waits, longer from time to time.
func (p *poller) poll(ctx context.Context, look func(context.Context) (done bool, err error)) error {
	for {
		asked := time.Now()
		done, err := look(ctx)
		pause := p.nextPace() - time.Since(asked) // the box may have held the answer
		switch {
		case ctx.Err() != nil:
			return ended(ctx)
		case err != nil:
			if err := p.bear(err); err != nil {
				return err
			}
		default:
			if !p.away.IsZero() {
				p.away = time.Time{}
				p.say("%s is back.", p.client.box)
			}
			if done {
				return nil
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ended(ctx)
		}
	}
}

func (p *poller) nextPace() time.Duration {
	if p.pace == 0 {
		p.pace = firstPace
		return p.pace
	}
	p.pace = min(p.pace*3/2, lastPace)
	return p.pace
}

// bear passes over an error that may go away by itself, for a while.
func (p *poller) bear(err error) error {
	f, ok := errors.AsType[*failure](err)
	if !ok || !f.temporary {
		return err
	}
	now := p.app.now()
	if p.away.IsZero() {
		p.away = now
		p.say("%s. Trying again for up to %s; the fetch goes on meanwhile.", upperFirst(f.message), patience)
		return nil
	}
	if now.Sub(p.away) > patience {
		return f
	}
	return nil
}

// follow waits until every key is final and shows the progress. The fetches come in the order of the keys.
func (a *app) follow(ctx context.Context, c *client, keys []string) ([]api.Fetch, error) {
	limited, cancel := a.until(ctx)
	defer cancel()
	r := a.newReporter(keys)
	last := make([]api.Fetch, len(keys))
	p := &poller{app: a, client: c, say: r.say}
	err := p.poll(limited, func(ctx context.Context) (bool, error) {
		docs, err := c.snapshot(ctx, keys, last[0].Key != "")
		if err != nil {
			return false, err
		}
		done := true
		for i, doc := range docs {
			last[i] = doc
			r.update(doc)
			done = done && final(doc.Body.Status)
		}
		return done, nil
	})
	r.close()
	return last, a.explainWait(err, keys, last)
}

// explainWait says what goes on after a wait that ended early.
func (a *app) explainWait(err error, keys []string, last []api.Fetch) error {
	var open []string
	for i, key := range keys {
		if !final(last[i].Body.Status) {
			open = append(open, key)
		}
	}
	subject := strings.Join(open, ", ")
	details := map[string]any{"keys": open}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errTimeout):
		doing, why := "going", ""
		if len(keys) == 1 && last[0].Key != "" {
			doing = progressText(last[0].Body)
			details["status"] = last[0].Body.Status
			if why = text(last[0].Body.RetryReason); why != "" {
				why = ". The last attempt: " + why
			}
		}
		return &failure{code: exitPending, kind: "StillPending", details: details, cause: err,
			message: fmt.Sprintf("after %s, fetch %s is still %s; it goes on%s", a.timeout, subject, doing, why),
			hint:    "Go on waiting with: slotfetch wait " + strings.Join(open, " ")}
	case errors.Is(err, context.Canceled):
		return &failure{code: exitInterrupted, kind: "Interrupted", details: details, cause: err,
			message: fmt.Sprintf("detached: fetch %s goes on", subject),
			hint:    "Cancel it with: slotfetch cancel " + strings.Join(open, " ")}
	}
	f := asFailure(err)
	switch {
	case f.status == http.StatusNotFound:
		f.message = fmt.Sprintf("the entry of fetch %s is gone: somebody pruned it", subject)
	case f.code == exitAuth, f.code == exitNetwork:
		f.message += fmt.Sprintf("\nThe fetch %s goes on.", subject)
	}
	return f
}

// snapshot reads the fetches of several keys in one call; the order is that of the keys. Of a single one the box is asked to
// hold the answer while nothing happens, for not much longer than the pace of the progress.
func (c *client) snapshot(ctx context.Context, keys []string, hold bool) ([]api.Fetch, error) {
	if len(keys) == 1 {
		if hold {
			f, err := c.waitFetch(ctx, keys[0], int(lastPace/time.Second))
			return []api.Fetch{f}, err
		}
		f, err := c.fetch(ctx, keys[0])
		return []api.Fetch{f}, err
	}
	list, err := c.fetches(ctx)
	if err != nil {
		return nil, err
	}
	byKey := map[string]api.Fetch{}
	for _, f := range list.Items {
		byKey[f.Key] = f
	}
	docs := make([]api.Fetch, len(keys))
	for i, key := range keys {
		f, ok := byKey[key]
		if !ok {
			return nil, &failure{code: exitNotFound, kind: "ResourceNotFound", message: "there is no fetch " + key,
				hint: "Look with: slotfetch ls"}
		}
		docs[i] = f
	}
	return docs, nil
}

// showOutcomes prints fetches that have ended and returns how they ended; the first that failed gives the code.
func (a *app) showOutcomes(docs []api.Fetch) error {
	err := a.show(fetchesView(docs, func(p *page) {
		for _, f := range docs {
			if f.Body.Status == "finished" {
				p.say("%s", finishedText(f))
			}
		}
	}))
	if err != nil {
		return err
	}
	ended := map[string]api.Fetch{}
	keys := make([]string, len(docs))
	for i, f := range docs {
		keys[i], ended[f.Key] = f.Key, f
	}
	return a.each(keys, func(key string) error { return outcome(ended[key]) })
}
