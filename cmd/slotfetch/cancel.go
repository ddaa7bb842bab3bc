package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"slotfetch/api"
)

func (a *app) cancelCommand() *cobra.Command {
	return &cobra.Command{
		Use:        "cancel KEY...",
		SuggestFor: []string{"stop", "abort"},
		Short:      "Cancel fetches that have not ended",
		Long: `Cancel fetches. When it returns 0 the partial file is off the disk of the box and the connection
closed; the entry stays until it is pruned. A fetch that is being installed cannot be
cancelled any more, and one that has ended is left alone: both exit with 6.

When the box needs longer than half a minute to clean up, slotfetch says so and returns; the
cancel goes on by itself. With --timeout it waits for the end of it.`,
		Example:           "  slotfetch cancel 3b0a",
		Args:              wants(1, -1),
		ValidArgsFunction: a.completeKeys(live, true),
		RunE:              a.act(a.cancel),
	}
}

func (a *app) cancel(ctx context.Context, args []string) error {
	c, keys, err := a.openFor(ctx, args)
	if err != nil {
		return err
	}
	defer c.close()
	if a.curl {
		return a.each(keys, func(key string) error { return c.printCurl(http.MethodDelete, fetchPath(key), nil) })
	}
	var docs []api.Fetch
	failed := a.each(keys, func(key string) error {
		f, err := a.cancelOne(ctx, c, key)
		if err == nil {
			docs = append(docs, f)
		}
		return err
	})
	if len(docs) > 0 {
		if err := a.show(fetchesView(docs, func(p *page) {
			for _, f := range docs {
				if final(f.Body.Status) {
					p.say("Fetch %s is %s.", f.Key, f.Body.Status)
				} else {
					p.say("Fetch %s is being cancelled.", f.Key)
				}
			}
		})); err != nil {
			return err
		}
	}
	return failed
}

// cancelOne looks first, because DELETE on a fetch that has ended would prune its entry.
func (a *app) cancelOne(ctx context.Context, c *client, key string) (api.Fetch, error) {
	before, err := c.fetch(ctx, key)
	if err != nil {
		return before, err
	}
	if final(before.Body.Status) {
		return before, &failure{code: exitConflict, kind: "Conflict", details: map[string]any{"key": key, "status": before.Body.Status},
			message: fmt.Sprintf("fetch %s is %s already: there is nothing to cancel", key, before.Body.Status),
			hint:    "Remove its entry with: slotfetch prune " + key}
	}
	after, status, err := c.deleteFetch(ctx, key)
	if err != nil {
		return before, err
	}
	if after.Key == "" {
		return before, &failure{code: exitConflict, kind: "Conflict", details: map[string]any{"key": key},
			message: fmt.Sprintf("fetch %s ended just before the cancel reached it; its entry is removed", key),
			hint:    "Whether there is a new image is seen with: slotfetch slots"}
	}
	if status != http.StatusAccepted {
		return after, nil
	}
	if a.timeout == 0 {
		a.note("The box is still cleaning up after fetch %s; that goes on by itself. Look with: slotfetch show %s", key, key)
		return after, nil
	}
	last, err := a.follow(ctx, c, []string{key})
	return last[0], err
}

func (a *app) pruneCommand() *cobra.Command {
	p := &prune{app: a}
	cmd := &cobra.Command{
		Use:        "prune KEY... | --all-final",
		SuggestFor: []string{"rm", "remove", "delete"},
		Short:      "Remove the entries of fetches that have ended",
		Long: `Remove the entries of fetches that have finished, failed or been cancelled. The images in the
slots stay. A fetch that has not ended is never touched: that exits with 6.`,
		Example:           "  slotfetch prune 3b0a\n  slotfetch prune --all-final\n  slotfetch prune --all-final --older-than 168h",
		ValidArgsFunction: a.completeKeys(final, true),
		RunE:              a.act(p.run),
	}
	cmd.Flags().BoolVar(&p.all, "all-final", false, "all fetches that have ended")
	cmd.Flags().DurationVar(&p.olderThan, "older-than", 0, "with --all-final, only those that ended at least `DURATION` ago")
	return cmd
}

// prune is the command of that name with its flags.
type prune struct {
	app       *app
	all       bool
	olderThan time.Duration
}

func (p *prune) run(ctx context.Context, args []string) error {
	a := p.app
	switch {
	case p.all == (len(args) > 0):
		return usage("give either keys or --all-final", "")
	case p.olderThan != 0 && !p.all:
		return usage("--older-than goes with --all-final", "")
	case p.all && a.curl:
		return usage("--curl cannot show --all-final: it makes one call for each fetch", "Give keys.")
	}
	c, keys, err := a.openFor(ctx, args)
	if err != nil {
		return err
	}
	defer c.close()
	if a.curl {
		return a.each(keys, func(key string) error { return c.printCurl(http.MethodDelete, fetchPath(key), nil) })
	}
	if p.all {
		if keys, err = p.ended(ctx, c); err != nil {
			return err
		}
	}
	docs := []api.Fetch{}
	failed := a.each(keys, func(key string) error {
		f, err := pruneOne(ctx, c, key)
		if err == nil {
			docs = append(docs, f)
		} else if p.all && asFailure(err).code == exitNotFound {
			return nil // Somebody else was quicker.
		}
		return err
	})
	if len(docs) > 0 || p.all {
		v := fetchesView(docs, func(t *page) { t.say("Removed %s.", entries(len(docs))) })
		if p.all {
			v.doc = map[string]any{"items": docs}
		}
		if err := a.show(v); err != nil {
			return err
		}
	}
	return failed
}

// ended lists what --all-final means.
func (p *prune) ended(ctx context.Context, c *client) ([]string, error) {
	list, err := c.fetches(ctx)
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, f := range list.Items {
		if !final(f.Body.Status) {
			continue
		}
		if p.olderThan > 0 {
			if old, ok := age(p.app.now(), f.Body.EndTime); !ok || old < p.olderThan {
				continue
			}
		}
		keys = append(keys, f.Key)
	}
	return keys, nil
}

// pruneOne looks first, because DELETE on a fetch that has not ended would cancel it. What has ended never lives
// again, so nothing can come in between.
func pruneOne(ctx context.Context, c *client, key string) (api.Fetch, error) {
	f, err := c.fetch(ctx, key)
	if err != nil {
		return f, err
	}
	if !final(f.Body.Status) {
		return f, &failure{code: exitConflict, kind: "Conflict", details: map[string]any{"key": key, "status": f.Body.Status},
			message: fmt.Sprintf("fetch %s is still %s", key, stage(f.Body)),
			hint:    "Cancel it first with: slotfetch cancel " + key}
	}
	_, _, err = c.deleteFetch(ctx, key)
	return f, err
}

func entries(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}
