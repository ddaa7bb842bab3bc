package slots

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"slotfetch/api"
)

const testPath = "/api/firmware/test"

// A client of the vendor gives up after 100 s without an answer.
const (
	testLimit = 80 * time.Second
	// ExamineWait is for the routes that call [Slots.Examine].
	ExamineWait = testLimit + 10*time.Second
)

var errTestLimit = errors.New("the test took too long")

// TestRoute tells whether a slot could be activated (contract section 7).
func (s *Slots) TestRoute(p TestPolicy) api.Route {
	return api.Route{Method: http.MethodPost, Path: testPath, Access: api.Operator, Wait: api.Always(ExamineWait), Handler: func(r *http.Request) (api.Reply, error) {
		body, err := api.ReadObject(r)
		if err != nil {
			return api.Reply{}, err
		}
		id, err := SlotID(body)
		if err != nil {
			return api.Reply{}, err
		}
		summary, release, err := s.Examine(r.Context(), id, p)
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

// Examine tests a slot and goes on holding it: nobody empties it before release is called. Its errors are such as a caller
// may read.
func (s *Slots) Examine(ctx context.Context, id int, p TestPolicy) (summary string, release func(), err error) {
	number := strconv.Itoa(id)
	held, err := s.Hold(id)
	switch {
	case errors.Is(err, ErrUnknown):
		return "", nil, api.NotFound(mountPath, number)
	case errors.Is(err, ErrEmpty):
		e := api.NotFound(mountPath, number)
		e.Message = "There is no image in slot " + number + "."
		return "", nil, e
	case errors.Is(err, ErrBusy):
		return "", nil, busy(id, "")
	case err != nil:
		return "", nil, err
	}
	defer func() {
		if err != nil {
			held()
		}
	}()
	ctx, stop := context.WithTimeoutCause(ctx, testLimit, errTestLimit)
	defer stop()
	report, err := s.Test(ctx, id, p)
	switch {
	case errors.Is(err, errTestLimit):
		return "", nil, api.Unavailable(fmt.Sprintf("Slot %d was not read within %s. Try again when the disk of the box has less to do.", id, testLimit))
	case errors.Is(err, context.Canceled):
		return "", nil, api.Unavailable("The test was interrupted.")
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
