package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"slotfetch/api"
)

func anySlot(api.SlotBody) bool { return true }

func (a *app) slotsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "slots",
		Short:   "Look after the slots of the box",
		Long:    "Look after the slots of the box and the images in them. Without a subcommand: list.",
		Example: "  slotfetch slots\n  slotfetch slots show 2\n  slotfetch slots rm 2",
		Args:    wantsCommand,
		RunE:    a.act(a.listSlots),
	}
	list := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the slots",
		Long:    "List all the slots, empty ones too. \"current\" runs now, \"next\" boots next.",
		Example: "  slotfetch slots ls\n  slotfetch slots ls -o json | jq .body.number_of_empty_slots",
		Args:    wants(0, 0),
		RunE:    a.act(a.listSlots),
	}
	show := &cobra.Command{
		Use:               "show N",
		Short:             "Show one slot",
		Long:              "Show everything about the image in slot N.",
		Example:           "  slotfetch slots show 2",
		Args:              wants(1, 1),
		ValidArgsFunction: a.completeSlots(anySlot),
		RunE:              a.act(a.showSlot),
	}
	var yes bool
	rm := &cobra.Command{
		Use:        "rm N",
		SuggestFor: []string{"remove", "delete", "empty"},
		Short:      "Empty a slot",
		Long: `Delete the image in slot N for good. The slot that runs now, the one that boots next, one
that is pinned, and one that a fetch has reserved are protected: that exits with 6.`,
		Example:           "  slotfetch slots rm 2\n  slotfetch slots rm 2 --yes",
		Args:              wants(1, 1),
		ValidArgsFunction: a.completeSlots(func(b api.SlotBody) bool { return !b.Empty() && !b.Current && !b.AfterReboot && !b.Pinned }),
		RunE:              a.act(func(ctx context.Context, args []string) error { return a.removeSlot(ctx, args[0], yes) }),
	}
	rm.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.AddCommand(list, show, rm)
	cmd.AddCommand(a.slotCareCommands()...)
	return cmd
}

func slotNumber(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0, usage(fmt.Sprintf("%q is not the number of a slot", s), "See the slots with: slotfetch slots")
	}
	return n, nil
}

func (a *app) listSlots(ctx context.Context, _ []string) error {
	return a.with(http.MethodGet, pathSlots, nil, func(c *client) error {
		list, err := c.slots(ctx)
		if err != nil {
			return err
		}
		return a.show(listView(list, list.Items, func(s api.Slot) string { return s.Key }, func(p *page) {
			p.row("SLOT", "VERSION", "USE", "SIZE", "FETCHED", "SOURCE")
			for _, s := range list.Items {
				if s.Body.Empty() {
					p.row(s.Key, "(empty)", "", "", "", "")
					continue
				}
				p.row(s.Key, s.Body.Version, slotUse(s.Body), size(s.Body.Size), moment(s.Body.FetchedAt), orDash(s.Body.Source))
			}
		}))
	})
}

// slotUse says why a slot is protected, and whether its image is suspicious.
func slotUse(b api.SlotBody) string {
	var uses []string
	if b.Current {
		uses = append(uses, "current")
	}
	if b.AfterReboot {
		uses = append(uses, "next")
	}
	if b.Pinned {
		uses = append(uses, "pinned")
	}
	if b.State != "" && b.State != "ok" {
		uses = append(uses, b.State)
	}
	return orDash(strings.Join(uses, ","))
}

func (a *app) showSlot(ctx context.Context, args []string) error {
	n, err := slotNumber(args[0])
	if err != nil {
		return err
	}
	return a.with(http.MethodGet, slotPath(n), nil, func(c *client) error {
		s, err := c.slot(ctx, n)
		if err != nil {
			return err
		}
		return a.show(view{doc: s, ids: []string{s.Key}, text: func(p *page) { slotPage(p, s) }})
	})
}

func slotPage(p *page, s api.Slot) {
	b := s.Body
	p.row("Slot:", s.Key)
	if b.Empty() {
		p.row("Image:", "none, the slot is empty")
		return
	}
	p.row("Version:", b.Version)
	if b.Label != "" {
		p.row("Label:", b.Label)
	}
	p.row("Use:", slotUse(b))
	p.row("Size:", fmt.Sprintf("%s (%d bytes)", size(b.Size), b.Size))
	p.row("SHA-256:", orDash(b.SHA256))
	p.row("Volume:", orDash(b.VolumeID))
	p.row("Fetched:", moment(b.FetchedAt))
	p.row("Source:", orDash(b.Source))
	if b.Product != "" {
		p.row("Product:", b.Product)
	}
	if b.SignedBy != "" {
		p.row("Signed by:", b.SignedBy)
	}
	if b.UpgradeFrom != "" {
		p.row("Upgrades:", "version "+b.UpgradeFrom+" or higher")
	}
	if b.MinVersion != "" {
		p.row("Replaced by:", "version "+b.MinVersion+" or higher")
	}
	if b.ScrubbedAt != nil {
		p.row("Last read:", moment(b.ScrubbedAt))
	}
	if b.UpgradeNotes != "" {
		p.line("Notes:\n%s", b.UpgradeNotes)
	}
}

// removeSlot shows what would be lost before it asks; the box has the last word.
func (a *app) removeSlot(ctx context.Context, arg string, yes bool) error {
	n, err := slotNumber(arg)
	if err != nil {
		return err
	}
	return a.with(http.MethodDelete, slotPath(n), nil, func(c *client) error {
		question := func() (string, error) {
			s, err := c.slot(ctx, n)
			image := "which is empty"
			if !s.Body.Empty() {
				image = fmt.Sprintf("with version %s, %s", clean(s.Body.Version), size(s.Body.Size))
			}
			return fmt.Sprintf("Empty slot %d of %s, %s?", n, c.box, image), err
		}
		if !yes {
			if err := a.sure(ctx, "emptying a slot", question); err != nil {
				return err
			}
		}
		reply, err := c.deleteSlot(ctx, n)
		if err != nil {
			return err
		}
		return a.show(view{doc: reply, ids: []string{strconv.Itoa(n)}, text: func(p *page) { p.say("Slot %d is empty.", n) }})
	})
}
