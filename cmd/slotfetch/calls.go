package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"slotfetch/api"
)

// The paths of the SPS dialect that the client uses.
const (
	pathLogin    = "/api/authentication"
	pathMethods  = "/api/authentication/login_methods"
	pathUserInfo = "/api/user_info"
	pathFetches  = "/api/firmware/fetch"
	pathDryRun   = pathFetches + "?dry_run=true"
	pathSlots    = "/api/firmware/slots"
	pathUpload   = "/api/upload/firmware"
)

func fetchPath(key string) string { return pathFetches + "/" + url.PathEscape(key) }

func slotPath(slot int) string { return pathSlots + "/" + strconv.Itoa(slot) }

// missing words a 404 for people: err with message and hint.
func missing(err error, message, hint string) error {
	if f, ok := errors.AsType[*failure](err); ok && f.status == http.StatusNotFound {
		f.message, f.hint = message, hint
	}
	return err
}

func noFetch(err error, key string) error {
	return missing(err, "there is no fetch "+key, "See the keys with: slotfetch ls")
}

// startFetch repeats the request when its answer got lost: under one idempotency key that starts one fetch.
func (c *client) startFetch(ctx context.Context, r api.FetchRequest, idempotency string) (api.Accepted, error) {
	const tries = 3
	for try := 1; ; try++ {
		var accepted api.Accepted
		req, err := c.request(ctx, http.MethodPost, pathFetches, r)
		if err != nil {
			return accepted, err
		}
		req.Header.Set("Idempotency-Key", idempotency)
		_, err = c.perform(req, &accepted)
		if err == nil && accepted.Key == "" {
			err = c.stranger("it accepted the fetch without giving its key")
		}
		if f, ok := errors.AsType[*failure](err); !ok || !f.temporary || unsent(err) || try == tries {
			return accepted, err
		}
		c.app.note("%s; asking again.", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return accepted, ended(ctx)
		}
	}
}

// probe asks whether a fetch would work. A box that has never heard of that starts it.
func (c *client) probe(ctx context.Context, r api.FetchRequest) (api.Probe, error) {
	var answer struct {
		api.Probe
		Key string `json:"key"`
	}
	_, err := c.call(ctx, http.MethodPost, pathDryRun, r, &answer)
	if err == nil && answer.Key != "" {
		err = &failure{code: exitFailed, kind: "NoDryRun", message: "the box has no dry run and started fetch " + answer.Key,
			hint: "Stop it with: slotfetch cancel " + answer.Key, details: map[string]any{"key": answer.Key}}
	}
	if err == nil && answer.Body.Verdict == "" {
		err = c.stranger("its answer is not that of a dry run")
	}
	if answer.Body.Checks == nil {
		answer.Body.Checks = []api.ProbeCheck{} // [] and not null in what we print
	}
	return answer.Probe, err
}

func (c *client) fetch(ctx context.Context, key string) (api.Fetch, error) {
	var f api.Fetch
	_, err := c.call(ctx, http.MethodGet, fetchPath(key), nil, &f)
	return f, noFetch(err, key)
}

// waitFetch is fetch, but the box may hold the answer for so many seconds, until something has happened to the fetch. One that
// is too old for that answers at once.
func (c *client) waitFetch(ctx context.Context, key string, seconds int) (api.Fetch, error) {
	var f api.Fetch
	_, err := c.call(ctx, http.MethodGet, fmt.Sprintf("%s?wait=%d", fetchPath(key), seconds), nil, &f)
	return f, noFetch(err, key)
}

func (c *client) changeFetch(ctx context.Context, key string, want api.FetchChange) (api.Fetch, error) {
	var f api.Fetch
	_, err := c.call(ctx, http.MethodPatch, fetchPath(key), &want, &f)
	return f, noFetch(err, key)
}

func (c *client) fetches(ctx context.Context) (api.FetchList, error) {
	var list api.FetchList
	_, err := c.call(ctx, http.MethodGet, pathFetches, nil, &list)
	if list.Items == nil {
		list.Items = []api.Fetch{} // [] and not null in what we print
	}
	return list, err
}

// deleteFetch cancels or prunes. The document has no key when the entry was pruned; status is 202 when the
// cancel takes longer than the agent cares to wait.
func (c *client) deleteFetch(ctx context.Context, key string) (f api.Fetch, status int, err error) {
	resp, err := c.call(ctx, http.MethodDelete, fetchPath(key), nil, &f)
	if err != nil {
		return f, 0, noFetch(err, key)
	}
	return f, resp.StatusCode, nil
}

func (c *client) slots(ctx context.Context) (api.SlotList, error) {
	var list api.SlotList
	_, err := c.call(ctx, http.MethodGet, pathSlots, nil, &list)
	if list.Items == nil {
		list.Items = []api.Slot{}
	}
	return list, err
}

func (c *client) slot(ctx context.Context, number int) (api.Slot, error) {
	var s api.Slot
	_, err := c.call(ctx, http.MethodGet, slotPath(number), nil, &s)
	return s, missing(err, fmt.Sprintf("there is no slot %d", number), "See the slots with: slotfetch slots")
}

func (c *client) deleteSlot(ctx context.Context, number int) (api.MetaOnly, error) {
	var m api.MetaOnly
	_, err := c.call(ctx, http.MethodDelete, slotPath(number), nil, &m)
	return m, missing(err, fmt.Sprintf("slot %d is empty, or there is no such slot", number), "See the slots with: slotfetch slots")
}

func (c *client) userInfo(ctx context.Context) (api.UserInfo, error) {
	var u api.UserInfo
	_, err := c.call(ctx, http.MethodGet, pathUserInfo, nil, &u)
	return u, err
}
