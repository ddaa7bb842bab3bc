package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"slotfetch/api"
)

const (
	testUser     = "admin"
	testPassword = "Pässwört 1"
	testToken    = "0123456789abcdef0123456789abcdef01234567"
	testKey      = "3b0a6a52-6c1e-4f0e-9d57-1f6f3f0f8a11"
	otherKey     = "3b0a77c1-0000-4000-8000-000000000002"
	testURL      = "https://example.com/images/sps.iso"
)

var testDigest = strings.Repeat("5d", 32)

// fakeBox speaks enough of the SPS dialect over a real TLS socket to see how the client behaves. It is no agent:
// each GET of a fetch moves it one step along its script.
type fakeBox struct {
	tb     testing.TB
	server *httptest.Server

	mu       sync.Mutex
	order    []string
	scripts  map[string][]api.FetchBody // what the next GETs see; the last stays
	slots    []api.Slot
	requests []string
	posted   []map[string]any
	// intercept sees a request first; true means that it has answered.
	intercept func(http.ResponseWriter, *http.Request) bool
}

func newFakeBox(tb testing.TB) *fakeBox {
	tb.Helper()
	b := &fakeBox{tb: tb, scripts: map[string][]api.FetchBody{}}
	// Registered first, so that it runs after the server is closed.
	if t, ok := tb.(*testing.T); ok {
		already := goleak.IgnoreCurrent()
		t.Cleanup(func() { goleak.VerifyNone(t, already) })
	}
	b.server = httptest.NewUnstartedServer(http.HandlerFunc(b.serve))
	// Refused handshakes are what many tests are about.
	b.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	b.server.StartTLS()
	tb.Cleanup(b.server.Close)
	return b
}

// address is HOST:PORT.
func (b *fakeBox) address() string { return b.server.Listener.Addr().String() }

func (b *fakeBox) fingerprint() string { return fingerprint(b.server.Certificate()) }

// caFile writes the CA of the box.
func (b *fakeBox) caFile() string {
	path := filepath.Join(b.tb.TempDir(), "ca.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.server.Certificate().Raw})
	if err := os.WriteFile(path, data, 0o600); err != nil {
		b.tb.Fatal(err)
	}
	return path
}

// add gives the box a fetch that goes through bodies.
func (b *fakeBox) add(key string, bodies ...api.FetchBody) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.order = append(b.order, key)
	b.scripts[key] = bodies
}

func (b *fakeBox) seen() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string{}, b.requests...)
}

func (b *fakeBox) serve(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests = append(b.requests, r.Method+" "+r.URL.Path)
	if b.intercept != nil && b.intercept(w, r) {
		return
	}
	cookie, err := r.Cookie(sessionCookie)
	loggedIn := err == nil && cookie.Value == testToken || r.TLS == nil
	switch {
	case r.URL.Path == pathMethods:
		reply(w, 200, api.LoginMethods{})
	case r.URL.Path == pathLogin && r.Method == http.MethodGet:
		user, password, _ := r.BasicAuth()
		if user != testUser || password != testPassword {
			refuse(w, 401, "AuthenticationFailure", "Unable to authenticate.", nil)
			return
		}
		w.Header().Set("Set-Cookie", "session_id="+testToken+"; Path=/; Max-Age=43200; HttpOnly; Secure; SameSite=Strict")
		reply(w, 200, api.MetaOnly{})
	case !loggedIn:
		refuse(w, 401, "Unauthenticated", "No session. Log in first.", nil)
	case r.URL.Path == pathLogin:
		reply(w, 200, api.MetaOnly{})
	case r.URL.Path == pathUserInfo:
		reply(w, 200, api.UserInfo{User: api.UserName{Name: testUser, Role: "operator"}, Endpoints: []api.Endpoint{}})
	case strings.HasPrefix(r.URL.Path, pathFetches):
		b.serveFetches(w, r)
	case strings.HasPrefix(r.URL.Path, pathSlots):
		b.serveSlots(w, r)
	default:
		refuse(w, 404, "ResourceNotFound", "API not found", nil)
	}
}

func (b *fakeBox) serveFetches(w http.ResponseWriter, r *http.Request) {
	key := strings.Trim(strings.TrimPrefix(r.URL.Path, pathFetches), "/")
	_, known := b.scripts[key]
	switch {
	case r.Method == http.MethodPost:
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			refuse(w, 400, "SyntacticError", "not JSON", nil)
			return
		}
		b.posted = append(b.posted, body)
		reply(w, 202, api.Accepted{Key: testKey, Meta: api.Meta{Href: fetchPath(testKey)}})
	case key == "":
		list := api.FetchList{Items: []api.Fetch{}, Meta: api.Meta{Href: pathFetches}}
		for _, k := range b.order {
			list.Items = append(list.Items, b.next(k))
		}
		reply(w, 200, list)
	case !known:
		refuse(w, 404, "ResourceNotFound", "There is no fetch "+key+".", map[string]any{"resource": key})
	case r.Method == http.MethodGet:
		reply(w, 200, b.next(key))
	default:
		b.deleteFetch(w, key)
	}
}

// next shows a fetch and moves it on.
func (b *fakeBox) next(key string) api.Fetch {
	bodies := b.scripts[key]
	f := api.Fetch{Key: key, Body: bodies[0], Meta: api.Meta{Href: fetchPath(key)}}
	if len(bodies) > 1 {
		b.scripts[key] = bodies[1:]
	}
	return f
}

func (b *fakeBox) deleteFetch(w http.ResponseWriter, key string) {
	body := b.scripts[key][0]
	switch {
	case final(body.Status):
		delete(b.scripts, key)
		for i, k := range b.order {
			if k == key {
				b.order = append(b.order[:i], b.order[i+1:]...)
				break
			}
		}
		reply(w, 200, api.MetaOnly{})
	case text(body.Phase) == "installing":
		refuse(w, 409, "Conflict", "The image is being installed.", map[string]any{"status": "in-progress", "phase": "installing"})
	default:
		b.scripts[key] = []api.FetchBody{{Status: "cancelled", URL: testURL}}
		reply(w, 200, b.next(key))
	}
}

func (b *fakeBox) serveSlots(w http.ResponseWriter, r *http.Request) {
	number := strings.Trim(strings.TrimPrefix(r.URL.Path, pathSlots), "/")
	if number == "" {
		reply(w, 200, api.SlotList{Key: "slots", Items: b.slots, Meta: api.SlotsMeta{Href: pathSlots}})
		return
	}
	for i, s := range b.slots {
		switch {
		case s.Key != number:
		case r.Method == http.MethodGet:
			reply(w, 200, s)
			return
		case s.Body.Empty():
			refuse(w, 404, "ResourceNotFound", "Slot "+number+" is empty.", nil)
			return
		case s.Body.Current:
			refuse(w, 409, "Conflict", "Slot "+number+" runs now.", nil)
			return
		default:
			b.slots[i].Body = api.SlotBody{}
			reply(w, 200, api.MetaOnly{Meta: api.Meta{Href: r.URL.Path}})
			return
		}
	}
	refuse(w, 404, "ResourceNotFound", "There is no slot "+number+".", nil)
}

func reply(w http.ResponseWriter, status int, doc any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(doc)
}

func refuse(w http.ResponseWriter, status int, kind, message string, details map[string]any) {
	if details == nil {
		details = map[string]any{}
	}
	w.Header().Set("X-Request-ID", "req-1")
	reply(w, status, api.ErrorReply{Error: api.ErrorBody{Type: kind, Message: message, Details: details}})
}

// home gives a test its own configuration and state, and nothing of the machine's.
func home(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("XDG_STATE_HOME", filepath.Join(dir, "state"))
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	t.Setenv("SLOTFETCH_BOX", "")
	t.Setenv("SLOTFETCH_SESSION", "")
	t.Setenv("NO_COLOR", "1")
	return dir
}

// result is what one run left behind.
type result struct {
	code   int
	stdout string
	stderr string
}

func invoke(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	return invokeContext(t, t.Context(), stdin, args...)
}

func invokeContext(t *testing.T, ctx context.Context, stdin string, args ...string) result { //nolint:revive // t first, as everywhere.
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(ctx, args, strings.NewReader(stdin), &stdout, &stderr)
	return result{code: code, stdout: stdout.String(), stderr: stderr.String()}
}

// want checks the exit code and that stderr has all the words.
func (r result) want(t *testing.T, code int, words ...string) result {
	t.Helper()
	if r.code != code {
		t.Fatalf("exit code %d, want %d\nstdout: %s\nstderr: %s", r.code, code, r.stdout, r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			t.Errorf("stderr lacks %q:\n%s", w, r.stderr)
		}
	}
	return r
}

// withLogin is a box that the client trusts and is logged in to; it is $SLOTFETCH_BOX.
func withLogin(t *testing.T) *fakeBox {
	t.Helper()
	home(t)
	b := newFakeBox(t)
	t.Setenv("SLOTFETCH_BOX", b.address())
	invoke(t, testPassword+"\n", "login", "--user", testUser, "--pin", b.fingerprint()).want(t, exitOK)
	return b
}

// ptr makes an optional field.
func ptr[T any](v T) *T { return &v }

func downloading(done, total int64) api.FetchBody {
	return api.FetchBody{Status: "in-progress", Phase: ptr("downloading"), BytesDownloaded: done, BytesTotal: total, URL: testURL,
		BytesPerSecond: ptr(int64(1 << 20)), ETASeconds: ptr(int64(65)), StartTime: ptr("2026-05-04T08:00:01+00:00"), Attempts: 1}
}

func finished() api.FetchBody {
	return api.FetchBody{Status: "finished", BytesDownloaded: 3 << 20, BytesTotal: 3 << 20, URL: testURL, SlotID: ptr(2), Attempts: 1,
		StartTime: ptr("2026-05-04T08:00:01+00:00"), EndTime: ptr("2026-05-04T08:02:11+00:00"), SHA256: ptr(testDigest)}
}

func failed(sentence string) api.FetchBody {
	return api.FetchBody{Status: "failed", Error: &sentence, URL: testURL}
}

// told is failed by an agent that tells code and remedy apart.
func told(sentence, code, class, remedy string) api.FetchBody {
	b := failed(sentence)
	b.ErrorDetails = &api.Fault{Code: code, Class: class, Remedy: remedy, Doc: "errors.md#" + code}
	return b
}

// serveSocket lets the box listen on a unix socket too.
func (b *fakeBox) serveSocket() string {
	path := filepath.Join(b.tb.TempDir(), "api.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.tb.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(b.serve))
	_ = server.Listener.Close()
	server.Listener = l
	server.Start()
	b.tb.Cleanup(server.Close)
	return fmt.Sprintf("unix://%s", path)
}
