package main_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

// halfway is a server that stalls in the middle of small once; the path of a fetch that is there now is returned too.
func halfway(t *testing.T, c *client, more ...any) (server *fetchtest.HTTP, job string) {
	t.Helper()
	server = fetchtest.NewHTTP(t, nil)
	f := fetchtest.Whole(small)
	f.Fault, f.After = fetchtest.Stall, small.Size()/2
	job = c.fetch(t, server.Handle("/a.iso", fetchtest.Sequence(f.Serve, fetchtest.Whole(small).Serve)), small.SHA256(), more...)
	c.await(t, job, "to the stall", func(r reply) bool { return r.get("body.bytes_downloaded") == float64(f.After) })
	return server, job
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	_, job := halfway(t, c)
	c.do(t, "PATCH", job, `{"paused": true}`).want(t, 200).is(t, "body.status", "queued", "body.paused", true, "body.queue_position", nil, "body.info", nil)
	if got := a.partials(t); len(got) != 1 {
		t.Errorf("partials: %q", got)
	}
	a.restart(t, syscall.SIGKILL)
	c.do(t, "GET", job, "").want(t, 200).is(t, "body.status", "queued", "body.paused", true)
	c.do(t, "PATCH", job, `{"paused": false}`).want(t, 200).is(t, "body.paused", false)
	c.awaitStatus(t, job, "finished").is(t, "body.resumed_from", small.Size()/2&^4095) // whole blocks
	c.do(t, "PATCH", job, `{"paused": true}`).fails(t, 409, "Conflict", "").is(t, "error.details.status", "finished")

	_, job = halfway(t, c)
	c.do(t, "PATCH", job, `{"paused": true}`).want(t, 200)
	c.do(t, "DELETE", job, "").want(t, 200).is(t, "body.status", "cancelled", "body.paused", false)
	if got := a.partials(t); len(got) != 0 {
		t.Errorf("partials: %q", got)
	}
}

func TestQueueOrder(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	server, running := halfway(t, c)
	dead, sum := "http://127.0.0.1:1/a.iso", small.SHA256()
	x, y, z := c.fetch(t, dead, sum), c.fetch(t, dead, sum), c.fetch(t, dead, sum, "priority", -3)
	order := func(want ...string) {
		t.Helper()
		for i, job := range want {
			c.do(t, "GET", job, "").want(t, 200).is(t, "body.queue_position", float64(i+1))
		}
		n := 0
		for _, item := range c.do(t, "GET", fetches, "").want(t, 200).get("items").([]any) {
			if item.(map[string]any)["body"].(map[string]any)["queue_position"] != nil {
				n++
			}
		}
		if n != len(want) {
			t.Errorf("%d have a position in the list, want %d", n, len(want))
		}
	}
	key := func(job string) string { return job[strings.LastIndex(job, "/")+1:] }
	order(x, y, z)
	c.do(t, "PATCH", z, `{"priority": 9}`).want(t, 200).is(t, "body.priority", 9.0, "body.queue_position", 1.0)
	order(z, x, y)
	c.do(t, "PATCH", y, `{"position": "first", "priority": 9}`).want(t, 200)
	order(y, z, x)
	c.do(t, "PATCH", y, `{"position": "before:`+key(x)+`"}`).want(t, 200).is(t, "body.priority", 0.0)
	order(z, y, x)
	c.do(t, "PATCH", z, `{"paused": true}`).want(t, 200)
	order(y, x)
	for _, bad := range []struct {
		body, kind, field string
		code              int
	}{
		{`{}`, "IncompleteRequestBodyError", "paused", 400},
		{`{"colour": "red"}`, "IncompleteRequestBodyError", "paused", 400},
		{`[]`, "SyntacticError", "", 400},
		{`{"priority": 1001}`, "SemanticError", "priority", 400},
		{`{"priority": "high"}`, "SemanticError", "priority", 400},
		{`{"rate_limit": 5}`, "SemanticError", "rate_limit", 400},
		{`{"rate_limit": -1}`, "SemanticError", "rate_limit", 400},
		{`{"window": "22-04"}`, "SemanticError", "window", 400},
		{`{"not_before": "tomorrow"}`, "SemanticError", "not_before", 400},
		{`{"paused": 1}`, "SemanticError", "paused", 400},
		{`{"position": "second"}`, "SemanticError", "position", 400},
		{`{"position": "before:x"}`, "SemanticError", "position", 400},
		{`{"position": "before:` + key(running) + `"}`, "Conflict", "", 409},
		{`{"position": "before:` + key(y) + `"}`, "Conflict", "", 409},
	} {
		c.do(t, "PATCH", y, bad.body).fails(t, bad.code, bad.kind, bad.field)
	}
	c.do(t, "PATCH", running, `{"position": "first"}`).fails(t, 409, "Conflict", "")
	c.do(t, "PATCH", fetches+"/3b0a6a52-6c1e-4f0e-9d57-1f6f3f0f8a11", `{"paused": true}`).fails(t, 404, "ResourceNotFound", "")
	a.user(t, "viewer").do(t, "PATCH", y, `{"paused": true}`).fails(t, 403, "Unauthorized", "")
	order(y, x)
	server.Next(t).Release()
	c.awaitStatus(t, running, "finished")
	first := c.await(t, y, "started", func(r reply) bool { return r.get("body.start_time") != nil })
	if second := c.do(t, "GET", x, ""); second.get("body.start_time") != nil && second.str("body.start_time") < first.str("body.start_time") {
		t.Errorf("%s ran before %s", second.raw, first.raw)
	}
}

func TestScheduleFields(t *testing.T) {
	t.Parallel()
	c := startAgent(t, "[fetch]\nrate_limit = 1000000000\n").loginAdmin(t)
	server := fetchtest.NewHTTP(t, nil)
	url := server.Handle("/a.iso", fetchtest.Whole(small).Serve)
	h := (time.Now().Hour() + 2) % 24
	later := fmt.Sprintf("%02d:00-%02d:30", h, h)
	job := c.fetch(t, url, small.SHA256(), "window", later, "rate_limit", 1_000_000, "priority", 3, "not_before", "2020-01-01T01:00:00+01:00")
	r := c.do(t, "GET", job, "").want(t, 200).is(t, "body.status", "queued", "body.window", later, "body.rate_limit", 1e6, "body.priority", 3.0,
		"body.not_before", "2020-01-01T00:00:00+00:00", "body.paused", false)
	at, err := time.Parse("2006-01-02T15:04:05-07:00", r.str("body.eligible_time"))
	if err != nil || !at.After(time.Now()) || at.Local().Hour() != h {
		t.Errorf("eligible at %v, %v", at, err)
	}
	c.do(t, "PATCH", job, `{"not_before": "2100-01-01T00:00:00Z", "window": ""}`).want(t, 200).is(t, "body.eligible_time", "2100-01-01T00:00:00+00:00",
		"body.window", nil)
	c.do(t, "PATCH", job, `{"not_before": "", "rate_limit": 0}`).want(t, 200).is(t, "body.not_before", nil, "body.rate_limit", nil)
	c.awaitStatus(t, job, "finished").is(t, "body.eligible_time", nil, "body.queue_position", nil, "body.priority", 3.0)

	job = c.fetch(t, url, small.SHA256(), "paused", true)
	c.do(t, "GET", job, "").want(t, 200).is(t, "body.status", "queued", "body.paused", true, "body.start_time", nil)
}

func TestLongPoll(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	server, job := halfway(t, c)
	now := c.do(t, "GET", job, "").want(t, 200)
	tag := now.header.Get("ETag")
	if !strings.HasPrefix(tag, `W/"`) {
		t.Fatalf("ETag %q", tag)
	}
	// Nothing happens for a second.
	began := time.Now()
	r := c.do(t, "GET", job+"?wait=1", "", "If-None-Match", tag).want(t, 304)
	if took := time.Since(began); took < time.Second || r.raw != "" || r.header.Get("ETag") != tag {
		t.Errorf("after %v: %q, %v", took, r.raw, r.header)
	}
	c.do(t, "GET", job+"?wait=1", "").want(t, 200).is(t, "body.status", "in-progress")
	// Without wait it is no matter of caching; another tag is another state.
	c.do(t, "GET", job, "", "If-None-Match", tag).want(t, 200)
	c.do(t, "GET", job+"?wait=60", "", "If-None-Match", `W/"000000000000000000000000"`).want(t, 200)
	for _, bad := range []string{"91", "-1", "x", "", "1.5", "1e3"} {
		c.do(t, "GET", job+"?wait="+bad, "").fails(t, 400, "SemanticError", "wait")
	}
	// It comes when something happens: here three calls wait for the end.
	answers := make(chan reply, 3)
	for range 3 {
		go func() {
			for tag := tag; ; {
				r := c.do(t, "GET", job+"?wait=60", "", "If-None-Match", tag)
				if tag = r.header.Get("ETag"); r.code != 200 || r.get("body.end_time") != nil {
					answers <- r
					return
				}
			}
		}()
	}
	server.Next(t).Release()
	for range 3 {
		(<-answers).want(t, 200).is(t, "body.status", "finished")
	}
	began = time.Now()
	last := c.do(t, "GET", job+"?wait=60", "").want(t, 200) // it is final
	c.do(t, "GET", job+"?wait=60", "", "If-None-Match", last.header.Get("ETag")).want(t, 304)
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("a final fetch is waited for: %v", took)
	}

	// It ends when the fetch is cancelled, and pruned; and a stop of the agent does not wait for it.
	_, job = halfway(t, c)
	path := job
	hold := func() {
		r, err := http.NewRequest("GET", a.base+path+"?wait=90", nil)
		check(t, err)
		r.Header.Set("Cookie", c.cookie)
		go func() {
			resp, err := c.http.Do(r)
			if err != nil {
				answers <- reply{what: err.Error()}
				return
			}
			defer resp.Body.Close()
			raw, _ := io.ReadAll(resp.Body)
			answers <- reply{what: path, code: resp.StatusCode, raw: string(raw)}
		}()
		c.await(t, path, "there", func(reply) bool { return strings.Contains(a.metric(t, c), "slotfetch_waiting 1") })
	}
	hold()
	c.do(t, "DELETE", job, "").want(t, 200)
	if r := <-answers; r.code != 200 || !strings.Contains(r.raw, `"cancelled"`) {
		t.Errorf("got %+v", r)
	}
	_, job = halfway(t, c)
	path = job
	hold()
	began = time.Now()
	a.restart(t, syscall.SIGTERM)
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("the restart took %v", took)
	}
	<-answers
}

// metric is what the agent tells of itself.
func (a *agent) metric(t *testing.T, c *client) string {
	t.Helper()
	return c.do(t, "GET", "/api/metrics", "").want(t, 200).raw
}

func TestChecksumURL(t *testing.T) {
	t.Parallel()
	c := startAgent(t, "").loginAdmin(t)
	server := fetchtest.NewHTTP(t, nil)
	url := server.Handle("/a.iso", fetchtest.Whole(small).Serve)
	list := small.SHA256() + "  a.iso\n"
	sums := server.Handle("/SHA256SUMS", func(x *fetchtest.Exchange) {
		x.Printf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(list), list)
	})
	post := func(checksum string) reply {
		return c.do(t, "POST", fetches, fmt.Sprintf(`{"url": %q, "force": true, "checksum": %s}`, url, checksum))
	}
	secret := strings.Replace(sums, "http://", "http://user:hidden@", 1)
	job := post(fmt.Sprintf(`{"url": %q}`, secret)).want(t, 202).str("meta.href")
	r := c.awaitStatus(t, job, "finished").is(t, "body.sha256", small.SHA256(), "body.checksum_url", sums)
	if strings.Contains(r.raw, "hidden") {
		t.Errorf("a password is shown: %s", r.raw)
	}
	post(fmt.Sprintf(`{"url": %q, "sha256": %q}`, sums, small.SHA256())).fails(t, 400, "SemanticError", "checksum.url")
	post(`{"url": "gopher://h/x"}`).fails(t, 400, "SemanticError", "checksum.url")
	post(`{"url": 5}`).fails(t, 400, "SemanticError", "checksum.url")
	post(`{"url": null}`).fails(t, 400, "IncompleteRequestBodyError", "checksum.sha256")
	post(`{"sha512": "`+strings.Repeat("0", 128)+`"}`).fails(t, 400, "IncompleteRequestBodyError", "checksum.sha256")
	job = post(fmt.Sprintf(`{"url": %q}`, server.URL+"/nothing")).want(t, 202).str("meta.href")
	c.awaitStatus(t, job, "failed").is(t, "body.sha256", nil)
}
