package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"slotfetch/api"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestFetchRequest(t *testing.T) {
	b := withLogin(t)
	dir := t.TempDir()
	credentials := filepath.Join(dir, "login")
	if err := os.WriteFile(credentials, []byte("u\np w \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := invoke(t, "", "fetch", testURL, "--sha256", strings.ToUpper(testDigest)+"  sps.iso", "--slot", "0", "--mirror", "http://m1/x", "--mirror", "ftp://m2/x",
		"--user-file", credentials, "--ca", b.caFile())
	r.want(t, exitOK, "slotfetch wait "+testKey)
	if r.stdout != testKey+"\n" {
		t.Errorf("stdout %q, want the key alone", r.stdout)
	}
	ca, err := os.ReadFile(b.caFile())
	if err != nil {
		t.Fatal(err)
	}
	want := []map[string]any{{
		"url": testURL, "checksum": map[string]any{"sha256": testDigest}, "slot_id": 0.0, "mirrors": []any{"http://m1/x", "ftp://m2/x"},
		"credentials": map[string]any{"username": "u", "password": "p w "}, "tls": map[string]any{"ca": string(ca)},
	}}
	if d := cmp.Diff(want, b.posted); d != "" {
		t.Error(d)
	}

	// Only what is asked for is sent: the box has defaults of its own.
	b.posted = nil
	invoke(t, "", "fetch", testURL, "--sha256", testDigest, "--tls-verify=false", "--detach", "-q").want(t, exitOK)
	want = []map[string]any{{"url": testURL, "checksum": map[string]any{"sha256": testDigest}, "tls": map[string]any{"verify": false}}}
	if d := cmp.Diff(want, b.posted); d != "" {
		t.Error(d)
	}
}

func TestFetchUsage(t *testing.T) {
	home(t)
	t.Setenv("SLOTFETCH_BOX", "127.0.0.1:1") // Nothing may be sent: these mistakes are found here.
	oneLine := filepath.Join(t.TempDir(), "one")
	key := filepath.Join(t.TempDir(), "key.pem")
	for path, text := range map[string]string{oneLine: "user\n", key: "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good := []string{"--sha256", testDigest}
	for _, tt := range []struct {
		name string
		args []string
		word string
	}{
		{"no URL", good, "an argument is missing"},
		{"no digest", []string{testURL}, "--sha256 is missing"},
		{"bad digest", []string{testURL, "--sha256", testDigest[:63]}, "63 hex digits"},
		{"scheme", append(good, "gopher://h/x"), "no scheme that a box can fetch"},
		{"no scheme", append(good, "example.com/x"), "no scheme"},
		{"no host", append(good, "https:///x"), "no host"},
		{"blank", append(good, "https://h/a b"), "blank"},
		{"too long", append(good, "https://h/"+strings.Repeat("a", 4096)), "4096"},
		{"mirror", append(good, testURL, "--mirror", "nowhere"), "--mirror"},
		{"nine mirrors", append(good, testURL, "--mirror=http://1", "--mirror=http://2", "--mirror=http://3", "--mirror=http://4", "--mirror=http://5", "--mirror=http://6", "--mirror=http://7", "--mirror=http://8", "--mirror=http://9"), "9 mirrors"},
		{"slot", append(good, testURL, "--slot", "-1"), "negative"},
		{"slot no number", append(good, testURL, "--slot", "x"), "is no value for --slot"},
		{"credentials", append(good, testURL, "--credentials-file", oneLine), "1 lines"},
		{"no CA", append(good, testURL, "--ca", key), "no PEM certificate"},
		{"CA unverified", append(good, testURL, "--ca", key, "--tls-verify=false"), "exclude"},
		{"wait and detach", append(good, testURL, "--wait", "--detach"), "wait"},
		{"stdin twice", []string{testURL, "--sha256", "-", "--credentials-file", "-"}, "only once"},
		{"output", append(good, testURL, "-o", "xml"), "xml"},
		{"progress", append(good, testURL, "--progress", "dots"), "dots"},
		{"timeout", append(good, testURL, "--timeout", "-1s"), "negative"},
		{"flag", append(good, testURL, "--bogus"), "bogus"},
		{"two boxes", append(good, testURL, "-H", "http://h"), "https only"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			invoke(t, "", append([]string{"fetch"}, tt.args...)...).want(t, exitUsage, tt.word)
		})
	}
}

func TestFetchWait(t *testing.T) {
	b := withLogin(t)
	for _, tt := range []struct {
		name   string
		last   api.FetchBody
		code   int
		stdout string
		word   string
	}{
		{"finished", finished(), exitOK, "Fetch " + testKey + " finished: slot 2 holds sps.iso, 3.0 MiB in 2m10s.\n", "downloading, 33% of 3.0 MiB, 1.0 MiB/s, ETA 1m5s"},
		{"wrong digest", failed("SHA-256 mismatch: expected 5d41…, got 91ab…. The file was discarded."), exitIntegrity, "", "SHA-256 mismatch"},
		{"full box", failed("No empty firmware slot: all 5 are occupied. Delete one with DELETE /api/firmware/slots/<slot_id> and start again."), exitNoSpace, "", "all 5"},
		{"not found", failed("The server answered 404 Not Found for https://example.com/sps.iso."), exitFailed, "", "404"},
		{"cancelled", api.FetchBody{Status: "cancelled"}, exitFailed, "", "was cancelled"},
		{"digest by its code", told("The server says so. Nothing was downloaded.", "digest", "permanent", "Compare."), exitIntegrity, "", "downloaded.\nhint: Compare.\n"},
		{"space by its code", told("No room. Delete one.", "space", "human", "Delete one."), exitNoSpace, "",
			"failed: No room.\nhint: Delete one.\n      See the slots with: slotfetch slots\n      Empty one with: slotfetch slots rm N\n"},
		{"a sentence is no code", told("No empty firmware slot.", "http_404", "permanent", "Check the URL."), exitFailed, "", "hint: Check the URL.\n"},
		{"for now", told("The connection broke.", "broken", "temporary", ""), exitFailed, "", "hint: It may work later: start it again.\n"},
		{"a code of tomorrow", told("Odd. Do it.", "odd", "human", "Do it."), exitFailed, "", "failed: Odd.\nhint: Do it.\n"},
		{"no reason", api.FetchBody{Status: "failed"}, exitFailed, "", "failed: The box gave no reason.\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b.add(testKey, downloading(1<<20, 3<<20), tt.last)
			r := invoke(t, "", "fetch", testURL, "--sha256", testDigest, "--wait").want(t, tt.code, tt.word)
			if r.stdout != tt.stdout {
				t.Errorf("stdout %q, want %q", r.stdout, tt.stdout)
			}
		})
	}
}

// TestShowTellsFault: remedy and code are there once, whether the sentence has the remedy or not.
func TestShowTellsFault(t *testing.T) {
	b := withLogin(t)
	for _, sentence := range []string{"No.", "No. Do it."} {
		b.add(testKey, told(sentence, "odd", "human", "Do it."))
		r := invoke(t, "", "show", testKey).want(t, exitOK)
		if strings.Count(r.stdout, "Do it.") != 1 || !strings.Contains(r.stdout, "Error code:  odd (human), see errors.md#odd\n") {
			t.Error(r.stdout)
		}
	}
	invoke(t, "", "wait", testKey, "-o", "json").want(t, exitFailed,
		`"details":{"error":{"code":"odd","class":"human","remedy":"Do it.","doc":"errors.md#odd"},"key":"`+testKey+`","status":"failed"}},"hint":"Do it."}`)
}

func TestFetchWaitAsJSON(t *testing.T) {
	b := withLogin(t)
	b.add(testKey, downloading(1, 2), downloading(1, 2), failed("SHA-256 mismatch: no."))
	r := invoke(t, "", "fetch", testURL, "--sha256", testDigest, "--wait", "-o", "ndjson", "--progress", "json", "-q").want(t, exitIntegrity)
	if n := strings.Count(r.stdout, "\n"); n != 1 || !strings.HasPrefix(r.stdout, `{"key":"`+testKey+`","body":{"status":"failed"`) {
		t.Errorf("stdout: %s", r.stdout)
	}
	lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
	want := `{"code":7,"error":{"type":"FetchFailed","message":"fetch ` + testKey + ` failed: SHA-256 mismatch: no.","details":{"key":"` + testKey + `","status":"failed"}}}`
	if len(lines) != 3 || lines[2] != want {
		t.Errorf("stderr: %s\nwant at the end: %s", r.stderr, want)
	}
}

func TestWaitTimeout(t *testing.T) {
	b := withLogin(t)
	b.add(testKey, downloading(1<<20, 3<<20))
	invoke(t, "", "fetch", testURL, "--sha256", testDigest, "--timeout", "1ms").want(t, exitPending)
	invoke(t, "", "fetch", testURL, "--sha256", testDigest, "--timeout", "1ms", "--detach").want(t, exitOK)
	r := invoke(t, "", "wait", testKey, "--timeout", "400ms", "--progress", "none")
	r.want(t, exitPending, "after 400ms", "still downloading, 33%", "it goes on", "slotfetch wait "+testKey)
}

func TestWaitInterrupted(t *testing.T) {
	b := withLogin(t)
	b.add(testKey, downloading(1, 2))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b.intercept = func(http.ResponseWriter, *http.Request) bool { cancel(); return false }
	invokeContext(t, ctx, "", "wait", testKey).want(t, exitInterrupted, "detached", "goes on", "slotfetch cancel "+testKey)
	for _, request := range b.seen() {
		if strings.HasPrefix(request, "DELETE") {
			t.Error("Ctrl-C cancelled the fetch")
		}
	}
}

func TestWaitForSeveral(t *testing.T) {
	b := withLogin(t)
	b.add(testKey, downloading(1, 2), finished())
	b.add(otherKey, downloading(1, 2), failed("Not enough space: needs 2, free are 1."))
	r := invoke(t, "", "wait", testKey, otherKey, testKey, "-o", "id").want(t, exitNoSpace, "Not enough space")
	if r.stdout != testKey+"\n"+otherKey+"\n" {
		t.Errorf("stdout %q", r.stdout)
	}
	invoke(t, "", "wait", testKey, strings.Replace(testKey, "3b0a", "ffff", 1)).want(t, exitNotFound)
}

// TestWaitThroughRestart cuts connections and answers 503 for a while, as a box does that starts anew.
func TestWaitThroughRestart(t *testing.T) {
	b := withLogin(t)
	b.add(testKey, downloading(1, 2), api.FetchBody{Status: "queued"}, finished())
	calls := 0
	b.intercept = func(w http.ResponseWriter, _ *http.Request) bool {
		switch calls++; calls {
		case 2:
			panic(http.ErrAbortHandler)
		case 3:
			refuse(w, 503, "ServiceUnavailable", "Starting.", nil)
			return true
		}
		return false
	}
	r := invoke(t, "", "wait", testKey).want(t, exitOK, "Trying again for up to 2m0s", "is back")
	if n := strings.Count(r.stderr, "Trying again"); n != 1 {
		t.Errorf("said %d times:\n%s", n, r.stderr)
	}
}

func TestWaitForPrunedOrLoggedOut(t *testing.T) {
	b := withLogin(t)
	b.add(testKey, downloading(1, 2))
	calls := 0
	b.intercept = func(w http.ResponseWriter, _ *http.Request) bool {
		if calls++; calls < 2 {
			return false
		}
		refuse(w, 401, "Unauthenticated", "No session.", nil)
		return true
	}
	invoke(t, "", "wait", testKey).want(t, exitAuth, "goes on", "slotfetch login")
	calls = 0
	b.intercept = func(http.ResponseWriter, *http.Request) bool {
		if calls++; calls == 2 {
			delete(b.scripts, testKey)
		}
		return false
	}
	invoke(t, "", "wait", testKey).want(t, exitNotFound, "somebody pruned it")
}

func TestPollGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &app{now: time.Now}
		said := 0
		p := &poller{app: a, client: &client{app: a, box: box{name: "lab1", host: "lab1", port: "443"}}, say: func(string, ...any) { said++ }}
		start := time.Now()
		err := p.poll(t.Context(), func(context.Context) (bool, error) {
			return false, &failure{code: exitNetwork, message: "gone", temporary: true}
		})
		if took := time.Since(start); took < patience || took > patience+2*lastPace {
			t.Errorf("gave up after %s", took)
		}
		if err == nil || asFailure(err).code != exitNetwork || said != 1 {
			t.Errorf("%v, said %d times", err, said)
		}
	})
}

func TestPollPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &app{now: time.Now}
		p := &poller{app: a, client: &client{app: a}, say: func(string, ...any) {}}
		var pauses []time.Duration
		last := time.Now()
		if err := p.poll(t.Context(), func(context.Context) (bool, error) {
			pauses = append(pauses, time.Since(last).Round(time.Millisecond))
			last = time.Now()
			return len(pauses) == 9, nil
		}); err != nil {
			t.Fatal(err)
		}
		ms := time.Millisecond
		want := []time.Duration{0, 250 * ms, 375 * ms, 563 * ms, 844 * ms, 1266 * ms, 1898 * ms, 2 * time.Second, 2 * time.Second}
		if d := cmp.Diff(want, pauses, cmp.Comparer(func(a, b time.Duration) bool { return (a - b).Abs() <= ms })); d != "" {
			t.Error(d)
		}
	})
}
