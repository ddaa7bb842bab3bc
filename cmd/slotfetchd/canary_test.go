package main_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"slotfetch/fetch/fetchtest"
)

// canaries are secrets that must be seen nowhere; each has a name to complain by.
type canaries struct {
	t       *testing.T
	a       *agent
	secrets map[string][]byte
	replies []reply
}

// secret makes one, with the forms that it may take on its way.
func (k *canaries) secret(name string) string {
	s := "canary0" + strings.ReplaceAll(name, " ", "0")
	k.forbid(name, s)
	return s
}

func (k *canaries) forbid(name, s string) { k.secrets[name] = []byte(s) }

// credentials are a user name and a password that nobody may see, together in Basic neither.
func (k *canaries) credentials(name string) (username, password string) {
	username, password = k.secret("user "+name), k.secret("password "+name)
	k.forbid("Basic "+name, base64.StdEncoding.EncodeToString([]byte(username+":"+password)))
	return username, password
}

// do remembers the reply, so that look can look at it.
func (k *canaries) do(c *client, method, path, body string, header ...string) reply {
	k.t.Helper()
	r := c.do(k.t, method, path, body, header...)
	k.replies = append(k.replies, r)
	return r
}

// look searches all that others may come to see. A query string is part of the URL and stays with it, in the row and
// in replies (contract section 5.1), because who may read these may also read the image; it must not get into logs and
// manifests, which travel further.
func (k *canaries) look(when string) {
	t := k.t
	t.Helper()
	search := func(what string, text []byte) (query bool) {
		t.Helper()
		for name, secret := range k.secrets {
			if bytes.Contains(text, secret) {
				t.Errorf("%s, %s has the %s", when, what, name)
			}
		}
		return bytes.Contains(text, []byte(querySecret))
	}
	inDatabase := false
	check(t, filepath.WalkDir(k.a.state, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		found := search(path, text)
		if database := strings.HasPrefix(path, k.a.database()); database {
			inDatabase = inDatabase || found
		} else if found {
			t.Errorf("%s, %s has the query", when, path)
		}
		return err
	}))
	if !inDatabase {
		t.Errorf("%s, the search does not even find the query in the database", when)
	}
	if search("the log", []byte(k.a.log.String())) {
		t.Errorf("%s, the log has the query", when)
	}
	for _, r := range k.replies {
		head := fmt.Sprint(r.header)
		if r.header.Get("Set-Cookie") != "" {
			head = "" // the one reply that has to tell a token
		}
		search("the reply to "+r.what, []byte(head+r.raw))
	}
	for _, name := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", k.a.cmd.Process.Pid, name))
		if err != nil {
			continue // it is not running
		}
		if search("/proc/PID/"+name, text) {
			t.Errorf("%s, %s has the query", when, name)
		}
	}
}

const querySecret = "canary0query0signature"

// TestCanaries runs fetches with secrets in all places that may hold one and searches for them while they are queued
// and running, after a kill, at their ends, and when the agent is gone.
func TestCanaries(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "[fetch]\nretry_rounds = 2\n")
	k := &canaries{t: t, a: a, secrets: map[string][]byte{}}
	k.forbid("first password", a.admin)
	operator, wrong := k.secret("password of the operator"), k.secret("wrong password")
	a.run(t, operator+"\n", "user", "add", "--role", "operator", "operator1")
	a.loginAdmin(t) // which removes the file with the first password
	c := a.login(t, "operator1", operator)
	token := strings.TrimPrefix(c.cookie, "session_id=")
	raw, err := hex.DecodeString(token)
	check(t, err)
	k.forbid("session", token)
	k.forbid("raw session", string(raw))
	k.do(a.stranger(t), "GET", "/api/authentication?password="+wrong, "", "Authorization", basic("operator1", wrong)).want(t, 401)
	k.do(a.stranger(t), "GET", "/api/authentication", "", "Authorization", basic(wrong, wrong)).want(t, 401)

	server := fetchtest.NewHTTP(t, nil)
	inside := func(url, username, password string) string {
		return strings.Replace(url, "://", "://"+username+":"+password+"@", 1) + "?sig=" + querySecret
	}
	stall := fetchtest.Whole(small)
	stall.Fault, stall.After = fetchtest.Stall, small.Size()/2
	post := func(url string, more ...any) string {
		t.Helper()
		return k.do(c, "POST", fetches, order(url, small.SHA256(), more...)).want(t, 202).str("meta.href")
	}
	protected := func(path, name string, h fetchtest.Handler) (url, username, password string) {
		username, password = k.credentials(name)
		return server.Handle(path, fetchtest.Protected(username, password, h)), username, password
	}
	// The running one: credentials in the URL, in its redirect, and in a mirror that is not asked.
	username, password := k.credentials("of the redirect")
	end := server.Handle("/end.iso", fetchtest.Sequence(stall.Serve, fetchtest.Whole(small).Serve))
	start, u, p := protected("/start.iso", "in the url", fetchtest.Redirect(inside(end, username, password)))
	mirror, mu, mp := protected("/mirror.iso", "of a mirror", fetchtest.Whole(small).Serve)
	running := post(inside(start, u, p), "mirrors", []string{inside(mirror, mu, mp)})
	c.await(t, running, "going", func(r reply) bool { return r.get("body.attempts") == 1.0 })

	given, u, p := protected("/given.iso", "given", fetchtest.Whole(small).Serve)
	queued := []string{post(given+"?sig="+querySecret, "credentials", map[string]string{"username": u, "password": p})}
	refused, _, _ := protected("/refused.iso", "expected", fetchtest.Whole(small).Serve)
	u, p = k.credentials("refused")
	queued = append(queued, post(inside(refused, u, p)))
	u, p = k.credentials("of a missing image")
	queued = append(queued, post(inside(server.URL+"/missing.iso", u, p)))
	u, p = k.credentials("of a dead server")
	queued = append(queued, post(inside("http://127.0.0.1:1/dead.iso", u, p)))
	u, p = k.credentials("of a dead ftp server")
	queued = append(queued, post(inside("ftp://127.0.0.1:1/dead.iso", u, p)))
	u, p = k.credentials("of a gossip")
	gossip := fetchtest.NewFTP(t, fetchtest.Script{Reply: map[string]string{"PASS": "530 " + u + " has another password than " + p}})
	queued = append(queued, post(inside(gossip.URL+"/a.iso", u, p)))
	u, p = k.credentials("of a loop")
	queued = append(queued, post(inside(server.Handle("/loop.iso", fetchtest.Redirect(inside(server.URL+"/loop.iso", u, p))), u, p)))
	u, p = k.credentials("of a malformed redirect")
	queued = append(queued, post(inside(server.Handle("/malformed.iso", fetchtest.Redirect("http://"+u+":"+p+"@[::1/?"+querySecret)), u, p)))
	u, p = k.credentials("of garbage")
	queued = append(queued, post(inside(server.Handle("/garbage.iso", fetchtest.Raw("SSH-2.0-"+u+p+querySecret+"\r\n\r\n")), u, p)))
	sums, u, p := protected("/SHA256SUMS", "of the checksum file", fetchtest.Raw("HTTP/1.1 200 OK\r\n\r\n"+strings.Repeat("0", 64)+"  other.iso\n"))
	queued = append(queued, post(given, "checksum", map[string]string{"url": inside(sums, u, p)}))
	look, u, p := protected("/look.iso", "of a dry run", fetchtest.Whole(small).Serve)
	k.do(c, "POST", fetches+"?dry_run=true", order(inside(look, u, p), small.SHA256(), "force", true)).want(t, 200).is(t, "body.verdict", "warning") // clear text
	u, p = k.credentials("of a bad request")
	for _, body := range []string{
		order("gopher://"+u+":"+p+"@h/x?"+querySecret, small.SHA256()),
		order("http://"+u+":"+p+"@h:0/x", small.SHA256()),
		order("http://h/x", small.SHA256(), "credentials", map[string]string{"username": u + ":", "password": p}),
		order("http://h/x", small.SHA256(), "mirrors", []string{"http://" + u + ":" + p + "@h/%zz"}),
		`{"url": "http://` + u + ":" + p + `@h/x", `,
	} {
		k.do(c, "POST", fetches, body).want(t, 400)
	}
	lists := func() {
		t.Helper()
		for _, path := range append([]string{fetches, slotsPath, slotsPath + "/1", "/api/info", running}, queued...) {
			k.do(c, "GET", path, "").want(t, 200)
		}
		for _, fetch := range append([]string{running}, queued...) { // attempts are told without the query
			if r := k.do(c, "GET", fetch+"/attempts", "").want(t, 200); strings.Contains(r.raw, querySecret) {
				t.Errorf("the query is in %s", r.raw)
			}
		}
	}
	lists()
	k.look("while queued")
	a.stop(t, syscall.SIGKILL)
	k.look("after the kill")
	a.start(t)
	lists()
	k.look("after the restart")
	c.await(t, running, "an end", func(r reply) bool { return r.get("body.end_time") != nil })
	for _, job := range queued {
		c.await(t, job, "an end", func(r reply) bool { return r.get("body.end_time") != nil })
	}
	lists()
	if r := c.do(t, "GET", running+"/attempts", ""); !strings.Contains(r.raw, `/end.iso?…"`) {
		t.Errorf("the search was in vain: %s", r.raw)
	}
	k.look("at the end")
	a.stop(t, syscall.SIGKILL)
	k.look("after the second kill")
	a.start(t)
	a.stop(t, syscall.SIGTERM)
	k.look("when the agent is gone")
}
