package slots

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"slotfetch/api"
)

const testPath = "/api/firmware/test"

// Route tells whether a slot could be activated (contract section 7).
func (t *Tester) Route() api.Route {
	return api.Route{Method: http.MethodPost, Path: testPath, Access: api.Operator, Wait: api.Always(ExamineWait), Handler: func(r *http.Request) (api.Reply, error) {
		body, err := api.ReadObject(r)
		if err != nil {
			return api.Reply{}, err
		}
		id, err := SlotID(body)
		if err != nil {
			return api.Reply{}, err
		}
		summary, release, err := t.Examine(r.Context(), id, false)
		if err != nil {
			return api.Reply{}, err
		}
		release()
		return api.Reply{Body: TestReply(testPath, id, summary)}, nil
	}}
}

// SlotID reads the required field slot_id.
func SlotID(body api.Object) (int, error) {
	if err := body.Required("slot_id"); err != nil {
		return 0, err
	}
	id, err := body.Int("slot_id", "the number of a slot")
	if err != nil {
		return 0, err
	}
	return *id, nil
}

// TestReply is the answer of test, and of upgrade too.
func TestReply(href string, id int, summary string) api.SlotTest {
	key := strconv.Itoa(id)
	return api.SlotTest{Key: key, Body: api.SlotTestBody{TestSummary: summary},
		Meta: api.Meta{Href: href, Parent: "/api/firmware", Slot: mountPath + "/" + key}}
}

// Examine tests a slot and goes on holding it: nobody empties it before release is called. Back is [TestPolicy.Back]. Its
// errors are such as a caller may read.
func (t *Tester) Examine(ctx context.Context, id int, back bool) (summary string, release func(), err error) {
	found, release, err := t.look(ctx, id)
	number := strconv.Itoa(id)
	var still *stillTesting
	switch {
	case errors.Is(err, ErrUnknown):
		return "", nil, api.NotFound(mountPath, number)
	case errors.Is(err, ErrEmpty):
		e := api.NotFound(mountPath, number)
		e.Message = "There is no image in slot " + number + "."
		return "", nil, e
	case errors.Is(err, ErrBusy):
		return "", nil, busy(id, "")
	case errors.As(err, &still):
		e := api.Unavailable(fmt.Sprintf("Slot %d is still being tested: %d%% of its image is read. The test goes on; ask again for the result.", id, still.percent))
		e.Details = map[string]any{"slot_id": id, "state": "testing"}
		return "", nil, e
	case errors.Is(err, errTester):
		return "", nil, api.Unavailable("The agent is stopping.")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "", nil, api.Unavailable("The test was interrupted.")
	case err != nil:
		return "", nil, err
	}
	held := release
	release = nil
	defer func() {
		if release == nil { // also after a panic
			held()
		}
	}()
	p := t.cfg.Policy
	p.Back = back
	report, err := t.s.judge(found, p)
	switch {
	case err != nil:
		return "", nil, err
	case report.Failed() != "":
		return "", nil, &api.Error{Status: http.StatusBadRequest, Type: "FirmwareTestFailed",
			Message: fmt.Sprintf("Slot %d cannot be activated. %s.", id, report.Failed()), Details: map[string]any{"test_summary": report.Summary()}}
	}
	return report.Summary(), held, nil
}

// busy says that somebody holds the slot.
func busy(id int, more string) *api.Error {
	return api.Conflict(fmt.Sprintf("Slot %d is being tested%s. Try again in a moment.", id, more), map[string]any{"slot_id": id, "state": "busy"})
}
