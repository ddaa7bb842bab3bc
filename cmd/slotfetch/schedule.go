package main

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"slotfetch/api"
)

// This file says when, in which order and how fast fetches run: flags of fetch, and the commands pause, resume and change.

// schedule is the flags that fetch and change share.
type schedule struct {
	priority  int
	rate      string
	notBefore string
	window    string
}

func (s *schedule) add(flags *pflag.FlagSet, clear string) {
	flags.IntVar(&s.priority, "priority", 0, "of the fetches that wait, the one with the highest `N` (-1000 to 1000, default 0) goes first")
	flags.StringVar(&s.rate, "rate-limit", "", "receive at most `RATE` bytes a second: 500K, 10M; 0 is no limit")
	flags.StringVar(&s.notBefore, "not-before", "", "do not start before `TIME`: 22:00, 2026-05-04T22:00, 2026-05-04T22:00:00+02:00 or +2h"+clear)
	flags.StringVar(&s.window, "window", "", "run only in this part of each day, by the clock of the box: `22:00-04:00`"+clear)
}

// read turns the flags that are given into what is sent.
func (s *schedule) read(flags *pflag.FlagSet, now time.Time) (out api.FetchSchedule, err error) {
	if flags.Changed("priority") {
		if s.priority < -1000 || s.priority > 1000 {
			return out, usage("--priority must be between -1000 and 1000", "")
		}
		out.Priority = &s.priority
	}
	if flags.Changed("rate-limit") {
		n, err := parseRate(s.rate)
		if err != nil {
			return out, err
		}
		out.RateLimit = &n
	}
	if flags.Changed("not-before") {
		t, err := parseTime(s.notBefore, now)
		if err != nil {
			return out, err
		}
		out.NotBefore = &t
	}
	if flags.Changed("window") {
		if s.window != "" && !windowForm.MatchString(s.window) {
			return out, usage(fmt.Sprintf("--window: %q is no daily window", s.window), "It looks like this: 22:00-04:00")
		}
		out.Window = &s.window
	}
	return out, nil
}

var (
	rateForm   = regexp.MustCompile(`^(\d+(?:\.\d+)?)([KkMmGg]?)(?:i?[Bb])?(?:/s)?$`)
	windowForm = regexp.MustCompile(`^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-4]):[0-5]\d$`)
)

// parseRate reads bytes a second with the binary units that --limit-rate of curl has.
func parseRate(s string) (int64, error) {
	m := rateForm.FindStringSubmatch(s)
	if m == nil {
		return 0, usage(fmt.Sprintf("--rate-limit: %q is no rate", s), "Give bytes a second: 500K, 10M, 1.5G; 0 is no limit.")
	}
	n, _ := strconv.ParseFloat(m[1], 64)
	unit := map[string]float64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[strings.ToUpper(m[2])]
	n = math.Round(n * unit)
	switch {
	case n == 0:
		return 0, nil
	case n < 1024:
		return 0, usage("--rate-limit is below 1 KiB a second", "A server would give up before. 0 is no limit.")
	case n > 999_999_999:
		return 0, usage("--rate-limit is above what a box takes", "0 is no limit.")
	}
	return int64(n), nil
}

// parseTime reads a moment, by the clock and zone of this machine where it has no zone, and gives it by RFC 3339; empty is
// empty.
func parseTime(s string, now time.Time) (string, error) {
	if s == "" {
		return "", nil
	}
	if rest, ok := strings.CutPrefix(s, "+"); ok {
		if d, err := time.ParseDuration(rest); err == nil {
			return now.Add(d).Format(time.RFC3339), nil
		}
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t.Format(time.RFC3339), nil
	}
	for _, layout := range []string{"2006-01-02T15:04", "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02 15:04:05"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t.Format(time.RFC3339), nil
		}
	}
	if t, err := time.Parse("15:04", s); err == nil {
		at := time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), 0, 0, time.Local)
		if !at.After(now) {
			at = time.Date(now.Year(), now.Month(), now.Day()+1, t.Hour(), t.Minute(), 0, 0, time.Local)
		}
		return at.Format(time.RFC3339), nil
	}
	return "", usage(fmt.Sprintf("--not-before: %q is no time", s), "Give 22:00, 2026-05-04T22:00, 2026-05-04T22:00:00+02:00 or +2h.")
}

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:        "pause KEY...",
		SuggestFor: []string{"hold", "suspend"},
		Short:      "Let fetches wait until they are resumed",
		Long: `Pause fetches. One that is being downloaded closes its connection, keeps what it has, and is
queued again; another fetch may run meanwhile. A pause outlives a restart of the box; after it
the limit of time (fetch.deadline) begins anew. Resume it with: slotfetch resume KEY`,
		Example:           "  slotfetch pause 3b0a",
		Args:              wants(1, -1),
		ValidArgsFunction: a.completeKeys(live, true),
		RunE: a.act(func(ctx context.Context, args []string) error {
			yes := true
			return a.change(ctx, args, api.FetchChange{FetchSchedule: api.FetchSchedule{Paused: &yes}})
		}),
	}
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "resume KEY...",
		SuggestFor:        []string{"continue", "unpause"},
		Short:             "Let paused fetches go on",
		Long:              "Let paused fetches go on where they were, when their turn comes.",
		Example:           "  slotfetch resume 3b0a",
		Args:              wants(1, -1),
		ValidArgsFunction: a.completeKeys(live, true),
		RunE: a.act(func(ctx context.Context, args []string) error {
			no := false
			return a.change(ctx, args, api.FetchChange{FetchSchedule: api.FetchSchedule{Paused: &no}})
		}),
	}
}

// changing is the command change with its flags.
type changing struct {
	schedule
	app         *app
	first, last bool
	before      string
}

func (a *app) changeCommand() *cobra.Command {
	c := &changing{app: a}
	cmd := &cobra.Command{
		Use:        "change KEY... [options]",
		SuggestFor: []string{"set", "edit", "move", "limit", "priority"},
		Short:      "Change order, rate or time of fetches",
		Long: `Change when, in which order and how fast fetches run. What is not named stays as it is; a rate
limit holds at once, also for a download that is going on. A download whose time is over keeps
what it has and goes on when its time comes.

--first, --last and --before move a queued fetch among those of its priority.`,
		Example: `  slotfetch change 3b0a --first
  slotfetch change 3b0a --rate-limit 2M --window 22:00-04:00
  slotfetch change 3b0a --rate-limit 0 --window '' --not-before ''`,
		Args:              wants(1, -1),
		ValidArgsFunction: a.completeKeys(live, true),
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	c.add(flags, "; '' takes it away")
	flags.BoolVar(&c.first, "first", false, "to the front of the queue")
	flags.BoolVar(&c.last, "last", false, "to the end of the queue")
	flags.StringVar(&c.before, "before", "", "before the queued fetch `KEY`, with its priority")
	cmd.MarkFlagsMutuallyExclusive("first", "last", "before")
	cmd.RunE = a.act(func(ctx context.Context, args []string) error { return c.run(ctx, flags, args) })
	return cmd
}

func (c *changing) run(ctx context.Context, flags *pflag.FlagSet, args []string) error {
	s, err := c.read(flags, c.app.now())
	if err != nil {
		return err
	}
	want := api.FetchChange{FetchSchedule: s}
	switch {
	case c.first:
		want.Position = "first"
	case c.last:
		want.Position = "last"
	case c.before != "":
		want.Position = "before:" + c.before // which change completes
	}
	if want == (api.FetchChange{}) {
		return usage("nothing to change is given", "See what can be changed with: slotfetch change --help")
	}
	return c.app.change(ctx, args, want)
}

// change applies want to every fetch of args.
func (a *app) change(ctx context.Context, args []string, want api.FetchChange) error {
	c, keys, err := a.openFor(ctx, args)
	if err != nil {
		return err
	}
	defer c.close()
	if other, ok := strings.CutPrefix(want.Position, "before:"); ok {
		found, err := c.keys(ctx, []string{other})
		if err != nil {
			return err
		}
		want.Position = "before:" + found[0]
	}
	if a.curl {
		return a.each(keys, func(key string) error { return c.printCurl(http.MethodPatch, fetchPath(key), &want) })
	}
	var docs []api.Fetch
	failed := a.each(keys, func(key string) error {
		f, err := c.changeFetch(ctx, key, want)
		if err == nil {
			docs = append(docs, f)
		}
		return err
	})
	if len(docs) > 0 {
		if err := a.show(fetchesView(docs, func(p *page) {
			for _, f := range docs {
				p.say("Fetch %s: %s.", f.Key, progressText(f.Body))
			}
		})); err != nil {
			return err
		}
	}
	return failed
}

// turn says why a queued fetch does not run, or when it will; empty for others.
func turn(b api.FetchBody) string {
	switch {
	case b.Status != "queued":
		return ""
	case b.Paused:
		return "paused"
	case b.EligibleTime != nil:
		return "from " + moment(b.EligibleTime)
	case b.QueuePosition != nil:
		return fmt.Sprintf("number %d in the queue", *b.QueuePosition)
	}
	return ""
}
