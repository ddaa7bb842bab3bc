package auth_test

import (
	"bytes"
	"database/sql"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"

	"slotfetch/api"
	"slotfetch/auth"
	"slotfetch/store"
)

const password = "correct horse"

// cheap is a PHC string that costs next to nothing to check, so that a hundred logins stay fast under -race.
func cheap(password string) string {
	salt := []byte("0123456789abcdef")
	b64 := base64.RawStdEncoding.EncodeToString
	return "$argon2id$v=19$m=8,t=1,p=1$" + b64(salt) + "$" + b64(argon2.IDKey([]byte(password), salt, 1, 8, 1, 32))
}

// clock is the system's: time passes by add, and set turns its hands.
type clock struct {
	mu sync.Mutex
	t  time.Time
	up time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t, c.up = c.t.Add(d), c.up+d
}

func (c *clock) set(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// stopwatch tells the time that passes from now on.
func (c *clock) stopwatch() func() time.Duration {
	up := func() time.Duration {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.up
	}
	start := up()
	return func() time.Duration { return up() - start }
}

// box is one agent: database, authenticator and server.
type box struct {
	t     *testing.T
	dir   string
	clock *clock
	store *store.Store
	auth  *auth.Auth
	srv   *httptest.Server
}

func newBox(t *testing.T) *box {
	t.Helper()
	b := &box{t: t, dir: t.TempDir(), clock: &clock{t: time.UnixMilli(1_790_000_000_123)}}
	b.start()
	for name, role := range map[string]string{"ann": "admin", "bob": "viewer"} {
		if err := b.store.AddUser(store.User{Name: name, PasswordHash: cheap(password), Role: role}, store.Actor{Name: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(b.stop)
	return b
}

func (b *box) start() {
	b.t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	var err error
	if b.store, err = store.Open(filepath.Join(b.dir, "slotfetch.db"), store.Options{Now: b.clock.now}); err != nil {
		b.t.Fatal(err)
	}
	if b.auth, err = auth.Open(auth.Config{Store: b.store, Log: log, Now: b.clock.now, Uptime: b.clock.stopwatch()}); err != nil {
		b.t.Fatal(err)
	}
	routes := append(b.auth.Routes(), api.Route{Method: http.MethodGet, Path: "/api/x", Access: api.Viewer,
		Handler: func(*http.Request) (api.Reply, error) { return api.Reply{Body: struct{}{}}, nil }})
	b.srv = httptest.NewServer(api.NewServer(api.Config{Routes: routes, Authenticator: b.auth, Log: log}))
}

func (b *box) stop() {
	b.srv.Close()
	if err := b.auth.Close(); err != nil {
		b.t.Error(err)
	}
	b.store.Close()
}

type reply struct {
	status int
	header http.Header
	body   string
}

// do sends a request; header is pairs.
func (b *box) do(method, path string, header ...string) reply {
	b.t.Helper()
	req, err := http.NewRequest(method, b.srv.URL+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := b.srv.Client().Do(req)
	if err != nil {
		b.t.Error(err)
		return reply{}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Error(err)
	}
	return reply{res.StatusCode, res.Header, string(body)}
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

const path = "/api/authentication"

var cookieForm = regexp.MustCompile(`^session_id=([0-9a-f]{40}); Path=/; Max-Age=43200; HttpOnly; Secure; SameSite=Strict$`)

// login returns the token.
func (b *box) login(user string) string {
	b.t.Helper()
	r := b.do("GET", path, "Authorization", basic(user, password))
	m := cookieForm.FindStringSubmatch(r.header.Get("Set-Cookie"))
	if r.status != 200 || m == nil {
		b.t.Fatalf("login of %s: %d %q %s", user, r.status, r.header["Set-Cookie"], r.body)
	}
	return m[1]
}

// see expects status for a GET with the session.
func (b *box) see(token string, status int) {
	b.t.Helper()
	r := b.do("GET", "/api/x", "Cookie", "session_id="+token)
	if r.status != status {
		b.t.Fatalf("GET with session: %d, want %d: %s", r.status, status, r.body)
	}
	if r.header.Get("WWW-Authenticate") != "" {
		b.t.Fatal("challenge outside of /api/authentication")
	}
}

func TestLogin(t *testing.T) {
	b := newBox(t)
	const meta = `{"meta":{"href":"/api/authentication","parent":"/api"}}` + "\n"
	tokens := map[string]bool{}
	for _, method := range []string{"GET", "POST"} {
		for _, query := range []string{"", "?login_method=local", "?type=basic"} {
			r := b.do(method, path+query, "Authorization", basic("ann", password))
			set := r.header["Set-Cookie"]
			if r.status != 200 || r.body != meta || len(set) != 1 || !cookieForm.MatchString(set[0]) {
				t.Fatalf("%s %s: %d %q %q", method, query, r.status, set, r.body)
			}
			tokens[set[0]] = true
		}
		for _, query := range []string{"?login_method=ldap", "?type=x509"} {
			r := b.do(method, path+query, "Authorization", basic("ann", password))
			if r.status != 400 || !strings.Contains(r.body, `"SemanticError"`) || r.header.Get("Set-Cookie") != "" {
				t.Errorf("%s %s: %d %s", method, query, r.status, r.body)
			}
		}
	}
	if len(tokens) != 6 {
		t.Errorf("%d different tokens, want 6", len(tokens))
	}
	// A live session without Authorization makes no new one.
	r := b.do("GET", path, "Cookie", "session_id="+b.login("ann"))
	if r.status != 200 || r.header["Set-Cookie"] != nil || r.body != meta {
		t.Errorf("GET with session: %+v", r)
	}
}

func TestLoginRefused(t *testing.T) {
	b := newBox(t)
	const challenge = `Basic realm="slotfetch"`
	for _, authorization := range []string{"", "Basic", "Basic !!!", "Bearer abc", basic("ann", password)[:8], "Basic " + base64.StdEncoding.EncodeToString([]byte("nocolon"))} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			r := b.do(method, path, "Authorization", authorization)
			if r.status != 401 || !strings.Contains(r.body, `"Unauthenticated"`) || r.header.Get("WWW-Authenticate") != challenge {
				t.Errorf("%s %q: %+v", method, authorization, r)
			}
		}
	}
	if err := b.store.AddUser(store.User{Name: "dis", PasswordHash: cheap(password), Role: "admin"}, store.Actor{}); err != nil {
		t.Fatal(err)
	}
	if err := b.store.SetDisabled("dis", true, store.Actor{}); err != nil {
		t.Fatal(err)
	}
	want := `{"error":{"type":"AuthenticationFailure","message":"Unable to authenticate.","details":{}}}` + "\n"
	for _, who := range []string{basic("ann", "wrong"), basic("nobody", password), basic("dis", password), basic("", "")} {
		r := b.do("GET", path, "Authorization", who)
		if r.status != 401 || r.body != want || r.header.Get("WWW-Authenticate") != challenge || r.header.Get("Set-Cookie") != "" {
			t.Errorf("%s: %+v", who, r)
		}
	}
	for _, header := range [][]string{nil, {"Authorization", basic("ann", password)}} {
		r := b.do("GET", "/api/x", header...)
		if r.status != 401 || !strings.Contains(r.body, `"Unauthenticated"`) || r.header["Www-Authenticate"] != nil {
			t.Errorf("other route with %q: %+v", header, r)
		}
	}
}

func TestThrottle(t *testing.T) {
	b := newBox(t)
	logged := b.auth.CountBlocks()
	live := b.login("ann")
	for i := range 20 {
		user := "ann"
		if i%2 == 1 {
			user = "bob" // together they block the address
		}
		if r := b.do("GET", path, "Authorization", basic(user, fmt.Sprint("wrong", i))); r.status != 401 {
			t.Fatalf("failure %d: %d", i, r.status)
		}
	}
	blocked := func() {
		t.Helper()
		r := b.do("GET", path, "Authorization", basic("bob", password))
		if r.status != 401 || !strings.Contains(r.body, "AuthenticationFailure") {
			t.Fatalf("blocked login: %+v", r)
		}
	}
	blocked()
	b.see(live, 200)
	b.clock.add(10*time.Minute - time.Second)
	blocked() // and does not prolong
	if n := logged.Load(); n != 1 {
		t.Errorf("the block was logged %d times", n)
	}
	b.clock.add(time.Second)
	b.login("bob")
}

func TestThrottleWindow(t *testing.T) {
	b := newBox(t)
	for range 19 {
		b.do("GET", path, "Authorization", basic("ann", "wrong"))
	}
	b.login("ann")
	b.clock.add(10 * time.Minute)
	b.do("GET", path, "Authorization", basic("ann", "wrong"))
	b.login("ann")
}

func TestThrottleConcurrent(t *testing.T) {
	b := newBox(t)
	var wg sync.WaitGroup
	for range 60 {
		wg.Go(func() { b.do("GET", path, "Authorization", basic("ann", "wrong")) })
	}
	wg.Wait()
	if r := b.do("GET", path, "Authorization", basic("ann", password)); r.status != 401 {
		t.Fatalf("not blocked: %+v", r)
	}
	b.clock.add(10 * time.Minute)
	b.login("ann")
}

// Guesses that are sent at once are not all tried: the throttle counts them one after the other, and turns away more than
// can wait.
func TestThrottleParallelGuesses(t *testing.T) {
	b := newBox(t)
	if err := b.store.AddUser(store.User{Name: "eve", PasswordHash: auth.HashPassword(password), Role: "admin"}, store.Actor{}); err != nil {
		t.Fatal(err)
	}
	tried := b.auth.CountFailures()
	release := b.auth.TakeTurn() // so that all of them are there before the first is looked at
	const guesses, wait = 150, 32
	replies := make(chan reply, guesses)
	for i := range guesses {
		go func() { replies <- b.do("GET", path, "Authorization", basic("eve", fmt.Sprint("wrong ", i))) }()
	}
	for range guesses - wait {
		if r := <-replies; r.status != 503 || r.header.Get("Retry-After") == "" || !strings.Contains(r.body, `"ServiceUnavailable"`) {
			t.Errorf("turned away: %+v", r)
		}
	}
	release()
	for range wait {
		if r := <-replies; r.status != 401 {
			t.Errorf("had its turn: %+v", r)
		}
	}
	if n := tried.Load(); n != 20 {
		t.Errorf("%d guesses were hashed and compared, want 20", n)
	}
	if r := b.do("GET", path, "Authorization", basic("eve", password)); r.status != 401 {
		t.Errorf("the right password after them: %d", r.status)
	}
}

// What strangers send does not fill the memory.
func TestThrottleMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	keep := auth.FillThrottle(5_100, strings.Repeat("x", 11<<10))
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("the throttle holds %d MiB", grown>>20)
	}
	runtime.KeepAlive(keep)
}

func TestIdle(t *testing.T) {
	b := newBox(t)
	token := b.login("ann")
	b.clock.add(20*time.Minute - time.Second)
	b.see(token, 200)
	b.clock.add(20*time.Minute - time.Second)
	b.see(token, 200)
	b.clock.add(20 * time.Minute)
	b.see(token, 401)
	b.clock.set(-10 * time.Minute)
	b.see(token, 401) // it does not come back
}

func TestLifetime(t *testing.T) {
	b := newBox(t)
	token := b.login("ann")
	for range 71 {
		b.clock.add(10 * time.Minute)
		b.see(token, 200)
	}
	b.clock.add(10*time.Minute - time.Second)
	b.see(token, 200)
	b.clock.add(time.Second)
	b.see(token, 401)
}

func TestRestart(t *testing.T) {
	b := newBox(t)
	token, idle := b.login("ann"), b.login("ann")
	b.clock.add(15 * time.Minute)
	b.see(token, 200)
	b.clock.add(20 * time.Second) // too soon for a write of its own: Close writes
	b.see(token, 200)
	b.stop()
	b.clock.add(20*time.Minute - time.Second)
	b.start()
	b.see(token, 200)
	b.see(idle, 401)
}

func TestClockSetBackAcrossRestart(t *testing.T) {
	b := newBox(t)
	token := b.login("ann")
	b.see(token, 200)
	b.stop()
	b.clock.set(-time.Hour)
	b.start()
	b.see(token, 401)
	b.see(b.login("ann"), 200)
}

func TestLogout(t *testing.T) {
	b := newBox(t)
	token, other := b.login("bob"), b.login("bob")
	r := b.do("DELETE", path, "Cookie", "session_id="+token)
	if r.status != 200 || r.header.Get("Set-Cookie") != "session_id=; Path=/; Max-Age=0" || !strings.Contains(r.body, `"href":"/api/authentication"`) {
		t.Fatalf("logout: %+v", r)
	}
	b.see(token, 401)
	b.see(other, 200)
	if r := b.do("DELETE", path, "Cookie", "session_id="+token); r.status != 401 {
		t.Errorf("second logout: %d", r.status)
	}
}

func TestCookies(t *testing.T) {
	b := newBox(t)
	token, other := b.login("ann"), b.login("ann")
	for _, c := range []struct {
		status int
		header []string
	}{
		{200, []string{"Cookie", "a=b; session_id=" + token + "; c=d"}},
		{200, []string{"Cookie", "session_id=" + token, "Authorization", basic("ann", "wrong")}},
		{401, []string{"Cookie", "session_id=" + token + "; session_id=" + other}},
		{401, []string{"Cookie", "session_id=" + token, "Cookie", "session_id=" + other}},
		{401, []string{"Cookie", "session_id=" + token + "; session_id=x"}},
		{401, []string{"Cookie", "session_id=" + strings.ToUpper(token)}},
		{401, []string{"Cookie", "session_id=" + token[1:]}},
		{401, []string{"Cookie", "session_id="}},
		{401, []string{"Cookie", "session_id=" + strings.Repeat("0", 40)}},
		{401, []string{"Cookie", "Session_Id=" + token}},
	} {
		if r := b.do("GET", "/api/x", c.header...); r.status != c.status {
			t.Errorf("%q: %d, want %d", c.header, r.status, c.status)
		}
	}
	// Wrong Basic beside a cookie never counts as a failure.
	for range 25 {
		b.do("GET", "/api/x", "Cookie", "session_id="+token, "Authorization", basic("ann", "wrong"))
	}
	b.login("ann")
}

func TestNoSecretOnDisk(t *testing.T) {
	b := newBox(t)
	token := b.login("ann")
	b.see(token, 200)
	check := func() {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(b.dir, "*"))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		found := false
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			found = found || bytes.Contains(text, []byte("session.login"))
			for _, secret := range []string{token, password, base64.StdEncoding.EncodeToString([]byte("ann:" + password))} {
				if bytes.Contains(text, []byte(secret)) {
					t.Errorf("%s holds %q", filepath.Base(f), secret)
				}
			}
		}
		if !found {
			t.Error("the search looks at the wrong files")
		}
	}
	check()
	b.stop()
	check()
	b.start()
}

func TestLatin1(t *testing.T) {
	b := newBox(t)
	if err := b.store.AddUser(store.User{Name: "jörg", PasswordHash: cheap("grün:ß"), Role: "viewer"}, store.Actor{}); err != nil {
		t.Fatal(err)
	}
	for _, raw := range []string{"jörg:grün:ß", "j\xf6rg:gr\xfcn:\xdf"} {
		if r := b.do("GET", path, "Authorization", "basic "+base64.StdEncoding.EncodeToString([]byte(raw))); r.status != 200 {
			t.Errorf("%q: %d", raw, r.status)
		}
	}
}

func TestSessionCap(t *testing.T) {
	b := newBox(t)
	var tokens []string
	for range 100 {
		tokens = append(tokens, b.login("ann"))
		b.clock.add(time.Second)
	}
	other := b.login("bob")
	b.see(tokens[0], 200) // first, but no longer the longest idle
	tokens = append(tokens, b.login("ann"))
	for i, token := range tokens {
		want := 200
		if i == 1 {
			want = 401
		}
		b.see(token, want)
	}
	b.see(other, 200)
}

// Sessions that were dropped for newer ones do not stay in memory.
func TestSessionMemory(t *testing.T) {
	b := newBox(t)
	for range 200 {
		b.see(b.login("ann"), 200)
		b.clock.add(10 * time.Second)
	}
	if n := b.auth.Seen(); n > 120 {
		t.Errorf("%d sessions are in memory, 120 were used in the last 20 minutes", n)
	}
	b.clock.add(20 * time.Minute)
	b.login("ann")
	if n := b.auth.Seen(); n != 1 {
		t.Errorf("%d sessions are in memory, 1 is alive", n)
	}
}

// Neither a start nor a login leaves the memory behind that a hash takes.
func TestHashMemory(t *testing.T) {
	held := func() int64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapSys - m.HeapReleased)
	}
	debug.FreeOSMemory()
	before := held()
	check := func(what string) {
		t.Helper()
		if grown := held() - before; grown > 4<<20 {
			t.Errorf("%s holds %d MiB more than before", what, grown>>20)
		}
	}
	b := newBox(t)
	check("the start")
	if err := b.store.AddUser(store.User{Name: "eve", PasswordHash: auth.HashPassword(password), Role: "admin"}, store.Actor{}); err != nil {
		t.Fatal(err)
	}
	check("a new password")
	b.login("eve")
	check("a login")
	b.do("GET", path, "Authorization", basic("nobody", password))
	check("an unknown user")
}

func TestPassword(t *testing.T) {
	phc := auth.HashPassword("a")
	if !strings.HasPrefix(phc, "$argon2id$v=19$m=7168,t=5,p=1$") || !strings.HasPrefix(auth.Dummy, "$argon2id$v=19$m=7168,t=5,p=1$") || !auth.CheckPassword(phc, "a") || auth.CheckPassword(phc, "b") {
		t.Error(phc)
	}
	for _, bad := range []string{"", "a", "$", strings.Replace(phc, "v=19", "v=18", 1), strings.Replace(phc, "t=5", "t=0", 1), strings.Replace(phc, "p=1", "p=0", 1),
		strings.Replace(phc, "m=7168", "m=4000000", 1), phc[:len(phc)-4], phc + "$"} {
		if auth.CheckPassword(bad, "a") {
			t.Error(bad)
		}
	}
}

// TestLockedDatabase: no request waits for the use of its session to be written down, and it is written in the end.
func TestLockedDatabase(t *testing.T) {
	b := newBox(t)
	cookies := []string{"session_id=" + b.login("ann"), "session_id=" + b.login("bob")}
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(b.dir, "slotfetch.db")+"?_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	seen := func() (oldest int64) {
		if err := db.QueryRow("SELECT min(last_seen) FROM sessions").Scan(&oldest); err != nil {
			t.Fatal(err)
		}
		return oldest
	}
	for _, stop := range []bool{false, true} {
		if _, err := db.Exec("BEGIN IMMEDIATE"); err != nil {
			t.Fatal(err)
		}
		b.clock.add(31 * time.Second)
		begun := time.Now()
		for range 10 {
			for _, cookie := range cookies {
				if r := b.do("GET", "/api/x", "Cookie", cookie); r.status != 200 {
					t.Fatalf("%+v", r)
				}
			}
		}
		if took := time.Since(begun); took > 4*time.Second { // a writer waits for five
			t.Errorf("took %s", took)
		}
		if _, err := db.Exec("ROLLBACK"); err != nil {
			t.Fatal(err)
		}
		if stop {
			b.stop()
			b.start()
		}
		for end := time.Now().Add(20 * time.Second); seen() != b.clock.now().UnixMilli(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("stop %v: last seen at %d, want %d", stop, seen(), b.clock.now().UnixMilli())
			}
		}
	}
}
