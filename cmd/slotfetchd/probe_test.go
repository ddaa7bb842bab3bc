package main_test

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"slotfetch/fetch/fetchtest"
)

// checksOf are the checks of a dry run that are neither ok nor skipped: "NAME RESULT CODE".
func checksOf(r reply) (bad []string) {
	list, _ := r.get("body.checks").([]any)
	for _, c := range list {
		m := c.(map[string]any)
		if m["result"] == "warning" || m["result"] == "fail" {
			bad = append(bad, fmt.Sprint(m["name"], " ", m["result"], " ", m["code"]))
		}
	}
	return bad
}

// written is all that the agent could have written: names and sizes below the state directory but for the database, and what
// is in that.
func (a *agent) written(t *testing.T) (all []string) {
	t.Helper()
	check(t, filepath.WalkDir(a.state, func(path string, e fs.DirEntry, err error) error {
		if err != nil || strings.Contains(filepath.Base(path), ".db") {
			return err
		}
		info, err := os.Lstat(path)
		if err == nil {
			all = append(all, fmt.Sprint(path, info.Size(), info.ModTime()))
		}
		return err
	}))
	db := a.sqlite(t)
	defer db.Close()
	for _, table := range []string{"fetches", "users", "events", "sqlite_sequence"} {
		rows, err := db.Query("SELECT * FROM " + table)
		check(t, err)
		columns, err := rows.Columns()
		check(t, err)
		for rows.Next() {
			values := make([]any, len(columns))
			targets := make([]any, len(columns))
			for i := range values {
				targets[i] = &values[i]
			}
			check(t, rows.Scan(targets...))
			all = append(all, fmt.Sprint(table, values))
		}
		check(t, rows.Err())
	}
	return all
}

// TestDryRun looks at good and bad requests, and then at the box: nothing is written by any of them.
func TestDryRun(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	operator, viewer := a.user(t, "operator"), a.user(t, "viewer")
	file := fetchtest.Whole(small)
	file.Ends = true
	server := fetchtest.NewHTTP(t, nil)
	url := server.Handle("/a.iso", file.Serve)
	secure := fetchtest.NewHTTP(t, fetchtest.NewCA().TLS(fetchtest.SelfSigned)).Handle("/a.iso", file.Serve)
	gone := server.URL + "/gone.iso"
	const dry = fetches + "?dry_run=true"
	c.awaitStatus(t, c.fetch(t, url, small.SHA256()), "finished")

	before := a.written(t)
	good := operator.do(t, "POST", dry, order(url, small.SHA256(), "force", true)).want(t, 200)
	good.is(t, "body.verdict", "ok", "body.url", url, "body.slot_id", 2, "body.size", small.Size(), "body.deduplicated", false,
		"meta.href", dry, "meta.parent", "/api/firmware", "body.checks.0.name", "checksum", "body.checks.0.url", nil)
	if len(good.json.(map[string]any)) != 2 || len(good.keys("body")) != 9 {
		t.Errorf("other keys: %s", good.raw)
	}
	for _, tc := range []struct {
		body    string
		verdict string
		checks  []string
	}{
		{order(url, small.SHA256()), "ok", nil}, // a slot has it
		{`{"url":"` + url + `"}`, "warning", []string{"checksum warning no_checksum"}},
		{order(gone, strings.Repeat("0", 64)), "fail", []string{"answer fail http_404"}},
		{order(secure, small.SHA256(), "force", true), "warning", []string{"tls warning certificate"}},
		{order(secure, small.SHA256(), "force", true, "credentials", map[string]string{"username": "u", "password": "tango-uniform"}), "fail",
			[]string{"tls fail certificate"}},
		{order(url, small.SHA256(), "force", true, "slot_id", 1), "fail", []string{"slot fail slot_occupied"}},
		{order("http://169.254.1.1/a.iso", small.SHA256(), "force", true), "fail", []string{"egress fail egress"}},
		{order("http://nowhere.invalid/a.iso", small.SHA256(), "force", true), "fail", []string{"dns fail dns"}},
	} {
		r := c.do(t, "POST", dry, tc.body, "Idempotency-Key", "k").want(t, 200).is(t, "body.verdict", tc.verdict)
		if got := checksOf(r); !slices.Equal(got, tc.checks) {
			t.Errorf("%s: checks %q, want %q", tc.body, got, tc.checks)
		}
		if strings.Contains(r.raw, "tango-uniform") {
			t.Errorf("a secret: %s", r.raw)
		}
	}
	c.do(t, "POST", fetches+"?dry_run=1", order(url, small.SHA256())).want(t, 200).is(t, "body.deduplicated", true)
	viewer.do(t, "POST", dry, order(url, small.SHA256())).fails(t, 403, "Unauthorized", "")
	for _, query := range []string{"?dry_run=yes", "?dry_run=", "?dry_run", "?dry_run=TRUE", "?dry_run=true&dry_run=false", "?dry_run=true;", "?dry_run=%zz"} {
		c.do(t, "POST", fetches+query, order(url, small.SHA256(), "force", true)).fails(t, 400, "SemanticError", "dry_run")
	}
	for body, field := range map[string]string{
		`{}`: "url", `{"url":"` + url + `","cheksum":{}}`: "checksum", `{"url":"` + url + `","checksum":{}}`: "checksum.sha256",
		order(url, "12"): "checksum.sha256", order(url, small.SHA256(), "slot_id", 99): "slot_id", order("gopher://h/x", small.SHA256()): "url",
	} {
		if r := c.do(t, "POST", dry, body).want(t, 400); r.str("error.details.field") != field {
			t.Errorf("%s: %s", body, r.raw)
		}
	}
	if after := a.written(t); !slices.Equal(before, after) {
		t.Errorf("something was written:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}

	// A fetch it is only with another value.
	c.do(t, "POST", fetches+"?dry_run=false", order(url, small.SHA256())).want(t, 202)
	c.do(t, "POST", fetches+"?dry_run=0", order(url, small.SHA256())).want(t, 202)
	c.do(t, "POST", fetches+"?dry_run=0", `{"url":"`+url+`"}`).fails(t, 400, "IncompleteRequestBodyError", "checksum")
	if log := a.log.String(); strings.Contains(log, "tango-uniform") {
		t.Error("the log has a secret")
	}
}

// TestDryRunsAtATime: a third is told to come again, and SIGTERM ends those that go on.
func TestDryRunsAtATime(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	server := fetchtest.NewHTTP(t, nil)
	body := order(server.Handle("/a.iso", fetchtest.Mute), small.SHA256())
	answers := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := c.try("POST", fetches+"?dry_run=true", body)
			answers <- err
		}()
		server.Next(t)
	}
	r := c.do(t, "POST", fetches+"?dry_run=true", body).fails(t, http.StatusServiceUnavailable, "ServiceUnavailable", "")
	if r.header.Get("Retry-After") == "" {
		t.Error("it does not say when to try again")
	}
	c.do(t, "GET", fetches, "").want(t, 200)
	check(t, a.cmd.Process.Signal(os.Interrupt))
	fetchtest.Await(t, "the agent to stop", a.done)
	for range 2 {
		fetchtest.Await(t, "an answer", answers) // or the end of the connection
	}
}
