package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"slotfetch/api"
)

// statuses are those of the SPS dialect; mind the spelling.
const statuses = "queued, in-progress, finished, failed, cancelled"

func anyStatus(string) bool   { return true }
func live(status string) bool { return !final(status) }

// fetchesView is one fetch as itself, and several as {"items": […]}.
func fetchesView(docs []api.Fetch, text func(*page)) view {
	v := view{items: []any{}, text: text}
	for _, f := range docs {
		v.items = append(v.items, f)
		v.ids = append(v.ids, f.Key)
	}
	if len(docs) == 1 {
		v.doc = docs[0]
	} else {
		v.doc = map[string]any{"items": docs}
	}
	return v
}

func (a *app) lsCommand() *cobra.Command {
	var only []string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the fetches of the box",
		Long:    "List the fetches of the box, oldest first. Entries stay until they are pruned.",
		Example: "  slotfetch ls\n  slotfetch ls --status failed\n  slotfetch ls -o json | jq '.items[].body.url'",
		Args:    wants(0, 0),
		RunE:    a.act(func(ctx context.Context, _ []string) error { return a.ls(ctx, only) }),
	}
	cmd.Flags().StringSliceVar(&only, "status", nil, "only fetches with this `STATUS`: "+statuses+"; may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("status", cobra.FixedCompletions(strings.Split(statuses, ", "), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) ls(ctx context.Context, only []string) error {
	for _, s := range only {
		if !slices.Contains(strings.Split(statuses, ", "), s) {
			return usage(fmt.Sprintf("unknown status %q", s), "Choose one of: "+statuses+".")
		}
	}
	c, err := a.open()
	if err != nil {
		return err
	}
	defer c.close()
	if a.curl {
		return c.printCurl(http.MethodGet, pathFetches, nil)
	}
	list, err := c.fetches(ctx)
	if err != nil {
		return err
	}
	if len(only) > 0 {
		list.Items = slices.DeleteFunc(list.Items, func(f api.Fetch) bool { return !slices.Contains(only, f.Body.Status) })
	}
	v := fetchesView(list.Items, func(p *page) { fetchTable(p, list.Items) })
	v.doc = list
	return a.show(v)
}

func fetchTable(p *page, list []api.Fetch) {
	if len(list) == 0 {
		p.say("No fetches.")
		return
	}
	p.row("KEY", "STATUS", "PROGRESS", "SLOT", "STARTED", "URL")
	for _, f := range list {
		slot := "-"
		if f.Body.SlotID != nil {
			slot = fmt.Sprint(*f.Body.SlotID)
		}
		progress := "-"
		switch f.Body.Status {
		case "queued":
			progress = orDash(turn(f.Body))
		case "in-progress":
			progress = progressText(f.Body)
		case "finished":
			progress = size(f.Body.BytesTotal)
		case "failed", "cancelled":
			progress = amount(f.Body)
		}
		p.row(f.Key, f.Body.Status, progress, slot, moment(f.Body.StartTime), f.Body.URL)
	}
}

func (a *app) showCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "show KEY",
		SuggestFor:        []string{"status", "info"},
		Short:             "Show one fetch",
		Long:              "Show everything about one fetch. The beginning of a key is enough where it is unambiguous.",
		Example:           "  slotfetch show 3b0a\n  slotfetch show 3b0a -o json | jq -r .body.error",
		Args:              wants(1, 1),
		ValidArgsFunction: a.completeKeys(anyStatus, false),
		RunE:              a.act(a.showFetch),
	}
}

func (a *app) showFetch(ctx context.Context, args []string) error {
	c, keys, err := a.openFor(ctx, args)
	if err != nil {
		return err
	}
	defer c.close()
	if a.curl {
		return c.printCurl(http.MethodGet, fetchPath(keys[0]), nil)
	}
	f, err := c.fetch(ctx, keys[0])
	if err != nil {
		return err
	}
	return a.show(fetchesView([]api.Fetch{f}, func(p *page) { fetchPage(p, f) }))
}

// openFor opens the client and completes the keys.
func (a *app) openFor(ctx context.Context, args []string) (*client, []string, error) {
	c, err := a.open()
	if err != nil {
		return nil, nil, err
	}
	keys, err := c.keys(ctx, args)
	if err != nil {
		c.close()
		return nil, nil, err
	}
	return c, keys, nil
}

func fetchPage(p *page, f api.Fetch) {
	b := f.Body
	p.row("Key:", f.Key)
	p.row("URL:", b.URL)
	p.row("Status:", b.Status)
	switch {
	case b.Status == "in-progress":
		p.row("Progress:", progressText(b))
	case b.Status == "queued" && turn(b) != "":
		p.row("Progress:", strings.TrimPrefix(progressText(b), "queued, "))
	case b.BytesDownloaded > 0:
		p.row("Progress:", amount(b))
	}
	if b.Error != nil {
		p.row("Error:", *b.Error)
	}
	if d := b.ErrorDetails; d != nil {
		if d.Remedy != "" && !strings.HasSuffix(text(b.Error), d.Remedy) {
			p.row("Remedy:", d.Remedy)
		}
		p.row("Error code:", fmt.Sprintf("%s (%s), see %s", d.Code, d.Class, d.Doc))
	}
	if b.SlotID != nil {
		p.row("Slot:", fmt.Sprint(*b.SlotID))
	}
	p.row("SHA-256:", orDash(text(b.SHA256)))
	if b.ChecksumURL != nil {
		p.row("Digest from:", *b.ChecksumURL)
	}
	if b.Deduplicated {
		p.row("Deduplicated:", "yes, the slot had the image already")
	}
	if b.Priority != 0 {
		p.row("Priority:", fmt.Sprint(b.Priority))
	}
	if b.RateLimit != nil {
		p.row("Rate limit:", rate(*b.RateLimit))
	}
	if b.NotBefore != nil {
		p.row("Not before:", moment(b.NotBefore))
	}
	if b.Window != nil {
		p.row("Window:", *b.Window+" (by the clock of the box)")
	}
	p.row("Attempts:", fmt.Sprint(b.Attempts))
	if b.ResumedFrom > 0 {
		p.row("Resumed at:", size(b.ResumedFrom))
	}
	if b.NextAttemptTime != nil {
		p.row("Next attempt:", moment(b.NextAttemptTime))
	}
	if b.RetryReason != nil {
		p.row("Last attempt:", *b.RetryReason)
	}
	if b.TLSVerified != nil {
		p.row("TLS verified:", map[bool]string{true: "yes", false: "no"}[*b.TLSVerified])
	}
	p.row("Started:", moment(b.StartTime))
	p.row("Ended:", moment(b.EndTime))
	if took, ok := duration(b); ok {
		p.row("Took:", span(took))
	}
	if b.BytesPerSecond != nil {
		p.row("Rate:", rate(*b.BytesPerSecond))
	}
}

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "wait KEY...",
		Short: "Wait until fetches have ended, and exit by how they ended",
		Long: `Wait until all the fetches have ended. The exit code is 0 when all finished; otherwise that of
the first that did not: 7 for a wrong SHA-256, 9 for no space or no slot, 1 for the rest.
With --timeout it is 8 when some still go on.

The box may restart meanwhile. Ctrl-C stops the waiting, not the fetches.`,
		Example:           "  slotfetch wait 3b0a\n  slotfetch wait 3b0a 77c1 --timeout 30m --progress none",
		Args:              wants(1, -1),
		ValidArgsFunction: a.completeKeys(live, true),
		RunE: a.act(func(ctx context.Context, args []string) error {
			c, keys, err := a.openFor(ctx, args)
			if err != nil {
				return err
			}
			defer c.close()
			if a.curl {
				return a.each(keys, func(key string) error { return c.printCurl(http.MethodGet, fetchPath(key), nil) })
			}
			last, err := a.follow(ctx, c, keys)
			if err != nil {
				return err
			}
			return a.showOutcomes(last)
		}),
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// age is for entries that have ended: how long ago.
func age(now time.Time, s *string) (time.Duration, bool) {
	if s == nil {
		return 0, false
	}
	t, err := time.Parse(api.TimeLayout, *s)
	return now.Sub(t), err == nil
}
