package ontap

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"slotfetch/fetch"
	"slotfetch/store"
)

// page gets a list of jobs: what they are, and where the next page is.
func page(t *testing.T, s *Server, target string) (jobs []string, next string) {
	t.Helper()
	reply, err := s.getJobs(httptest.NewRequest(http.MethodGet, target, nil))
	check(t, err)
	w := httptest.NewRecorder()
	check(t, reply.Stream(w))
	var body struct {
		Records []Job `json:"records"`
		Links   links `json:"_links"`
	}
	check(t, json.Unmarshal(w.Body.Bytes(), &body))
	for _, j := range body.Records {
		name := j.Message
		if j.Description == describeDownload {
			name = "download"
		}
		jobs = append(jobs, name)
	}
	if body.Links.Next != nil {
		next = body.Links.Next.Href
	}
	return jobs, next
}

// TestJobList: downloads and other jobs come in the order of time, whole and page by page.
func TestJobList(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	s := b.open(t)
	u, err := url.Parse("http://127.0.0.1:1/x")
	check(t, err)
	var want []string
	for i := range 2*piece + 7 { // the others are read in three pieces
		b.set(b.now.Load().Add(time.Second))
		name := fmt.Sprintf("job %d", i)
		_, err := b.cfg.Store.AddJob(store.Job{ID: name, Description: "x", State: store.JobSuccess, Message: name}, ann)
		check(t, err)
		want = append(want, name)
		if i%300 == 0 {
			b.set(b.now.Load().Add(time.Second))
			_, err := b.cfg.Fetch.Enqueue(fetch.Request{URL: u, SHA256: fmt.Sprintf("%064x", i+1), Schedule: store.Schedule{Paused: true}}, ann)
			check(t, err)
			want = append(want, "download")
		}
	}
	all, next := page(t, s, jobsPath)
	if strings.Join(all, ",") != strings.Join(want, ",") || next != "" {
		t.Errorf("%d jobs, next %q: %v", len(all), next, all)
	}
	var paged []string
	for target := jobsPath + "?max_records=250"; target != ""; {
		var jobs []string
		jobs, target = page(t, s, target)
		paged = append(paged, jobs...)
	}
	if strings.Join(paged, ",") != strings.Join(want, ",") {
		t.Errorf("page by page there are %d: %v", len(paged), paged)
	}
	if got, next := page(t, s, jobsPath+"?message=job+1*&max_records=2&offset=1"); strings.Join(got, ",") != "job 10,job 11" || next == "" {
		t.Errorf("%v, next %q", got, next)
	}
	if got, next := page(t, s, jobsPath+"?order_by=end_time+desc&max_records=1&description=x"); strings.Join(got, ",") != want[len(want)-1] || next == "" {
		t.Errorf("%v, next %q", got, next)
	}
}

// TestPage: what is behind a page is neither kept nor looked at.
func TestPage(t *testing.T) {
	t.Parallel()
	p := pager[Job]{q: query{offset: 3, most: 2}}
	n := 0
	for p.add(Job{}) == nil {
		n++
	}
	if n != 5 || len(p.page) != 2 || !p.more {
		t.Errorf("%d were taken, %d kept", n, len(p.page))
	}
}

// TestManyLists: lists wait for each other, and nobody for longer than for the client.
func TestManyLists(t *testing.T) {
	t.Parallel()
	s := newBox(t).open(t)
	for range maxLists {
		s.lists <- struct{}{}
	}
	ctx, leave := context.WithCancel(t.Context())
	out := make(chan error, 1)
	go func() {
		_, err := s.getJobs(httptest.NewRequestWithContext(ctx, http.MethodGet, jobsPath, nil))
		out <- err
	}()
	leave()
	if err := <-out; refusal(err) != "10551892" {
		t.Errorf("%v", err)
	}
	<-s.lists
	page(t, s, jobsPath)
	if n := len(s.lists); n != maxLists-1 {
		t.Errorf("%d lists are being made", n)
	}
}
