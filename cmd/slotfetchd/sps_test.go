package main_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"slotfetch/fetch/fetchtest"
)

// TestSPS is the acceptance checklist of the SPS dialect, item by item, against the real program. Not here are items
// that need a clock or a hook (7, 30, 31), and upgrade and upload (36 to 38), which have files of their own.
func TestSPS(t *testing.T) {
	t.Parallel()
	for _, item := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"01-03 login", login},
		{"04 brute force", bruteForce},
		{"05-06 cookie before Basic", cookieFirst},
		{"08 sessions outlive a restart", sessionsLast},
		{"09 no secrets in files", noSecrets},
		{"10 roles", roles},
		{"11 cross-origin", crossOrigin},
		{"12 POST", post},
		{"13 any Content-Type and path spelling", spelling},
		{"14 keys of the body", bodyKeys},
		{"15 empty and odd bodies", oddBodies},
		{"16 sha256", digests},
		{"17 bad values", badValues},
		{"18 queued", queued},
		{"19 downloading", downloading},
		{"20 finished", finished},
		{"21 wrong digest", wrongDigest},
		{"22 retry", retry},
		{"23 meta", meta},
		{"24 slot choice", slotChoice},
		{"25 userinfo", userinfo},
		{"26 TLS", tlsRules},
		{"27 mirrors", mirrors},
		{"28 cancel a queued job", cancelQueued},
		{"29 cancel a download", cancelDownload},
		{"32 prune", prune},
		{"33 slots", listSlots},
		{"34 protected slots", protectedSlots},
		{"35 test", testSlot},
		{"37 info", info},
		{"38 upload", uploadEncodings},
		{"39 wrong method and unknown path", wrongMethod},
		{"40 SIGKILL", killed},
	} {
		t.Run(item.name, func(t *testing.T) {
			t.Parallel()
			item.run(t)
		})
	}
}

var small = fetchtest.NewImage(1, 300_000)

// serveSmall is a server with one good image.
func serveSmall(t *testing.T) string {
	t.Helper()
	return fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Whole(small).Serve)
}

// serveStalling is a server whose image stops half-way until it is released.
func serveStalling(t *testing.T, img *fetchtest.Image) (*fetchtest.HTTP, string) {
	t.Helper()
	f := fetchtest.Whole(img)
	f.Fault, f.After = fetchtest.Stall, img.Size()/2
	s := fetchtest.NewHTTP(t, nil)
	return s, s.Handle("/slow.iso", f.Serve)
}

// occupied says which slots hold an image: their keys.
func occupied(t *testing.T, c *client) string {
	t.Helper()
	list := c.do(t, "GET", slotsPath, "").want(t, 200)
	var keys []string
	for i := range list.get("items").([]any) {
		if item := fmt.Sprintf("items.%d.", i); len(list.keys(item+"body")) > 0 {
			keys = append(keys, list.str(item+"key"))
		}
	}
	return strings.Join(keys, " ")
}

func login(t *testing.T) {
	a := startAgent(t, "")
	c := a.stranger(t)
	r := c.do(t, "GET", "/api/authentication", "").fails(t, 401, "Unauthenticated", "")
	if got := r.header.Get("WWW-Authenticate"); got != `Basic realm="slotfetch"` {
		t.Errorf("WWW-Authenticate: %q", got)
	}
	bad := c.do(t, "GET", "/api/authentication", "", "Authorization", basic("admin", "wrong")).fails(t, 401, "AuthenticationFailure", "")
	unknown := c.do(t, "GET", "/api/authentication", "", "Authorization", basic("nobody", "wrong")).want(t, 401)
	if bad.raw != unknown.raw {
		t.Errorf("unknown user: %q, bad password: %q", unknown.raw, bad.raw)
	}
	cookie := regexp.MustCompile(`^session_id=[0-9a-f]{40}; Path=/; Max-Age=43200;`)
	for _, method := range []string{"GET", "POST"} {
		r := c.do(t, method, "/api/authentication", "", "Authorization", basic("admin", a.admin)).want(t, 200).is(t, "meta.href", "/api/authentication")
		if got := r.header.Values("Set-Cookie"); len(got) == 0 || !cookie.MatchString(got[0]) {
			t.Errorf("%s: Set-Cookie: %q", method, got)
		}
	}
}

func bruteForce(t *testing.T) {
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	stranger := a.stranger(t)
	for range 20 {
		stranger.do(t, "GET", "/api/authentication", "", "Authorization", basic("admin", "wrong")).want(t, 401)
	}
	stranger.do(t, "GET", "/api/authentication", "", "Authorization", basic("admin", a.admin)).fails(t, 401, "AuthenticationFailure", "")
	c.do(t, "GET", fetches, "").want(t, 200)
}

func cookieFirst(t *testing.T) {
	a := startAgent(t, "")
	for _, header := range [][]string{nil, {"Authorization", basic("admin", a.admin)}} {
		r := a.stranger(t).do(t, "GET", fetches, "", header...).fails(t, 401, "Unauthenticated", "").is(t, "error.details.path", fetches)
		if got, ok := r.header["Www-Authenticate"]; ok {
			t.Errorf("WWW-Authenticate: %q", got)
		}
	}
	a.loginAdmin(t).do(t, "GET", fetches, "", "Authorization", basic("admin", "wrong")).want(t, 200)
}

func sessionsLast(t *testing.T) {
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		a.restart(t, sig)
		c.do(t, "GET", fetches, "").want(t, 200)
	}
	c.do(t, "DELETE", "/api/authentication", "").want(t, 200)
	c.do(t, "GET", fetches, "").want(t, 401)
}

func noSecrets(t *testing.T) {
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	a.user(t, "viewer")
	_, slow := serveStalling(t, small)
	c.awaitPhase(t, c.fetch(t, slow, small.SHA256(), "credentials", map[string]string{"username": "u", "password": "tango-uniform"}), "downloading")
	token := strings.TrimPrefix(c.cookie, "session_id=")
	rawToken, err := hex.DecodeString(token)
	check(t, err)
	secrets := map[string][]byte{"token": []byte(token), "raw token": rawToken, "first password": []byte(a.admin),
		"password": []byte("a password of viewer"), "password of a job": []byte("tango-uniform")}
	seen := 0
	check(t, filepath.WalkDir(a.state, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		seen++
		for what, secret := range secrets {
			if bytes.Contains(text, secret) {
				t.Errorf("%s holds the %s in clear", path, what)
			}
		}
		return err
	}))
	if seen < 2 {
		t.Errorf("only %d files in %s", seen, a.state)
	}
}

func roles(t *testing.T) {
	a := startAgent(t, "")
	url := serveSmall(t)
	viewer, operator := a.user(t, "viewer"), a.user(t, "operator")
	viewer.do(t, "POST", fetches, order(url, small.SHA256())).fails(t, 403, "Unauthorized", "").is(t, "error.details.required_role", "operator")
	viewer.do(t, "GET", fetches, "").want(t, 200)
	job := operator.fetch(t, url, small.SHA256())
	operator.awaitStatus(t, job, "finished")
	viewer.do(t, "DELETE", job, "").want(t, 403)
	viewer.do(t, "DELETE", slotsPath+"/1", "").want(t, 403)
	viewer.do(t, "DELETE", "/api/authentication", "").want(t, 200)
}

func crossOrigin(t *testing.T) {
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	body := order(serveSmall(t), small.SHA256())
	c.do(t, "POST", fetches, body, "Sec-Fetch-Site", "cross-site").want(t, 403).is(t, "error.details.reason", "cross-origin")
	c.do(t, "POST", fetches, body, "Origin", "https://evil.example").want(t, 403).is(t, "error.details.reason", "cross-origin")
	c.do(t, "POST", fetches, body, "Origin", a.base).want(t, 202)
	c.do(t, "POST", fetches, body).want(t, 202)
}

func post(t *testing.T) {
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	r := c.do(t, "POST", fetches, order(serveSmall(t), small.SHA256())).want(t, 202)
	r.is(t, "meta.href", fetches+"/"+r.str("key"), "meta.parent", "/api/firmware", "meta.slots", slotsPath,
		"meta.test", "/api/firmware/test", "meta.upgrade", "/api/firmware/upgrade")
	if len(r.keys("meta")) != 5 || len(r.json.(map[string]any)) != 2 {
		t.Errorf("more or less than key and five links: %s", r.raw)
	}
	if got := r.header.Get("Location"); got != r.str("meta.href") {
		t.Errorf("Location: %q", got)
	}
	if n, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || n < 1 {
		t.Errorf("Retry-After: %q", r.header.Get("Retry-After"))
	}
	if !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(r.str("key")) {
		t.Errorf("key %q is no lower-case UUID", r.str("key"))
	}
}

func spelling(t *testing.T) {
	c := startAgent(t, "").loginAdmin(t)
	body := order(serveSmall(t), small.SHA256())
	c.do(t, "POST", fetches, body, "Content-Type", "application/x-www-form-urlencoded").want(t, 202)
	c.do(t, "POST", "/api//firmware/fetch/", body, "Content-Type", "application/x-www-form-urlencoded", "Accept", "application/octet-stream").want(t, 202)
}

func bodyKeys(t *testing.T) {
	c := startAgent(t, "").loginAdmin(t)
	url, sum := serveSmall(t), `{"sha256":"`+small.SHA256()+`"}`
	c.do(t, "POST", fetches, `{"url":"`+url+`","checksum":`+sum+`,"colour":"red"}`).want(t, 202)
	c.do(t, "POST", fetches, `{"url":"`+url+`","cheksum":`+sum+`}`).fails(t, 400, "IncompleteRequestBodyError", "checksum").is(t, "error.details.found", "cheksum")
	c.do(t, "POST", fetches, `{"URL":"`+url+`","checksum":`+sum+`}`).fails(t, 400, "IncompleteRequestBodyError", "url").is(t, "error.details.found", "URL")
	c.do(t, "POST", fetches, `{"url":"`+url+`","checksum":`+sum+`,"mirrors":null,"slot_id":null}`).want(t, 202)
}

func oddBodies(t *testing.T) {
	c := startAgent(t, "").loginAdmin(t)
	c.do(t, "POST", fetches, "").fails(t, 400, "IncompleteRequestBodyError", "url")
	c.do(t, "POST", fetches, "{}").fails(t, 400, "IncompleteRequestBodyError", "url")
	for _, body := range []string{"[1]", "{", `{} {}`, `null`, `"x"`} {
		c.do(t, "POST", fetches, body).fails(t, 400, "SyntacticError", "")
	}
	c.do(t, "POST", fetches, `{"url":"`+strings.Repeat("a", 1<<20)+`"}`).fails(t, 413, "RequestTooLarge", "")
}

func digests(t *testing.T) {
	c := startAgent(t, "").loginAdmin(t)
	url := serveSmall(t)
	r := c.do(t, "POST", fetches, order(url, small.SHA256()[1:])).fails(t, 400, "SemanticError", "checksum.sha256")
	if r.str("error.details.expected") == "" {
		t.Errorf("it does not say what was expected: %s", r.raw)
	}
	c.awaitStatus(t, c.fetch(t, url, strings.ToUpper(small.SHA256())), "finished").is(t, "body.sha256", small.SHA256())
}

func badValues(t *testing.T) {
	c := startAgent(t, "").loginAdmin(t)
	h, url := small.SHA256(), "https://127.0.0.1/x"
	for _, bad := range []struct{ field, body string }{
		{"url", order("gopher://h/x", h)},
		{"url", order("https:///x", h)},
		{"url", order("file:///etc/passwd", h)},
		{"slot_id", order(url, h, "slot_id", 99)},
		{"tls", order(url, h, "tls", map[string]any{"verify": false, "ca": string(fetchtest.NewCA().PEM)})},
		{"credentials.username", order(url, h, "credentials", map[string]any{})},
		{"credentials.username", order(url, h, "credentials", map[string]any{"username": nil, "password": "p"})},
		{"credentials.username", order(url, h, "credentials", map[string]any{"username": "", "password": "p"})},
		{"credentials.username", order(url, h, "credentials", map[string]any{"username": "a:b", "password": "p"})},
		{"tls.ca", order(url, h, "tls", map[string]any{"ca": string(fetchtest.NewCA().PEM) + strings.Repeat("#", 64<<10)})},
	} {
		r := c.do(t, "POST", fetches, bad.body).fails(t, 400, "SemanticError", "")
		if !strings.HasPrefix(r.str("error.details.field"), bad.field) {
			t.Errorf("the field is not %s in %s", bad.field, r.raw)
		}
	}
	c.do(t, "GET", fetches, "").want(t, 200).is(t, "items", []any{})
}

func queued(t *testing.T) {
	c := startAgent(t, "").loginAdmin(t)
	_, slow := serveStalling(t, small)
	c.awaitPhase(t, c.fetch(t, slow, small.SHA256()), "downloading")
	r := c.do(t, "GET", c.fetch(t, slow, small.SHA256()), "").want(t, 200)
	r.is(t, "body.status", "queued", "body.bytes_downloaded", 0, "body.bytes_total", 0, "body.attempts", 0, "body.url", slow, "body.sha256", small.SHA256())
	for _, key := range []string{"info", "error", "slot_id", "start_time", "end_time", "phase", "bytes_per_second", "eta_seconds", "tls_verified",
		"next_attempt_time", "retry_reason", "error_details", "not_before", "window", "eligible_time", "rate_limit", "checksum_url"} {
		if v, ok := r.keys("body")[key]; !ok || v != nil {
			t.Errorf("%s should be there and null: %s", key, r.raw)
		}
	}
	r.is(t, "body.queue_position", 1, "body.priority", 0, "body.paused", false)
	if n := len(r.keys("body")); n != 28 { // the 15 of the contract, and 13 more
		t.Errorf("%d keys, want 28: %s", n, r.raw)
	}
}

func downloading(t *testing.T) {
	c := startAgent(t, "").loginAdmin(t)
	_, slow := serveStalling(t, small)
	r := c.await(t, c.fetch(t, slow, small.SHA256()), "going", func(r reply) bool { return r.get("body.bytes_total") == float64(small.Size()) })
	r.is(t, "body.status", "in-progress", "body.info", "Downloading", "body.phase", "downloading", "body.slot_id", nil, "body.error", nil, "body.attempts", 1)
	if start := r.str("body.start_time"); !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$`).MatchString(start) {
		t.Errorf("start_time %q", start)
	}
}

// holds compares the image in a slot.
func (a *agent) holds(t *testing.T, slot string, img *fetchtest.Image) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(a.state, "slots", slot, "image"))
	check(t, err)
	if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != img.SHA256() {
		t.Errorf("slot %s holds %x, want %s", slot, sum, img.SHA256())
	}
}

func finished(t *testing.T) {
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	r := c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished")
	r.is(t, "body.info", nil, "body.error", nil, "body.phase", nil, "body.slot_id", 1, "meta.slot", slotsPath+"/1",
		"body.bytes_downloaded", small.Size(), "body.bytes_total", small.Size())
	if r.str("body.end_time") == "" {
		t.Errorf("no end_time: %s", r.raw)
	}
	slot := c.do(t, "GET", slotsPath+"/1", "").want(t, 200).is(t, "key", "1", "body.sha256", small.SHA256(), "body.current", false, "body.after_reboot", false)
	if slot.str("body.version") == "" {
		t.Errorf("no version: %s", slot.raw)
	}
	a.holds(t, "1", small)
	if left := a.partials(t); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func wrongDigest(t *testing.T) {
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	wrong := strings.Repeat("ab", 32)
	r := c.awaitStatus(t, c.fetch(t, serveSmall(t), wrong), "failed").is(t, "body.info", "Firmware fetching failed", "body.slot_id", nil,
		"body.error_details.code", "digest", "body.error_details.class", "permanent", "body.error_details.doc", "errors.md#digest")
	if e := r.str("body.error"); !strings.Contains(e, wrong) || !strings.Contains(e, small.SHA256()) {
		t.Errorf("error %q does not name both digests", e)
	}
	if got := occupied(t, c); got != "" {
		t.Errorf("slots %s are not empty", got)
	}
	if left := a.partials(t); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func retry(t *testing.T) {
	c := startAgent(t, "").loginAdmin(t)
	url := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Sequence(fetchtest.Status(503, "Retry-After: 1"), fetchtest.Whole(small).Serve))
	job := c.fetch(t, url, small.SHA256())
	c.awaitPhase(t, job, "waiting").is(t, "body.status", "in-progress", "body.info", "Waiting to retry", "body.error", nil,
		"body.retry_reason", "The server answered 503 Service Unavailable for "+url+".",
		"body.error_details", map[string]any{"code": "http_503", "class": "temporary", "remedy": "", "doc": "errors.md#http_5xx"})
	c.awaitStatus(t, job, "finished").is(t, "body.attempts", 2, "body.error", nil, "body.error_details", nil)
}

func meta(t *testing.T) {
	c := startAgent(t, "").loginAdmin(t)
	url := serveSmall(t)
	first, second := c.fetch(t, url, small.SHA256()), c.fetch(t, url, small.SHA256())
	c.awaitStatus(t, first, "finished").is(t, "meta.href", first, "meta.parent", fetches)
	c.awaitStatus(t, second, "finished").is(t, "meta.slot", slotsPath+"/2")
	list := c.do(t, "GET", fetches, "").want(t, 200)
	list.is(t, "meta.href", fetches, "meta.parent", "/api/firmware", "meta.slots", slotsPath, "items.0.meta.href", first, "items.1.meta.href", second,
		"items.0.meta.slot", slotsPath+"/1", "items.0.meta.parent", nil)
}

func slotChoice(t *testing.T) {
	c := startAgent(t, "").loginAdmin(t)
	url := serveSmall(t)
	var last string
	for range 6 {
		last = c.fetch(t, url, small.SHA256())
	}
	const remedy = "Delete one with DELETE /api/firmware/slots/<slot_id> and start again."
	c.awaitStatus(t, last, "failed").is(t, "body.error", "No empty firmware slot: all 5 are occupied. "+remedy,
		"body.error_details", map[string]any{"code": "no_slot", "class": "human", "remedy": remedy, "doc": "errors.md#no_slot"})
	for _, slot := range []string{"2", "4"} {
		c.do(t, "DELETE", slotsPath+"/"+slot, "").want(t, 200)
	}
	c.awaitStatus(t, c.fetch(t, url, small.SHA256()), "finished").is(t, "body.slot_id", 2)
	c.awaitStatus(t, c.fetch(t, url, small.SHA256(), "slot_id", "5"), "failed") // though 4 is free
	c.awaitStatus(t, c.fetch(t, url, small.SHA256(), "slot_id", 4), "finished").is(t, "body.slot_id", 4)
	if got := occupied(t, c); got != "1 2 3 4 5" {
		t.Errorf("occupied: %s", got)
	}
}

func userinfo(t *testing.T) {
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	elsewhere := fetchtest.NewHTTPAt(t, "127.0.0.2:0", nil)
	origin := fetchtest.NewHTTP(t, nil)
	url := origin.Handle("/a.iso", fetchtest.Protected("romeo", "juliet", fetchtest.Redirect(elsewhere.Handle("/b.iso", fetchtest.Whole(small).Serve))))
	posted := c.do(t, "POST", fetches, order(strings.Replace(url, "://", "://romeo:juliet@", 1), small.SHA256())).want(t, 202)
	job := c.awaitStatus(t, posted.str("meta.href"), "finished").is(t, "body.url", url)
	list := c.do(t, "GET", fetches, "").want(t, 200)
	for what, text := range map[string]string{"answer": posted.raw, "job": job.raw, "list": list.raw, "log": a.log.String()} {
		if strings.Contains(text, "romeo") || strings.Contains(text, "juliet") {
			t.Errorf("the %s tells: %s", what, text)
		}
	}
	seen := false
	for _, x := range origin.Requests() {
		u, p, _ := x.Auth()
		seen = seen || u == "romeo" && p == "juliet"
	}
	if !seen {
		t.Error("the server saw no credentials")
	}
	for _, x := range elsewhere.Requests() {
		if got := x.Header.Get("Authorization"); got != "" {
			t.Errorf("the other host saw %q", got)
		}
	}
}

func tlsRules(t *testing.T) {
	c := startAgent(t, "").loginAdmin(t)
	ca := fetchtest.NewCA()
	self := fetchtest.NewHTTP(t, ca.TLS(fetchtest.SelfSigned))
	url := self.Handle("/a.iso", fetchtest.Whole(small).Serve)
	credentials := map[string]string{"username": "u", "password": "p"}
	c.awaitStatus(t, c.fetch(t, url, small.SHA256()), "finished").is(t, "body.tls_verified", false)
	c.awaitStatus(t, c.fetch(t, url, small.SHA256(), "credentials", credentials), "failed")
	for _, x := range self.Requests() {
		if got := x.Header.Get("Authorization"); got != "" {
			t.Errorf("an unverified server saw %q", got)
		}
	}
	good := fetchtest.NewHTTP(t, ca.TLS(fetchtest.Good)).Handle("/a.iso", fetchtest.Whole(small).Serve)
	c.awaitStatus(t, c.fetch(t, good, small.SHA256(), "tls", map[string]any{"ca": string(ca.PEM)}, "credentials", credentials), "finished").is(t, "body.tls_verified", true)
	c.awaitStatus(t, c.fetch(t, good, small.SHA256(), "tls", map[string]any{"ca": string(fetchtest.NewCA().PEM)}), "failed")
}

func mirrors(t *testing.T) {
	c := startAgent(t, "").loginAdmin(t)
	l, err := net.Listen("tcp", "127.0.0.3:0")
	check(t, err)
	dead := "http://" + l.Addr().String() + "/a.iso"
	check(t, l.Close())
	c.awaitStatus(t, c.fetch(t, dead, small.SHA256(), "mirrors", []string{serveSmall(t)}), "finished").is(t, "body.url", dead)
}

func cancelQueued(t *testing.T) {
	c := startAgent(t, "").loginAdmin(t)
	_, slow := serveStalling(t, small)
	c.awaitPhase(t, c.fetch(t, slow, small.SHA256()), "downloading")
	job := c.fetch(t, slow, small.SHA256())
	for _, method := range []string{"DELETE", "GET"} {
		c.do(t, method, job, "").want(t, 200).is(t, "body.status", "cancelled", "body.info", "Firmware fetching cancelled", "body.error", nil, "meta.href", job, "meta.parent", fetches)
	}
}

func cancelDownload(t *testing.T) {
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	server, slow := serveStalling(t, small)
	job := c.fetch(t, slow, small.SHA256())
	x := server.Next(t)
	got := small.Size() / 2 // no multiple of what a partial is written by
	c.await(t, job, "half of it", func(r reply) bool { return r.get("body.bytes_downloaded") == float64(got) })
	r := c.do(t, "DELETE", job, "").want(t, 200).is(t, "body.bytes_downloaded", got)
	if left := a.partials(t); left != nil {
		t.Errorf("left behind at the answer: %v", left)
	}
	r.is(t, "body.status", "cancelled", "body.error", nil, "body.slot_id", nil)
	fetchtest.Await(t, "the end of the connection", x.Closed)
	c.do(t, "GET", job, "").want(t, 200).is(t, "body.status", "cancelled")
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished").is(t, "body.slot_id", 1)
}

func prune(t *testing.T) {
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	job := c.fetch(t, serveSmall(t), small.SHA256())
	c.awaitStatus(t, job, "finished")
	r := c.do(t, "DELETE", job, "").want(t, 200).is(t, "meta.href", job, "meta.parent", fetches)
	if len(r.json.(map[string]any)) != 1 {
		t.Errorf("more than meta: %s", r.raw)
	}
	c.do(t, "GET", job, "").fails(t, 404, "ResourceNotFound", "")
	c.do(t, "DELETE", job, "").fails(t, 404, "ResourceNotFound", "")
	a.holds(t, "1", small)
}

func listSlots(t *testing.T) {
	r := startAgent(t, "").loginAdmin(t).do(t, "GET", slotsPath, "").want(t, 200)
	for i := range 5 {
		r.is(t, fmt.Sprintf("items.%d.key", i), strconv.Itoa(i+1), fmt.Sprintf("items.%d.body", i), map[string]any{})
	}
	r.is(t, "items.5", nil, "body.number_of_slots", 5, "body.number_of_empty_slots", 5, "meta.number_of_empty_slots", 5, "meta.current_slot", nil)
	c := startAgent(t, "[slots]\nfirst = 0\ncount = 2\n").loginAdmin(t)
	c.do(t, "GET", slotsPath, "").want(t, 200).is(t, "items.0.key", "0", "items.1.key", "1", "items.2", nil, "body.number_of_slots", 2)
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished").is(t, "body.slot_id", 0, "meta.slot", slotsPath+"/0")
	c.do(t, "GET", slotsPath+"/0", "").want(t, 200).is(t, "key", "0", "body.sha256", small.SHA256())
}

func protectedSlots(t *testing.T) {
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	url := serveSmall(t)
	for range 3 {
		c.awaitStatus(t, c.fetch(t, url, small.SHA256()), "finished")
	}
	check(t, os.WriteFile(filepath.Join(a.state, "slots", "boot.json"), []byte(`{"current":1,"after_reboot":2}`), 0o644))
	c.do(t, "GET", slotsPath, "").want(t, 200).is(t, "meta.current_slot", slotsPath+"/1", "meta.slot_after_reboot", slotsPath+"/2",
		"items.0.body.current", true, "items.1.body.after_reboot", true, "items.2.body.current", false)
	c.do(t, "DELETE", slotsPath+"/1", "").fails(t, 409, "Conflict", "")
	c.do(t, "DELETE", slotsPath+"/2", "").fails(t, 409, "Conflict", "")
	c.do(t, "DELETE", slotsPath+"/3", "").want(t, 200)
	if got := occupied(t, c); got != "1 2" {
		t.Errorf("occupied: %s", got)
	}
	c.do(t, "DELETE", slotsPath+"/3", "").fails(t, 404, "ResourceNotFound", "").is(t, "error.message", "Slot 3 is empty.")
	c.do(t, "DELETE", slotsPath+"/99", "").fails(t, 404, "ResourceNotFound", "")
	check(t, os.WriteFile(filepath.Join(a.state, "slots", "boot.json"), []byte("{"), 0o644))
	c.do(t, "GET", slotsPath, "").want(t, 200).is(t, "meta.current_slot", nil, "meta.slot_after_reboot", nil, "items.0.body.current", false)
	c.do(t, "GET", slotsPath+"/1", "").want(t, 200).is(t, "body.current", false)
	c.do(t, "GET", "/api/info", "").want(t, 200).is(t, "body.firmware_version", nil)
	c.do(t, "DELETE", slotsPath+"/1", "").fails(t, 503, "ServiceUnavailable", "")
}

func info(t *testing.T) {
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	if body := a.stranger(t).do(t, "GET", "/api/info", "").want(t, 200).keys("body"); len(body) != 4 {
		t.Errorf("a stranger sees %v", body)
	}
	r := c.do(t, "GET", "/api/info", "").want(t, 200).is(t, "body.agent_version", "dev")
	for _, key := range []string{"version", "firmware_version"} {
		if v, ok := r.keys("body")[key]; !ok || v != nil {
			t.Errorf("%s should be there and null while no slot is current: %s", key, r.raw)
		}
	}
	slot := c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished").str("meta.slot")
	check(t, os.WriteFile(filepath.Join(a.state, "slots", "boot.json"), []byte(`{"current":1,"after_reboot":1}`), 0o644))
	version := c.do(t, "GET", slot, "").want(t, 200).str("body.version")
	c.do(t, "GET", "/api/info", "").want(t, 200).is(t, "body.version", version, "body.firmware_version", version)
}

func testSlot(t *testing.T) {
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	const path = "/api/firmware/test"
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished")
	viewer, operator := a.user(t, "viewer"), a.user(t, "operator")
	viewer.do(t, "POST", path, `{"slot_id":1}`).fails(t, 403, "Unauthorized", "")
	operator.do(t, "POST", path, "{}").fails(t, 400, "IncompleteRequestBodyError", "slot_id")
	operator.do(t, "POST", path, `{"slot":1}`).fails(t, 400, "IncompleteRequestBodyError", "slot_id")
	operator.do(t, "POST", path, `{"slot_id":"one"}`).fails(t, 400, "SemanticError", "slot_id")
	operator.do(t, "POST", path, `{"slot_id":2}`).fails(t, 404, "ResourceNotFound", "")
	operator.do(t, "POST", path, `{"slot_id":99}`).fails(t, 404, "ResourceNotFound", "")
	for _, body := range []string{`{"slot_id":1}`, `{"slot_id":"1"}`} {
		r := operator.do(t, "POST", path, body).want(t, 200).is(t, "key", "1", "meta.href", path, "meta.parent", "/api/firmware", "meta.slot", slotsPath+"/1")
		if s := r.str("body.test_summary"); !strings.HasPrefix(s, "Image digest: ok\n") || !strings.Contains(s, "\nVersion path: ok") {
			t.Errorf("summary %q", s)
		}
	}
	damage(t, a, 1)
	r := operator.do(t, "POST", path, `{"slot_id":1}`).fails(t, 400, "FirmwareTestFailed", "")
	for _, text := range []string{r.str("error.message"), r.str("error.details.test_summary")} {
		if !strings.Contains(text, "Image digest: FAILED (the image has changed") {
			t.Errorf("it does not say what failed: %s", r.raw)
		}
	}
	c.do(t, "DELETE", slotsPath+"/1", "").want(t, 200) // nobody holds it any more
}

func wrongMethod(t *testing.T) {
	c := startAgent(t, "").loginAdmin(t)
	r := c.do(t, "PUT", fetches, "").fails(t, 405, "MethodNotAllowed", "")
	if got := r.header.Get("Allow"); got != "GET, HEAD, OPTIONS, POST" {
		t.Errorf("Allow: %q", got)
	}
	c.do(t, "POST", fetches+"/3b0a6a52-6c1e-4f0e-9d57-1f6f3f0f8a11", "").want(t, 405)
	c.do(t, "GET", "/api/nope", "").fails(t, 404, "ResourceNotFound", "").is(t, "error.code", "3")
	c.do(t, "OPTIONS", fetches, "").want(t, 200)
	c.do(t, http.MethodHead, fetches, "").want(t, 200)
}

func killed(t *testing.T) {
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	img := fetchtest.NewImage(40, 8<<20)
	server, slow := serveStalling(t, img)
	job := c.fetch(t, slow, img.SHA256())
	server.Next(t)
	c.await(t, job, "going", func(r reply) bool { return r.get("body.bytes_downloaded") != 0.0 })
	a.restart(t, syscall.SIGKILL)
	again := server.Next(t) // it stalls once more
	if s := c.do(t, "GET", job, "").want(t, 200).str("body.status"); s != "queued" && s != "in-progress" {
		t.Errorf("after the restart the job is %s", s)
	}
	again.Release()
	c.awaitStatus(t, job, "finished").is(t, "body.slot_id", 1, "body.sha256", img.SHA256())
	if got := occupied(t, c); got != "1" {
		t.Errorf("occupied: %s", got)
	}
	a.holds(t, "1", img)
	if left := a.partials(t); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestSecondAgentIsRefused(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	out, err := exec.Command(program, "--config", a.config, "serve").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another slotfetchd is running on "+a.state) {
		t.Errorf("%v: %s", err, out)
	}
	a.loginAdmin(t).do(t, "GET", fetches, "").want(t, 200)
}

// TestVendorsCurl runs the commands of the vendor's guide.
func TestVendorsCurl(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("no curl")
	}
	a := startAgent(t, "")
	jar := filepath.Join(t.TempDir(), "jar")
	curl := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.Command("curl", append([]string{"-sk", "--fail-with-body"}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("curl %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	curl("", "--basic", "--user", "admin:"+a.admin, "--cookie-jar", jar, a.base+"/api/authentication")
	posted := curl(order(serveSmall(t), small.SHA256()), "-X", "POST", "-b", jar, "--data", "@-", a.base+fetches)
	key := regexp.MustCompile(`"key": ?"([^"]+)"`).FindStringSubmatch(posted)
	if key == nil {
		t.Fatalf("no key in %s", posted)
	}
	a.loginAdmin(t).awaitStatus(t, fetches+"/"+key[1], "finished")
	if list := curl("", "-X", "GET", "-b", jar, a.base+fetches); !strings.Contains(list, key[1]) {
		t.Errorf("not in the list: %s", list)
	}
	if job := curl("", "-X", "GET", "-b", jar, a.base+fetches+"/"+key[1]); !strings.Contains(job, `"finished"`) {
		t.Errorf("not finished: %s", job)
	}
	curl("", "-X", "DELETE", "-b", jar, a.base+fetches+"/"+key[1])
}
