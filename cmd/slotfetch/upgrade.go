package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"slotfetch/api"
)

const (
	pathTest     = "/api/firmware/test"
	pathUpgrade  = "/api/firmware/upgrade"
	pathUpgrades = "/api/firmware/upgrades"
	pathRollback = "/api/firmware/rollback"
)

const rebootForms = "now, next, none"

// testAgain is the pause before a box is asked again whether it has tested a slot; it then holds its answer.
const testAgain = 2 * time.Second

func upgradable(b api.SlotBody) bool { return !b.Empty() && !b.Current }

func (a *app) testCommand() *cobra.Command {
	return &cobra.Command{
		Use:        "test N",
		SuggestFor: []string{"verify", "check"},
		Short:      "Look whether a slot could be activated",
		Long: `Have the box read the image in slot N from its disk, compare the digest, and look whether it
could be activated; the vendor's own checks run too. That takes seconds for each GiB and
changes nothing. It exits with 1 if not, and with 8 if that is not known after --timeout.`,
		Example:           "  slotfetch test 2\n  slotfetch test 2 -o json | jq -r .body.test_summary",
		Args:              wants(1, 1),
		ValidArgsFunction: a.completeSlots(func(b api.SlotBody) bool { return !b.Empty() }),
		RunE:              a.act(func(ctx context.Context, args []string) error { return a.testSlot(ctx, args[0]) }),
	}
}

// upgrade is a call of upgrade or rollback.
type upgrade struct {
	app *app
	api.RollbackRequest
	check, yes bool
}

// flags are those that upgrade and rollback share.
func (u *upgrade) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&u.Message, "message", "m", "", "why, as `TEXT` for the history; the box may require it")
	f.StringVar(&u.Reboot, "reboot", "now", "`WHEN` the box reboots: "+rebootForms)
	f.BoolVarP(&u.yes, "yes", "y", false, "do not ask")
	_ = cmd.RegisterFlagCompletionFunc("reboot", cobra.FixedCompletions(strings.Split(rebootForms, ", "), cobra.ShellCompDirectiveNoFileComp))
}

func (u *upgrade) valid() error {
	if !slices.Contains(strings.Split(rebootForms, ", "), u.Reboot) {
		return usage(fmt.Sprintf("unknown moment %q for --reboot", u.Reboot), "Choose one of: "+rebootForms+".")
	}
	return nil
}

func (a *app) upgradeCommand() *cobra.Command {
	u := &upgrade{app: a}
	cmd := &cobra.Command{
		Use:        "upgrade N",
		SuggestFor: []string{"activate", "install"},
		Short:      "Activate a slot and reboot the box into it",
		Long: `Test the image in slot N, make it the one that boots next, and reboot the box. The box falls
back if the slot does not boot; once it runs and is healthy, it is the current slot. See what
became of it with: slotfetch history

--reboot next leaves the reboot to you; so does none, where the box will not reboot by itself to
go back either, if it turns out not to be healthy.`,
		Example: `  slotfetch upgrade 2
  slotfetch upgrade 2 --check
  slotfetch upgrade 2 --reboot next --message CHG-1234 --yes`,
		Args:              wants(1, 1),
		ValidArgsFunction: a.completeSlots(upgradable),
		RunE:              a.act(func(ctx context.Context, args []string) error { return u.run(ctx, args[0]) }),
	}
	cmd.Flags().BoolVar(&u.check, "check", false, "only test the slot, as slotfetch test does")
	u.flags(cmd)
	return cmd
}

func (a *app) rollbackCommand() *cobra.Command {
	u := &upgrade{app: a}
	cmd := &cobra.Command{
		Use:        "rollback",
		SuggestFor: []string{"revert", "downgrade", "undo"},
		Short:      "Go back to the slot before",
		Long: `Before the reboot of an upgrade: take it back, so that the current slot boots again. When no
upgrade is under way: activate the slot that ran before the current one, and reboot the box.`,
		Example: "  slotfetch rollback\n  slotfetch rollback --reboot next --message 'CHG-1234 withdrawn' --yes",
		Args:    wants(0, 0),
		RunE:    a.act(func(ctx context.Context, _ []string) error { return u.back(ctx) }),
	}
	u.flags(cmd)
	return cmd
}

func (a *app) pendingCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pending",
		Short: "Tell whether the box waits for a reboot",
		Long: `Tell whether another slot than the one that runs boots next. The exit code is 0 if so, that is,
if the box waits for a reboot, and 1 if not.`,
		Example: "  slotfetch pending\n  slotfetch pending -q && echo 'reboot wanted'",
		Args:    wants(0, 0),
		RunE:    a.act(func(ctx context.Context, _ []string) error { return a.pending(ctx) }),
	}
}

func (a *app) historyCommand() *cobra.Command {
	return &cobra.Command{
		Use:        "history",
		SuggestFor: []string{"upgrades", "log"},
		Short:      "List the upgrades of the box",
		Long:       "List the upgrades of the box, newest first: who activated which slot, why, and what became\nof it.",
		Example:    "  slotfetch history\n  slotfetch history -o json | jq -r '.items[0].body.status'",
		Args:       wants(0, 0),
		RunE:       a.act(func(ctx context.Context, _ []string) error { return a.history(ctx) }),
	}
}

// noImage is for a slot that the user named.
func noImage(err error, slot int) error {
	return missing(err, fmt.Sprintf("there is no image in slot %d", slot), "See the slots with: slotfetch slots")
}

// tested words a test that said no: a failure, with its summary.
func (a *app) tested(err error) error {
	f, ok := errors.AsType[*failure](err)
	if !ok || f.kind != "FirmwareTestFailed" {
		return err
	}
	f.code = exitFailed
	if summary, ok := f.details["test_summary"].(string); ok && a.output == "table" {
		p := &page{quiet: a.quiet, colour: a.colour()}
		p.line("%s", summary)
		p.flush(a.stdout)
	}
	return f
}

// afterTest posts what makes the box test a slot first. A box that needs longer for that than one answer may take goes on, and is
// asked until it is through.
func (c *client) afterTest(ctx context.Context, path string, request, out any) error {
	if c.app.timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, c.app.timeout)
		defer stop()
	}
	for {
		_, err := c.call(ctx, http.MethodPost, path, request, out)
		f, ok := errors.AsType[*failure](err)
		if ok && f.status == http.StatusServiceUnavailable && f.details["state"] == "testing" {
			progress, _, _ := strings.Cut(f.message, " The test goes on") // the rest is for those who call by hand
			c.app.note("%s", progress)
			select {
			case <-time.After(testAgain):
				continue
			case <-ctx.Done():
				err = ended(ctx)
			}
		}
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
			return &failure{code: exitPending, kind: "StillPending", message: fmt.Sprintf("after %s the box is still testing the slot", c.app.timeout),
				hint: "Call again with more time; before that, look whether an upgrade has begun with: slotfetch history"}
		}
		return err
	}
}

func (a *app) testSlot(ctx context.Context, arg string) error {
	n, err := slotNumber(arg)
	if err != nil {
		return err
	}
	request := &api.SlotTestRequest{SlotID: n}
	return a.with(http.MethodPost, pathTest, request, func(c *client) error {
		var reply api.SlotTest
		if err := c.afterTest(ctx, pathTest, request, &reply); err != nil {
			return a.tested(noImage(err, n))
		}
		return a.show(view{doc: reply, ids: []string{reply.Key}, text: func(p *page) { p.line("%s", reply.Body.TestSummary) }})
	})
}

// run asks before it reboots a box.
func (u *upgrade) run(ctx context.Context, arg string) error {
	a := u.app
	if u.check {
		return a.testSlot(ctx, arg)
	}
	n, err := slotNumber(arg)
	if err == nil {
		err = u.valid()
	}
	if err != nil {
		return err
	}
	request := &api.UpgradeRequest{SlotID: n, RollbackRequest: u.RollbackRequest}
	return a.with(http.MethodPost, pathUpgrade, request, func(c *client) error {
		question := func() (string, error) {
			s, err := c.slot(ctx, n)
			if err == nil && s.Body.Empty() {
				err = &failure{code: exitNotFound, kind: "ResourceNotFound", message: fmt.Sprintf("there is no image in slot %d", n), hint: "See the slots with: slotfetch slots"}
			}
			return fmt.Sprintf("Upgrade %s to slot %d, version %s%s?", c.box, n, clean(s.Body.Version), u.consequence()), err
		}
		if !u.yes {
			if err := a.sure(ctx, "an upgrade", question); err != nil {
				return err
			}
		}
		var reply api.SlotTest
		if err := c.afterTest(ctx, pathUpgrade, request, &reply); err != nil {
			return a.tested(noImage(err, n))
		}
		return a.show(view{doc: reply, ids: []string{reply.Body.UpgradeID}, text: func(p *page) {
			p.line("%s", reply.Body.TestSummary)
			p.say("%s", u.outcome(reply.Key))
		}})
	})
}

// consequence is the end of a question.
func (u *upgrade) consequence() string {
	if u.Reboot == "now" {
		return ", and reboot it now"
	}
	return ", at the next reboot"
}

// outcome says what happens to the box now.
func (u *upgrade) outcome(slot string) string {
	if u.Reboot == "now" {
		return "The box reboots into slot " + slot + "."
	}
	return "Slot " + slot + " boots at the next reboot."
}

func (u *upgrade) back(ctx context.Context) error {
	a := u.app
	if err := u.valid(); err != nil {
		return err
	}
	return a.with(http.MethodPost, pathRollback, &u.RollbackRequest, func(c *client) error {
		question := func() (string, error) {
			live, _, err := c.waiting(ctx)
			if live != nil {
				return fmt.Sprintf("Take back the upgrade of %s to slot %d, version %s?", c.box, live.Body.ToSlot, clean(live.Body.ToVersion)), err
			}
			return fmt.Sprintf("Go back on %s to the slot before%s?", c.box, u.consequence()), err
		}
		if !u.yes {
			if err := a.sure(ctx, "a rollback", question); err != nil {
				return err
			}
		}
		var reply api.Upgrade
		if err := c.afterTest(ctx, pathRollback, &u.RollbackRequest, &reply); err != nil {
			return a.tested(err)
		}
		return a.show(view{doc: reply, ids: []string{reply.Key}, text: func(p *page) {
			if reply.Body.Rollback && reply.Body.Status == "requested" {
				p.say("%s", u.outcome(strconv.Itoa(reply.Body.ToSlot)))
			} else {
				p.say("The upgrade to slot %d is being taken back. See what becomes of it with: slotfetch history", reply.Body.ToSlot)
			}
		}})
	})
}

// waiting gives the upgrade that is under way, if there is one, and the whole history.
func (c *client) waiting(ctx context.Context) (live *api.Upgrade, list api.UpgradeList, err error) {
	_, err = c.call(ctx, http.MethodGet, pathUpgrades, nil, &list)
	if list.Items == nil {
		list.Items = []api.Upgrade{} // [] and not null in what we print
	}
	if err == nil && len(list.Items) > 0 && list.Items[0].Body.EndTime == nil {
		live = &list.Items[0]
	}
	return live, list, err
}

// reboot is what pending prints.
type reboot struct {
	Pending     bool    `json:"pending"`
	CurrentSlot *string `json:"current_slot"`
	NextSlot    *string `json:"next_slot"`
	Upgrade     *string `json:"upgrade"`
}

func (a *app) pending(ctx context.Context) error {
	return a.with(http.MethodGet, pathSlots, nil, func(c *client) error {
		list, err := c.slots(ctx)
		if err != nil {
			return err
		}
		live, _, err := c.waiting(ctx)
		if err != nil {
			return err
		}
		r := reboot{}
		version := ""
		for _, s := range list.Items {
			key := s.Key
			if s.Body.Current {
				r.CurrentSlot = &key
			}
			if s.Body.AfterReboot {
				r.NextSlot, version = &key, s.Body.Version
			}
		}
		r.Pending = r.NextSlot != nil && text(r.CurrentSlot) != *r.NextSlot
		if live != nil {
			r.Upgrade = &live.Key
			// The slot runs already, and is being looked at; or it is no longer to boot.
			r.Pending = r.Pending && live.Body.Status != "booted" && live.Body.Status != "reverting"
		}
		err = a.show(view{doc: r, ids: []string{text(r.NextSlot)}, text: func(p *page) {
			if r.Pending {
				p.say("The box waits for a reboot: slot %s, version %s, boots next.", *r.NextSlot, version)
			} else {
				p.say("The box waits for no reboot.")
			}
		}})
		if err == nil && !r.Pending {
			err = &failure{code: exitFailed, kind: "NotPending", message: "no reboot is pending", printed: true}
		}
		return err
	})
}

func (a *app) history(ctx context.Context) error {
	return a.with(http.MethodGet, pathUpgrades, nil, func(c *client) error {
		_, list, err := c.waiting(ctx)
		if err != nil {
			return err
		}
		return a.show(listView(list, list.Items, func(u api.Upgrade) string { return u.Key }, func(p *page) {
			if len(list.Items) == 0 {
				p.say("No upgrades.")
				return
			}
			p.row("WHEN", "WHO", "FROM", "TO", "STATUS", "MESSAGE", "REASON")
			for _, u := range list.Items {
				b := u.Body
				from := "-"
				if b.FromSlot != nil {
					from = slotVersion(*b.FromSlot, text(b.FromVersion))
				}
				p.row(moment(b.RequestTime), b.RequestedBy, from, slotVersion(b.ToSlot, b.ToVersion), b.Status, orDash(b.Message), orDash(text(b.Reason)))
			}
		}))
	})
}

// slotVersion is a slot and what was in it.
func slotVersion(slot int, version string) string {
	return strings.TrimSpace(strconv.Itoa(slot) + " " + version)
}
