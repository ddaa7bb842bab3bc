package main

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"slotfetch/api"
)

// This file is the care of slots: verify, pin, unpin, label, plan.

func occupied(b api.SlotBody) bool { return !b.Empty() }

func (a *app) slotCareCommands() []*cobra.Command {
	verify := &cobra.Command{
		Use:        "verify N...",
		SuggestFor: []string{"check", "scrub", "test"},
		Short:      "Read images again and compare their digests",
		Long: `Have the box read the image in slot N from its disk, as a whole, and compare the SHA-256 with
that of its fetch. Nothing is deleted. An image that differs or cannot be read makes the slot
"degraded", and that exits with 7. The box does the same by itself from time to time.`,
		Example:           "  slotfetch slots verify 2\n  slotfetch slots verify 1 2 3 --timeout 10m",
		Args:              wants(1, -1),
		ValidArgsFunction: a.completeSlots(occupied),
		RunE:              a.act(a.verifySlots),
	}
	pin := &cobra.Command{
		Use:               "pin N",
		SuggestFor:        []string{"keep", "lock", "protect"},
		Short:             "Protect an image from being deleted",
		Long:              "Keep the image in slot N: it can neither be deleted nor does the box evict it for a new one.",
		Example:           "  slotfetch slots pin 2",
		Args:              wants(1, 1),
		ValidArgsFunction: a.completeSlots(func(b api.SlotBody) bool { return occupied(b) && !b.Pinned }),
		RunE: a.act(func(ctx context.Context, args []string) error {
			yes := true
			return a.changeSlot(ctx, args[0], api.SlotChange{Pinned: &yes}, "Slot %d is pinned.")
		}),
	}
	unpin := &cobra.Command{
		Use:               "unpin N",
		SuggestFor:        []string{"release", "unlock"},
		Short:             "Let a pinned image be deleted again",
		Long:              "Take back what slotfetch slots pin did.",
		Example:           "  slotfetch slots unpin 2",
		Args:              wants(1, 1),
		ValidArgsFunction: a.completeSlots(func(b api.SlotBody) bool { return b.Pinned }),
		RunE: a.act(func(ctx context.Context, args []string) error {
			no := false
			return a.changeSlot(ctx, args[0], api.SlotChange{Pinned: &no}, "Slot %d is no longer pinned.")
		}),
	}
	label := &cobra.Command{
		Use:        "label N TEXT",
		SuggestFor: []string{"name", "note"},
		Short:      "Give an image a name",
		Long: `Note TEXT, at most 64 characters, about the image in slot N. It is shown with the slot until
the slot is emptied. An empty TEXT takes the label away.`,
		Example:           "  slotfetch slots label 2 'known good'\n  slotfetch slots label 2 ''",
		Args:              wants(2, 2),
		ValidArgsFunction: a.completeSlots(occupied),
		RunE: a.act(func(ctx context.Context, args []string) error {
			done := "Slot %d has its label."
			if args[1] == "" {
				done = "Slot %d has no label."
			}
			return a.changeSlot(ctx, args[0], api.SlotChange{Label: &args[1]}, done)
		}),
	}
	plan := &cobra.Command{
		Use:        "plan SIZE",
		SuggestFor: []string{"space", "fit", "df"},
		Short:      "Ask whether an image would fit",
		Long: `Ask the box whether an image of SIZE (bytes, or 300M, 1.5G: binary units) would fit now, into
which slot, and what would be evicted for it. Nothing is changed. It exits with 9 if not.`,
		Example:           "  slotfetch slots plan 1.5G\n  slotfetch slots plan $(stat -c %s sps.iso)",
		Args:              wants(1, 1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              a.act(a.planSlot),
	}
	return []*cobra.Command{verify, pin, unpin, label, plan}
}

func (a *app) verifySlots(ctx context.Context, args []string) error {
	for _, arg := range args {
		if _, err := slotNumber(arg); err != nil {
			return err
		}
	}
	c, err := a.open()
	if err != nil {
		return err
	}
	defer c.close()
	if a.curl {
		return a.each(args, func(arg string) error { return c.printCurl(http.MethodPost, pathSlots+"/"+arg+"/verify", nil) })
	}
	if a.timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, a.timeout, &failure{code: exitPending, kind: "StillPending",
			message: fmt.Sprintf("after %s the box still reads; it goes on", a.timeout), hint: "See the result with: slotfetch slots"})
		defer stop()
	}
	var docs []api.Slot
	err = a.each(args, func(arg string) error {
		n, _ := slotNumber(arg)
		s, err := c.verifySlot(ctx, n)
		if f, ok := context.Cause(ctx).(*failure); ok && err != nil {
			return f
		}
		if err != nil {
			return err
		}
		docs = append(docs, s)
		if s.Body.State == "degraded" {
			return &failure{code: exitIntegrity, kind: "Degraded", message: fmt.Sprintf("the image in slot %d is not what was fetched any more", n),
				hint: "Fetch it again, delete the slot with: slotfetch slots rm " + arg + ", and check the disk of the box."}
		}
		return nil
	})
	v := listView(map[string]any{"items": docs}, docs, func(s api.Slot) string { return s.Key }, func(p *page) {
		for _, s := range docs {
			if s.Body.State != "degraded" {
				p.say("Slot %s is what was fetched: version %s, %s.", s.Key, s.Body.Version, size(s.Body.Size))
			}
		}
	})
	if len(args) == 1 && len(docs) == 1 {
		v.doc = docs[0]
	}
	if len(docs) > 0 {
		if serr := a.show(v); serr != nil {
			return serr
		}
	}
	return err
}

// verifySlot waits also where the box takes longer than one answer may.
func (c *client) verifySlot(ctx context.Context, number int) (api.Slot, error) {
	var s api.Slot
	resp, err := c.call(ctx, http.MethodPost, slotPath(number)+"/verify", nil, &s)
	if err != nil {
		return s, missing(err, fmt.Sprintf("slot %d is empty, or there is no such slot", number), "See the slots with: slotfetch slots")
	}
	before := text(s.Body.ScrubbedAt)
	for resp.StatusCode == http.StatusAccepted && text(s.Body.ScrubbedAt) == before {
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return s, ended(ctx)
		}
		if s, err = c.slot(ctx, number); err != nil {
			return s, err
		}
		if s.Body.Empty() {
			return s, &failure{code: exitNotFound, kind: "ResourceNotFound", message: fmt.Sprintf("slot %d was emptied meanwhile", number)}
		}
		if text(s.Body.ScrubbedAt) != before {
			break
		}
		// Once more: a box that still reads has this wait for the same result, for a minute or so, and one that was restarted
		// has forgotten that it was to read.
		s = api.Slot{}
		if resp, err = c.call(ctx, http.MethodPost, slotPath(number)+"/verify", nil, &s); err != nil {
			return s, noImage(err, number)
		}
	}
	return s, nil
}

func (a *app) changeSlot(ctx context.Context, arg string, want api.SlotChange, done string) error {
	n, err := slotNumber(arg)
	if err != nil {
		return err
	}
	return a.with(http.MethodPatch, slotPath(n), &want, func(c *client) error {
		var s api.Slot
		if _, err := c.call(ctx, http.MethodPatch, slotPath(n), &want, &s); err != nil {
			return missing(err, fmt.Sprintf("slot %d is empty, or there is no such slot", n), "See the slots with: slotfetch slots")
		}
		return a.show(view{doc: s, ids: []string{s.Key}, text: func(p *page) { p.say(done, n) }})
	})
}

func (a *app) planSlot(ctx context.Context, args []string) error {
	n, err := parseSize(args[0])
	if err != nil {
		return err
	}
	path := fmt.Sprintf("%s/plan?size=%d", pathSlots, n)
	return a.with(http.MethodGet, path, nil, func(c *client) error {
		var plan api.SlotPlan
		if _, err := c.call(ctx, http.MethodGet, path, nil, &plan); err != nil {
			return err
		}
		b := plan.Body
		v := view{doc: plan, text: func(p *page) {
			p.row("Fits:", map[bool]string{true: "yes", false: "no"}[b.Fits])
			p.row("Size:", fmt.Sprintf("%s (%d bytes)", size(b.Size), b.Size))
			if b.SlotID != nil {
				p.row("Slot:", strconv.Itoa(*b.SlotID))
			}
			if b.EvictsSlotID != nil {
				p.row("Evicts:", fmt.Sprintf("slot %d, which frees %s", *b.EvictsSlotID, size(b.Gain)))
			}
			p.row("Free:", fmt.Sprintf("%s, beside %s that stay free", size(b.Free), size(b.Reserve)))
			p.row("Empty slots:", strconv.Itoa(b.NumberOfEmptySlots))
			if len(b.ReservedSlots) > 0 {
				p.row("Reserved:", strings.Trim(fmt.Sprint(b.ReservedSlots), "[]"))
			}
			p.line("%s", b.Message)
		}}
		if b.SlotID != nil {
			v.ids = []string{strconv.Itoa(*b.SlotID)}
		}
		if err := a.show(v); err != nil {
			return err
		}
		if !b.Fits {
			return &failure{code: exitNoSpace, kind: "DoesNotFit", message: "an image of " + size(n) + " would not fit: " + b.Message, hint: makeRoom, printed: a.output == "table"}
		}
		return nil
	})
}

// parseSize reads a number of bytes in the form of --rate-limit.
func parseSize(s string) (int64, error) {
	m := rateForm.FindStringSubmatch(s)
	if m == nil {
		return 0, usage(fmt.Sprintf("%q is no size", s), "Give bytes, or 300M, 1.5G.")
	}
	if m[2] == "" && !strings.Contains(m[1], ".") {
		n, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			return 0, usage(fmt.Sprintf("%q is too large", s), "")
		}
		return n, nil
	}
	n, _ := strconv.ParseFloat(m[1], 64)
	n = math.Round(n * map[string]float64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[strings.ToUpper(m[2])])
	if n >= math.MaxInt64 {
		return 0, usage(fmt.Sprintf("%q is too large", s), "")
	}
	return int64(n), nil
}
