package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"slotfetch/api"
)

func (a *app) attemptsCommand() *cobra.Command {
	return &cobra.Command{
		Use:        "attempts KEY",
		SuggestFor: []string{"why", "trace", "log"},
		Short:      "Show why a fetch is slow or does not get on",
		Long: `Show what each attempt of a fetch did, the one that runs last: where it connected to, how long
that took, how fast the bytes came, and how it ended. The sentence at the end sums it up.

What limits an attempt is the stage that was at work for longest: the network (the server
included), hash (computing the digest), the disk, or a rate limit.`,
		Example:           "  slotfetch attempts 3b0a\n  slotfetch attempts 3b0a -o ndjson | jq -r .body.error_code",
		Args:              wants(1, 1),
		ValidArgsFunction: a.completeKeys(anyStatus, false),
		RunE:              a.act(a.showAttempts),
	}
}

func (a *app) showAttempts(ctx context.Context, args []string) error {
	c, keys, err := a.openFor(ctx, args)
	if err != nil {
		return err
	}
	defer c.close()
	key := keys[0]
	if a.curl {
		return c.printCurl(http.MethodGet, attemptsPath(key), nil)
	}
	f, err := c.fetch(ctx, key)
	if err != nil {
		return err
	}
	list, err := c.attempts(ctx, key)
	if err != nil {
		return err
	}
	v := view{doc: list, items: []any{}, text: func(p *page) { attemptTable(p, f, list.Items) }}
	for _, t := range list.Items {
		v.items, v.ids = append(v.items, t), append(v.ids, t.Key)
	}
	return a.show(v)
}

func attemptsPath(key string) string { return fetchPath(key) + "/attempts" }

func (c *client) attempts(ctx context.Context, key string) (api.AttemptList, error) {
	var list api.AttemptList
	_, err := c.call(ctx, http.MethodGet, attemptsPath(key), nil, &list)
	if list.Items == nil {
		list.Items = []api.Attempt{}
	}
	return list, missing(err, "the box knows nothing of the attempts of fetch "+key, "Its agent may be older than this program.")
}

func attemptTable(p *page, f api.Fetch, list []api.Attempt) {
	if len(list) > 0 {
		p.row("NO", "SOURCE", "STARTED", "RECEIVED", "RATE", "CONNECT", "TLS", "FIRST BYTE", "LIMITED BY", "END")
	}
	for _, t := range list {
		b := t.Body
		speed := "-"
		if b.BytesPerSecond != nil {
			speed = rate(*b.BytesPerSecond)
		}
		p.row(t.Key, sourceHost(b), moment(b.StartTime), size(b.BytesReceived), speed, took(b.ConnectMS), took(b.TLSMS), took(b.FirstByteMS),
			orDash(text(b.Bottleneck)), attemptEnd(b))
	}
	p.say("%s", diagnosis(f.Body, list))
}

// sourceHost is whom the bytes come from.
func sourceHost(b api.AttemptBody) string {
	raw := b.URL
	if b.RedirectedTo != nil {
		raw = *b.RedirectedTo
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return raw
	}
	return u.Host
}

// took writes a duration in milliseconds as people say it.
func took(ms *int64) string {
	switch {
	case ms == nil:
		return "-"
	case *ms < 1000:
		return fmt.Sprintf("%d ms", *ms)
	}
	return fmt.Sprintf("%.1f s", (time.Duration(*ms) * time.Millisecond).Seconds())
}

func attemptEnd(b api.AttemptBody) string {
	switch {
	case b.EndTime == nil:
		return "running"
	case b.ErrorCode == nil:
		return "complete"
	}
	return *b.ErrorCode
}

// diagnosis is one sentence on why a fetch is as it is.
func diagnosis(f api.FetchBody, list []api.Attempt) string {
	var last *api.AttemptBody
	if n := len(list); n > 0 {
		last = &list[n-1].Body
	}
	switch {
	case f.Deduplicated:
		return "Nothing was downloaded: the slot had the image already."
	case f.Status == "failed":
		return "It failed: " + within(text(f.Error)) + "."
	case f.Status == "cancelled":
		return "It was cancelled."
	case f.Status == "finished" && last != nil && last.Bottleneck != nil:
		return limiting(*last, "was what limited it")
	case f.Status == "finished":
		return "It finished."
	case turn(f) == "paused":
		return "It is paused."
	case f.Status == "queued" && last != nil && last.Error != nil:
		return "It is queued again: " + within(*last.Error) + "."
	case f.Status == "queued":
		return "It is queued."
	case stage(f) == "waiting":
		return fmt.Sprintf("It waits: %s; next attempt at %s.", within(text(f.RetryReason)), moment(f.NextAttemptTime))
	case stage(f) != "downloading":
		return fmt.Sprintf("All bytes are here: it is %s.", stage(f))
	case last == nil && f.ChecksumURL != nil && f.SHA256 == nil:
		return "It reads the checksum file."
	case last == nil || last.EndTime != nil:
		return "The next attempt is about to begin."
	case last.Bottleneck == nil || last.BytesReceived == 0:
		return beginning(*last)
	case text(last.Bottleneck) == "network" && last.BytesPerSecond != nil && *last.BytesPerSecond == 0:
		return "It stands still: nothing comes from " + whence(*last) + "."
	}
	return limiting(*last, "is what limits it")
}

// beginning says what an attempt without a byte is about.
func beginning(b api.AttemptBody) string {
	where := whence(b)
	switch {
	case b.Address == nil:
		return "It has not reached " + where + " yet."
	case b.ConnectMS == nil:
		return "It connects to " + where + "."
	case b.TLSMS == nil && (strings.HasPrefix(b.URL, "https:") || strings.HasPrefix(text(b.RedirectedTo), "https:")):
		return "It is connected to " + where + " and waits for TLS."
	}
	return "It is connected to " + where + " and waits for the first byte."
}

// limiting says which stage makes the pace of an attempt, and which pace.
func limiting(b api.AttemptBody, verb string) string {
	who := text(b.Bottleneck)
	switch who {
	case "network":
		who = "The network"
		if strings.HasPrefix(b.URL, "file:") {
			who = "Reading the file"
		}
	case "hash":
		who = "Computing the digest"
	case "disk":
		who = "The disk"
	case "limit":
		who = "The rate limit"
	}
	s := who + " " + verb
	if b.BytesPerSecond != nil {
		s += fmt.Sprintf(": %s from %s", rate(*b.BytesPerSecond), whence(b))
		switch {
		case b.Connections == 1:
			s += " over 1 connection"
		case b.Connections > 1:
			s += fmt.Sprintf(" over %d connections", b.Connections)
		}
	}
	return s + "."
}

// whence is the address that an attempt talks to; before that, and for a file, the source.
func whence(b api.AttemptBody) string {
	switch {
	case b.Proxy != nil:
		return fmt.Sprintf("%s through the proxy %s", sourceHost(b), *b.Proxy)
	case b.Address != nil:
		return *b.Address
	}
	return sourceHost(b)
}

// within makes a sentence a part of another: without its full stop, and with a small letter unless it begins with a name.
func within(s string) string {
	s = strings.TrimSuffix(s, ".")
	first, n := utf8.DecodeRuneInString(s)
	second, _ := utf8.DecodeRuneInString(s[n:])
	if unicode.IsUpper(second) || unicode.IsUpper(first) && n == len(s) {
		return s
	}
	return lowerFirst(s)
}
