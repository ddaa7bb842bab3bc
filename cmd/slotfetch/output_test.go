package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"slotfetch/api"
)

func TestListForms(t *testing.T) {
	b := withLogin(t)
	t.Setenv("TZ", "UTC")
	b.add(testKey, finished())
	b.add(otherKey, failed("yes: no"))
	started := moment(finished().StartTime)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "KEY                                   STATUS    PROGRESS  SLOT  STARTED              URL\n" +
			testKey + "  finished  3.0 MiB   2     " + started + "  " + testURL + "\n" +
			otherKey + "  failed    -         -     -                    " + testURL + "\n"},
		{[]string{"-o", "id"}, testKey + "\n" + otherKey + "\n"},
		{[]string{"-o", "id", "--status", "failed,queued"}, otherKey + "\n"},
		{[]string{"--status", "queued"}, "No fetches.\n"},
		{[]string{"--status", "queued", "-q"}, ""},
		{[]string{"--status", "queued", "-o", "json"}, "{\n  \"items\": [],\n  \"meta\": {\n    \"href\": \"/api/firmware/fetch\"\n  }\n}\n"},
		{[]string{"--status", "queued", "-o", "ndjson"}, ""},
	} {
		if r := invoke(t, "", append([]string{"ls"}, tt.args...)...).want(t, exitOK); r.stdout != tt.want {
			t.Errorf("%v:\n%s", tt.args, cmp.Diff(tt.want, r.stdout))
		}
	}
	if r := invoke(t, "", "ls", "-o", "ndjson").want(t, exitOK); strings.Count(r.stdout, "\n") != 2 {
		t.Errorf("ndjson:\n%s", r.stdout)
	}
	invoke(t, "", "ls", "--status", "canceled").want(t, exitUsage, "cancelled")
}

func TestYAML(t *testing.T) {
	b := withLogin(t)
	b.add(otherKey, failed("yes: no"))
	want := `key: ` + otherKey + `
body:
  status: failed
  info: null
  error: 'yes: no'
  bytes_downloaded: 0
  bytes_total: 0
  slot_id: null
  start_time: null
  url: ` + testURL + `
  sha256: null
  end_time: null
  bytes_per_second: null
  eta_seconds: null
  attempts: 0
  tls_verified: null
  resumed_from: 0
  next_attempt_time: null
  retry_reason: null
  error_details: null
  deduplicated: false
  phase: null
  queue_position: null
  priority: 0
  paused: false
  not_before: null
  window: null
  eligible_time: null
  rate_limit: null
  checksum_url: null
meta:
  href: /api/firmware/fetch/` + otherKey + `
`
	if r := invoke(t, "", "show", otherKey, "-o", "yaml").want(t, exitOK); r.stdout != want {
		t.Error(cmp.Diff(want, r.stdout))
	}
}

func TestShowPage(t *testing.T) {
	b := withLogin(t)
	f := finished()
	f.TLSVerified, f.BytesPerSecond = ptr(false), ptr(int64(25<<10))
	f.Deduplicated, f.ResumedFrom = true, 3<<20
	b.add(testKey, f)
	r := invoke(t, "", "show", testKey).want(t, exitOK)
	for _, want := range []string{"Status:        finished\n", "Slot:          2\n", "TLS verified:  no\n",
		"Resumed at:    3.0 MiB\n", "Deduplicated:  yes, the slot had the image already\n", "Took:          2m10s\n", "Rate:          25.0 KiB/s\n"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("lacks %q:\n%s", want, r.stdout)
		}
	}
}

// TestRetryReason: whoever looks at a fetch that waits reads why.
func TestRetryReason(t *testing.T) {
	b := withLogin(t)
	const why = "Cannot connect to lab: connection refused."
	f := api.FetchBody{Status: "in-progress", Phase: ptr("waiting"), URL: testURL, Attempts: 2, RetryReason: ptr(why),
		NextAttemptTime: ptr("2026-05-04T08:02:11+00:00"), StartTime: ptr("2026-05-04T08:00:01+00:00")}
	b.add(testKey, f)
	r := invoke(t, "", "show", testKey).want(t, exitOK)
	if !strings.Contains(r.stdout, "Last attempt:  "+why+"\n") || !strings.Contains(r.stdout, "Next attempt:  2026-") {
		t.Error(r.stdout)
	}
	invoke(t, "", "wait", testKey, "--timeout", "100ms").want(t, exitPending, testKey+" waiting: "+why, "it goes on. The last attempt: "+why)
	r = invoke(t, "", "watch", testKey, "--timeout", "100ms").want(t, exitPending)
	if !strings.Contains(r.stdout, testKey+" waiting: "+why+"\n") {
		t.Error(r.stdout)
	}
}

// TestForeignText keeps what a box or an image says from moving the cursor.
func TestForeignText(t *testing.T) {
	b := withLogin(t)
	f := failed("\x1b[2Jgone\r\n")
	f.URL = "https://h/\x1b]0;title\x07"
	f.ErrorDetails = &api.Fault{Code: "\x1b[1m", Class: "\x1b[2m", Remedy: "\x1b[3m", Doc: "\x1b[4m"}
	b.add(testKey, f)
	b.slots = []api.Slot{{Key: "1", Body: api.SlotBody{Version: "7\x1b[31m"}}}
	for _, args := range [][]string{{"ls"}, {"show", testKey}, {"wait", testKey}, {"slots"}, {"watch", testKey}, {"__complete", "slots", "show", ""}} {
		r := invoke(t, "", args...)
		if i := strings.IndexAny(r.stdout+r.stderr, "\x1b\x07\r"); i >= 0 {
			t.Errorf("%v: a control character came through:\n%q", args, r.stdout+r.stderr)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB", 1<<20 - 1: "1.0 MiB", 1610612736: "1.5 GiB", 1<<63 - 1: "8.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestVersion(t *testing.T) {
	home(t)
	if r := invoke(t, "", "version").want(t, exitOK); !strings.HasPrefix(r.stdout, "slotfetch dev (go") {
		t.Errorf("%q", r.stdout)
	}
	if r := invoke(t, "", "version", "--output", "json").want(t, exitOK); !strings.Contains(r.stdout, `"version": "dev"`) {
		t.Errorf("%q", r.stdout)
	}
	if r := invoke(t, "", "--version").want(t, exitOK); r.stdout != "slotfetch dev\n" {
		t.Errorf("%q", r.stdout)
	}
}

func TestCurlLines(t *testing.T) {
	b := withLogin(t)
	credentials := filepath.Join(t.TempDir(), "login")
	if err := os.WriteFile(credentials, []byte("u\ns3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := loadPins()
	if err != nil {
		t.Fatal(err)
	}
	before := len(b.seen())
	base := "curl -sS --fail-with-body -k --pinnedpubkey " + p.Pins[b.address()].PublicKey + " -b " + testJar(t, b.address()).path
	url := " https://" + b.address()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"ls"}, base + url + "/api/firmware/fetch\n"},
		{[]string{"cancel", testKey}, base + " -X DELETE" + url + "/api/firmware/fetch/" + testKey + "\n"},
		{[]string{"prune", testKey}, base + " -X DELETE" + url + "/api/firmware/fetch/" + testKey + "\n"},
		{[]string{"slots", "rm", "2"}, base + " -X DELETE" + url + "/api/firmware/slots/2\n"},
		{[]string{"logout"}, base + " -X DELETE" + url + "/api/authentication\n"},
		{[]string{"fetch", "https://me:s3cret@h/it's", "--sha256", testDigest, "--credentials-file", credentials}, base + ` -X POST -H 'Content-Type: application/json' --data-binary ` +
			`'{"url":"https://me:REDACTED@h/it'\''s","checksum":{"sha256":"` + testDigest + `"},"credentials":{"username":"u","password":"REDACTED"}}'` + url + "/api/firmware/fetch\n"},
	} {
		r := invoke(t, "", append(tt.args, "--curl")...).want(t, exitOK)
		if r.stdout != tt.want {
			t.Errorf("%v:\n%s\nwant:\n%s", tt.args, r.stdout, tt.want)
		}
		if strings.Contains(r.stdout+r.stderr, "s3cret") || strings.Contains(r.stdout, testToken) {
			t.Errorf("%v shows a secret", tt.args)
		}
	}
	invoke(t, "", "show", "3b0a", "--curl").want(t, exitUsage, "whole keys")
	if len(b.seen()) != before {
		t.Error("--curl sent a request")
	}
	t.Setenv("SLOTFETCH_SESSION", testToken)
	if r := invoke(t, "", "ls", "--curl").want(t, exitOK); !strings.Contains(r.stdout, ` -b "session_id=$SLOTFETCH_SESSION" `) {
		t.Errorf("with a session in the environment: %s", r.stdout)
	}
	if r := invoke(t, "", "ls", "--curl", "-H", "unix:///run/x.sock").want(t, exitOK); r.stdout != "curl -sS --fail-with-body --unix-socket /run/x.sock http://localhost/api/firmware/fetch\n" {
		t.Errorf("socket: %s", r.stdout)
	}
}
