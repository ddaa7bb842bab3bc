package main_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

const (
	clusterPath  = "/api/cluster"
	jobsPath     = clusterPath + "/jobs"
	softwarePath = clusterPath + "/software"
	downloadPath = softwarePath + "/download"
	packagesPath = softwarePath + "/packages"
)

// TestOntap is the acceptance checklist of the ONTAP dialect, item by item, against the real program. Items 36 to 38, real
// clients, are scripts/compat.
func TestOntap(t *testing.T) {
	t.Parallel()
	for _, item := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"01 authentication", clusterAuth},
		{"02 roles", clusterRoles},
		{"03 unknown paths and methods", clusterPaths},
		{"04-05 POST, one key in both dialects", clusterPost},
		{"06-07 bad requests", clusterBad},
		{"08 return_timeout", clusterTimeout},
		{"09-10 job", clusterJob},
		{"11 wrong digest", clusterDigest},
		{"12-13 cancel", clusterCancel},
		{"14 unknown job", clusterUnknown},
		{"16-17 sidecars", clusterSidecars},
		{"18 certificates", clusterTLS},
		{"19 join", clusterJoin},
		{"20-22 already there", clusterThere},
		{"23 full", clusterFull},
		{"24 secrets", clusterSecrets},
		{"25-26 status", clusterStatus},
		{"27 collections", clusterCollections},
		{"28-29 packages", clusterPackages},
		{"30-32 software", clusterSoftware},
		{"33 upload", clusterUpload},
		{"34 history, nodes", clusterNodes},
		{"codes", clusterCodes},
	} {
		t.Run(item.name, func(t *testing.T) {
			t.Parallel()
			item.run(t)
		})
	}
}

// cluster is a caller who sends Basic with each request, as ONTAP's clients do.
type cluster struct {
	*client
	auth string
}

func (a *agent) cluster(t *testing.T, name, password string) *cluster {
	t.Helper()
	return &cluster{a.stranger(t), basic(name, password)}
}

// clusterUser adds a user with a role.
func (a *agent) clusterUser(t *testing.T, role string) *cluster {
	t.Helper()
	a.run(t, "a password of "+role+"\n", "user", "add", "--role", role, role+"2")
	return a.cluster(t, role+"2", "a password of "+role)
}

func (c *cluster) do(t *testing.T, method, path, body string, header ...string) reply {
	t.Helper()
	r := c.client.do(t, method, path, body, append([]string{"Authorization", c.auth}, header...)...)
	if got := r.header.Get("Content-Type"); got != "application/hal+json" && strings.HasPrefix(path, clusterPath) {
		t.Errorf("%s: Content-Type %q", r.what, got)
	}
	return r
}

// refuses wants an error of ONTAP's; an empty target is not looked at.
func (r reply) refuses(t *testing.T, code int, number, target string) reply {
	t.Helper()
	r.want(t, code).is(t, "error.code", number)
	if target != "" {
		r.is(t, "error.target", target)
	}
	if r.str("error.message") == "" {
		t.Errorf("%s: no message in %s", r.what, r.raw)
	}
	return r
}

// wish is the body of a download.
func wish(url string, more ...any) string {
	m := map[string]any{"url": url}
	for i := 0; i < len(more); i += 2 {
		m[more[i].(string)] = more[i+1]
	}
	text, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func sha(img *fetchtest.Image) map[string]string { return map[string]string{"sha256": img.SHA256()} }

// job asks for a download and gives the path of its job.
func (c *cluster) job(t *testing.T, body string) string {
	t.Helper()
	return jobsPath + "/" + c.do(t, "POST", downloadPath, body).want(t, 202).str("job.uuid")
}

// ends waits for the end of a job.
func (c *cluster) ends(t *testing.T, job, state string) reply {
	t.Helper()
	return c.await(t, job, state, func(r reply) bool { return r.str("state") == state })
}

// await asks for a job until it is as wanted.
func (c *cluster) await(t *testing.T, job, what string, ok func(reply) bool) reply {
	t.Helper()
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(5 * time.Millisecond) {
		r := c.do(t, "GET", job, "").want(t, 200)
		switch got := r.str("state"); {
		case ok(r):
			return r
		case got == "success" || got == "failure" || time.Now().After(end):
			t.Fatalf("the job did not become %s: %s", what, r.raw)
		}
	}
}

func clusterAuth(t *testing.T) {
	a := startAgent(t, "")
	c, s := a.cluster(t, "admin", a.admin), a.loginAdmin(t)
	c.do(t, "GET", clusterPath, "").want(t, 200)
	s.do(t, "GET", clusterPath, "").want(t, 200)
	s.do(t, "GET", clusterPath, "", "Authorization", basic("admin", "wrong")).want(t, 200)
	for _, header := range [][]string{nil, {"Authorization", basic("admin", "wrong")}, {"Authorization", "Bearer x"}} {
		r := a.stranger(t).do(t, "GET", clusterPath, "", header...).refuses(t, 401, "6691623", "").is(t, "error.message", "User is not authorized.")
		if got := r.header.Get("WWW-Authenticate"); got != `Basic realm="slotfetch"` {
			t.Errorf("WWW-Authenticate: %q", got)
		}
	}
	a.stranger(t).do(t, "GET", fetches, "", "Authorization", basic("admin", a.admin)).want(t, 401) // not in the other dialect
	if got := c.do(t, "GET", clusterPath, "").header.Values("Set-Cookie"); got != nil {
		t.Errorf("Basic made a session: %q", got)
	}
	// Latin-1, as Python's requests sends it.
	a.run(t, "gr\u00fcn und lang genug\n", "user", "add", "--role", "viewer", "bob")
	latin := &cluster{a.stranger(t), basic("bob", "gr\xfcn und lang genug")}
	latin.do(t, "GET", clusterPath, "").want(t, 200)
	// What was remembered ends with the password, and with the user.
	a.run(t, "another password\n", "user", "passwd", "bob")
	latin.do(t, "GET", clusterPath, "").want(t, 401)
	bob := a.cluster(t, "bob", "another password")
	bob.do(t, "GET", clusterPath, "").want(t, 200)
	a.run(t, "", "user", "disable", "bob")
	bob.do(t, "GET", clusterPath, "").want(t, 401)
}

func clusterRoles(t *testing.T) {
	a := startAgent(t, "")
	viewer, operator := a.clusterUser(t, "viewer"), a.clusterUser(t, "operator")
	viewer.do(t, "POST", downloadPath, wish(serveSmall(t), "checksum", sha(small))).refuses(t, 403, "6", "")
	operator.do(t, "PATCH", softwarePath, `{"version":"1"}`).refuses(t, 403, "6", "")
	operator.do(t, "POST", downloadPath, wish(serveSmall(t)), "Sec-Fetch-Site", "cross-site").refuses(t, 403, "6", "")
	for _, path := range []string{clusterPath, clusterPath + "/nodes", jobsPath, softwarePath, downloadPath, packagesPath, softwarePath + "/history"} {
		viewer.do(t, "GET", path, "").want(t, 200)
		viewer.do(t, "HEAD", path, "").want(t, 200)
	}
	job := operator.job(t, wish(serveSmall(t), "checksum", sha(small)))
	operator.ends(t, job, "success")
	viewer.do(t, "PATCH", job+"?action=cancel", "").refuses(t, 403, "6", "")
	if r := viewer.do(t, "OPTIONS", clusterPath+"/software/upload", "").want(t, 200); r.header.Get("Allow") != "OPTIONS, POST" {
		t.Errorf("Allow: %q", r.header.Get("Allow"))
	}
	version := operator.do(t, "GET", packagesPath, "").str("records.0.version")
	r := operator.do(t, "PATCH", softwarePath+"?validate_only=true", fmt.Sprintf(`{"version":%q}`, version)).want(t, 202)
	operator.ends(t, jobsPath+"/"+r.str("job.uuid"), "success")
}

func clusterPaths(t *testing.T) {
	a := startAgent(t, "")
	c := a.cluster(t, "admin", a.admin)
	for _, path := range []string{"/nope", "/counter/tables", "/nodes/x", "/software/nope"} {
		c.do(t, "GET", clusterPath+path, "").refuses(t, 404, "3", "").is(t, "error.message", "API not found")
	}
	r := c.do(t, "PUT", downloadPath, "").refuses(t, 405, "3", "")
	if got := r.header.Get("Allow"); got != "GET, HEAD, OPTIONS, POST" {
		t.Errorf("Allow: %q", got)
	}
	r = c.do(t, "OPTIONS", downloadPath, "").want(t, 200)
	if got := r.header.Get("Allow"); !strings.Contains(got, "POST") || r.raw != "{}\n" {
		t.Errorf("Allow: %q, %q", got, r.raw)
	}
	c.do(t, "GET", "/api//cluster/jobs/", "").want(t, 200)
	off := startAgent(t, "[ontap]\nenabled = false\n")
	off.loginAdmin(t).do(t, "GET", "/api/clusters", "").want(t, 404)
	if r := off.cluster(t, "admin", off.admin).client.do(t, "GET", clusterPath, ""); r.code != 404 || !strings.Contains(r.raw, `"code":"3"`) {
		t.Errorf("switched off: %d %s", r.code, r.raw)
	}
}

var uuidText = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

func clusterPost(t *testing.T) {
	a := startAgent(t, "")
	c, s := a.cluster(t, "admin", a.admin), a.loginAdmin(t)
	r := c.do(t, "POST", downloadPath, wish(serveSmall(t), "checksum", sha(small)), "Accept", "application/json").want(t, 202)
	key := r.str("job.uuid")
	if !uuidText.MatchString(key) {
		t.Errorf("uuid %q", key)
	}
	r.is(t, "job._links.self.href", jobsPath+"/"+key)
	if got := r.header.Get("Location"); got != downloadPath {
		t.Errorf("Location %q", got)
	}
	s.awaitStatus(t, fetches+"/"+key, "finished")
	// And the other way round.
	path := s.fetch(t, serveSmall(t), small.SHA256())
	key = strings.TrimPrefix(path, fetches+"/")
	s.awaitStatus(t, path, "finished")
	c.do(t, "GET", jobsPath+"/"+key, "").want(t, 200).is(t, "uuid", key, "state", "success", "description", "POST "+downloadPath)
	c.do(t, "GET", jobsPath+"/"+strings.ToUpper(key), "").want(t, 200)
}

func clusterBad(t *testing.T) {
	a := startAgent(t, "")
	c := a.cluster(t, "admin", a.admin)
	digest := func(s any) string { return wish("http://127.0.0.1:1/x", "checksum", s) }
	for _, tt := range []struct{ body, code, target string }{
		{`{}`, "262177", "url"},
		{``, "262177", "url"},
		{`{"url":null}`, "262177", "url"},
		{`{"url":""}`, "262177", "url"},
		{wish("http://"), "39387137", "url"},
		{wish("http://h/a b"), "39387137", "url"},
		{wish("no url"), "39387137", "url"},
		{wish("http://h/" + strings.Repeat("x", 4096)), "39387137", "url"},
		{`{"url":7}`, "39387137", "url"},
		{wish("gopher://h/x"), "39387138", "url"},
		{wish("file:///etc/passwd"), "39387138", "url"},
		{wish("http://h/x", "checksums", 1), "262179", "checksums"},
		{digest(map[string]string{"sha512": "x"}), "262179", "checksum.sha512"},
		{digest(map[string]string{"sha256": "x"}), "262197", "checksum.sha256"},
		{digest("x"), "262197", "checksum.sha256"},
		{digest(map[string]string{}), "262197", "checksum.sha256"},
		{wish("http://h/x", "username", 7), "262197", "username"},
		{`{"url"`, "262199", ""},
		{`[]`, "262199", ""},
		{`{"url":"a","url":"b"}`, "262199", ""},
	} {
		c.do(t, "POST", downloadPath, tt.body).refuses(t, 400, tt.code, tt.target)
	}
	for query, want := range map[string][2]string{"username=u": {"262202", "username"}, "password=u": {"262202", "password"}, "colour=red": {"262179", "colour"},
		"return_timeout=600": {"262197", "return_timeout"}, "return_timeout=-1": {"262197", "return_timeout"}, "return_timeout=x": {"262197", "return_timeout"},
		"pretty=maybe&return_records=maybe": {"262197", "return_records"}, "%zz": {"262197", ""}} {
		c.do(t, "POST", downloadPath+"?"+query, wish(serveSmall(t), "checksum", sha(small))).refuses(t, 400, want[0], want[1])
	}
	if n := c.do(t, "GET", jobsPath, "").get("num_records"); n != 0.0 {
		t.Errorf("%v jobs came of bad requests", n)
	}
	c.do(t, "POST", downloadPath+"?colour=red&ignore_unknown_fields=True", wish(serveSmall(t), "checksum", sha(small), "state", "", "message", "", "code", 0)).want(t, 202)
}

func clusterTimeout(t *testing.T) {
	a := startAgent(t, "")
	c := a.cluster(t, "admin", a.admin)
	server := fetchtest.NewHTTP(t, nil)
	good := server.Handle("/good.iso", fetchtest.Whole(small).Serve)
	r := c.do(t, "POST", downloadPath+"?return_timeout=30", wish(good, "checksum", sha(small))).want(t, 201)
	c.do(t, "GET", jobsPath+"/"+r.str("job.uuid"), "").is(t, "state", "success")
	missing := server.Handle("/missing.iso", fetchtest.Status(404))
	c.do(t, "POST", downloadPath+"?return_timeout=30", wish(missing, "checksum", map[string]string{"sha256": strings.Repeat("0", 64)})).refuses(t, 400, "10551885", "")
	slow, url := serveStalling(t, fetchtest.NewImage(2, 300_000))
	begun := time.Now()
	r = c.do(t, "POST", downloadPath+"?return_timeout=1", wish(url, "checksum", sha(fetchtest.NewImage(2, 300_000)))).want(t, 202)
	if took := time.Since(begun); took < time.Second {
		t.Errorf("answered after %s", took)
	}
	slow.Next(t).Release()
	// While it is held, its end comes at once.
	c.ends(t, jobsPath+"/"+r.str("job.uuid"), "success")
}

func clusterJob(t *testing.T) {
	a := startAgent(t, "")
	c := a.cluster(t, "admin", a.admin)
	img := fetchtest.NewImage(3, 600_000)
	server, url := serveStalling(t, img)
	job := c.job(t, wish(url, "checksum", sha(img)))
	x := server.Next(t)
	second := c.job(t, wish(serveSmall(t), "checksum", sha(small)))
	r := c.await(t, job, "one of a known length", func(r reply) bool { return r.get("progress.bytes_total") != 0.0 }).is(t, "state", "running", "code", 0, "error", nil, "end_time", nil, "description", "POST "+downloadPath, "_links.self.href", job, "progress.bytes_total", 600_000)
	if !strings.HasPrefix(r.str("message"), "Package download in progress") || r.str("start_time") == "" || r.str("node.name") == "" {
		t.Errorf("running: %s", r.raw)
	}
	c.do(t, "GET", second+"?fields=message%2Cstate", "").want(t, 200).is(t, "state", "queued", "message", "Queued", "code", 0, "start_time", nil)
	x.Release()
	c.ends(t, job, "success").is(t, "message", "success", "code", 0, "error", nil)
	if end := c.ends(t, second, "success").str("end_time"); !strings.HasSuffix(end, "+00:00") {
		t.Errorf("end_time %q", end)
	}
	if n := len(c.do(t, "GET", packagesPath, "").get("records").([]any)); n != 2 {
		t.Errorf("%d packages", n)
	}
	a.restart(t, syscall.SIGKILL)
	c.ends(t, job, "success")
}

func clusterDigest(t *testing.T) {
	a := startAgent(t, "")
	c := a.cluster(t, "admin", a.admin)
	job := c.job(t, wish(serveSmall(t), "checksum", map[string]string{"sha256": strings.Repeat("0", 64)}))
	r := c.ends(t, job, "failure").is(t, "code", 10551359, "error.code", "10551359")
	if m := r.str("message"); !strings.HasPrefix(m, "SHA-256 mismatch") || m != r.str("error.message") {
		t.Error(r.raw)
	}
	c.do(t, "GET", packagesPath, "").is(t, "num_records", 0)
}

func clusterCancel(t *testing.T) {
	a := startAgent(t, "")
	c, s := a.clusterUser(t, "operator"), a.loginAdmin(t)
	img := fetchtest.NewImage(4, 600_000)
	server, url := serveStalling(t, img)
	job := c.job(t, wish(url, "checksum", sha(img)))
	server.Next(t)
	for query, code := range map[string]string{"action=pause": "458783", "action=resume": "458771"} {
		c.do(t, "PATCH", job+"?"+query, "").refuses(t, 409, code, "action")
	}
	c.do(t, "PATCH", job+"?action=x", "{}").refuses(t, 400, "262197", "action")
	c.do(t, "PATCH", job, "{}").refuses(t, 400, "262197", "action")
	if r := c.do(t, "PATCH", job+"?action=cancel", "{}").want(t, 200); r.raw != "{}\n" {
		t.Errorf("%q", r.raw)
	}
	if p := a.partials(t); len(p) > 0 {
		t.Errorf("left: %v", p)
	}
	c.ends(t, job, "failure").is(t, "code", 10551381, "message", "Package download cancelled by operator2", "error.code", "10551381")
	c.do(t, "PATCH", job+"?action=cancel", "").refuses(t, 409, "458762", "")
	c.ends(t, job, "failure") // not pruned
	// Over SPS.
	job = c.job(t, wish(url, "checksum", sha(img)))
	server.Next(t)
	s.do(t, "DELETE", fetches+strings.TrimPrefix(job, jobsPath), "").want(t, 200)
	c.ends(t, job, "failure").is(t, "message", "Package download cancelled by admin")
	s.do(t, "DELETE", fetches+strings.TrimPrefix(job, jobsPath), "").want(t, 200)
	c.do(t, "GET", job, "").refuses(t, 404, "4", "uuid")
}

func clusterUnknown(t *testing.T) {
	a := startAgent(t, "")
	c := a.cluster(t, "admin", a.admin)
	for _, path := range []string{"00000000-0000-0000-0000-000000000000", "nope", "{00000000-0000-0000-0000-000000000000}"} {
		c.do(t, "GET", jobsPath+"/"+path, "").refuses(t, 404, "4", "uuid").is(t, "error.message", "entry doesn't exist")
		c.do(t, "PATCH", jobsPath+"/"+path+"?action=cancel", "").refuses(t, 404, "4", "uuid")
	}
}

// beside is a server with an image and files beside it, of which each has a text.
func beside(t *testing.T, img *fetchtest.Image, files map[string]string) (*fetchtest.HTTP, string) {
	t.Helper()
	s := fetchtest.NewHTTP(t, nil)
	for path, text := range files {
		s.Handle(path, fetchtest.Raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)))
	}
	return s, s.Handle("/dir/image.iso", fetchtest.Whole(img).Serve)
}

// asked counts the requests for a path.
func asked(s *fetchtest.HTTP, path string) (n int) {
	for _, x := range s.Requests() {
		if x.URL.Path == path {
			n++
		}
	}
	return n
}

func clusterSidecars(t *testing.T) {
	a := startAgent(t, "")
	c := a.cluster(t, "admin", a.admin)
	const sidecar, list = "/dir/image.iso.sha256", "/dir/SHA256SUMS"
	zeros := strings.Repeat("0", 64)
	for i, files := range []map[string]string{
		{sidecar: "%s\n"},
		{sidecar: "%s  image.iso\n", list: zeros + "  image.iso\n"}, // the nearer one counts
		{list: zeros + "  other.iso\n%s *image.iso\n" + zeros + "  third.iso\n"},
		{sidecar: zeros + "  other.iso\n", list: "SHA256 (image.iso) = %s\n"},
	} {
		img := fetchtest.NewImage(uint64(20+i), 300_000)
		texts := map[string]string{}
		for path, text := range files {
			texts[path] = strings.ReplaceAll(text, "%s", img.SHA256())
		}
		_, url := beside(t, img, texts)
		c.ends(t, c.job(t, wish(url+"?q=1")), "success")
		c.do(t, "DELETE", packagesPath+"/image", "").want(t, 202) // or the next one would be of the same version
	}
	for name, files := range map[string]map[string]string{
		"none":             {},
		"of another file":  {sidecar: zeros + "  other.iso\n"},
		"without names":    {list: zeros + "\n"},
		"an HTML page":     {sidecar: "<html>" + zeros},
		"contradicts":      {list: zeros + "  image.iso\n" + strings.Repeat("1", 64) + "  image.iso\n"},
		"more than a page": {sidecar: strings.Repeat("#\n", 1<<19+1) + zeros + "\n"},
	} {
		s, url := beside(t, small, files)
		r := c.ends(t, c.job(t, wish(url)), "failure").is(t, "code", 10551381)
		for _, word := range []string{"image.iso.sha256", "SHA256SUMS", "ontap.require_checksum=false"} {
			if !strings.Contains(r.str("message"), word) {
				t.Errorf("%s: %s is not in %s", name, word, r.raw)
			}
		}
		if n := asked(s, "/dir/image.iso"); n != 0 {
			t.Errorf("%s: the image was asked for %d times", name, n)
		}
	}
	// A server in trouble is asked again.
	s, url := beside(t, small, nil)
	text := small.SHA256() + "\n"
	s.Handle(sidecar, fetchtest.Sequence(fetchtest.Status(503), fetchtest.Raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text))))
	job := c.job(t, wish(url))
	c.ends(t, job, "success")
	if got := a.loginAdmin(t).do(t, "GET", fetches+strings.TrimPrefix(job, jobsPath), ""); got.str("body.sha256") != small.SHA256() {
		t.Error(got.raw)
	}

	lax := startAgent(t, "[ontap]\nrequire_checksum = false\n")
	l := lax.cluster(t, "admin", lax.admin)
	s, url = beside(t, small, nil)
	job = l.job(t, wish(url))
	l.ends(t, job, "success")
	l.do(t, "GET", packagesPath, "").is(t, "records.0.sha256", small.SHA256())
	if n := asked(s, "/dir/image.iso"); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if got := lax.loginAdmin(t).do(t, "GET", fetches+strings.TrimPrefix(job, jobsPath), ""); got.str("body.sha256") != small.SHA256() {
		t.Error(got.raw)
	}
	// A login page is none of the images that go without a digest, and is named where one was wanted.
	page := "<!DOCTYPE html><title>Log in</title>"
	url = s.Handle("/page.iso", fetchtest.Raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(page), page)))
	l.ends(t, l.job(t, wish(url)), "failure").is(t, "code", 10551885)
	l.ends(t, l.job(t, wish(url, "checksum", sha(fetchtest.NewImage(7, 300_000)))), "failure").is(t, "code", 10551885)
	// What is known to be wrong is refused there, too.
	_, url = beside(t, fetchtest.NewImage(5, 300_000), map[string]string{sidecar: zeros + "\n"})
	l.ends(t, l.job(t, wish(url)), "failure").is(t, "code", 10551359)
}

func clusterTLS(t *testing.T) {
	a := startAgent(t, "")
	c := a.cluster(t, "admin", a.admin)
	s := fetchtest.NewHTTP(t, fetchtest.NewCA().TLS(fetchtest.Good))
	text := small.SHA256() + "\n"
	s.Handle("/image.iso.sha256", fetchtest.Raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)))
	url := s.Handle("/image.iso", fetchtest.Whole(small).Serve)
	c.ends(t, c.job(t, wish(url)), "failure").is(t, "code", 10551381)
	c.ends(t, c.job(t, wish(url, "checksum", sha(small))), "success")
}

func clusterJoin(t *testing.T) {
	a := startAgent(t, "")
	c := a.cluster(t, "admin", a.admin)
	img := fetchtest.NewImage(6, 600_000)
	server, url := serveStalling(t, img)
	job := c.job(t, wish(url, "checksum", sha(img)))
	x := server.Next(t)
	same := strings.Replace(url, "http://", "HTTP://u:p@", 1) + "#part"
	for _, body := range []string{wish(url), wish(url, "checksum", sha(img)), wish(same), wish(url, "username", "u", "password", "p")} {
		if got := c.job(t, body); got != job {
			t.Errorf("%s: another job", body)
		}
	}
	other := c.job(t, wish(url, "checksum", sha(small)))
	if other == job {
		t.Error("joined in spite of another digest")
	}
	c.do(t, "PATCH", other+"?action=cancel", "").want(t, 200)
	if c.job(t, wish(url, "checksum", sha(small))) == other {
		t.Error("joined what was cancelled")
	}
	x.Release()
	c.ends(t, job, "success")
	if n := asked(server, "/slow.iso"); n > 2 { // the second is that of the other digest
		t.Errorf("%d downloads", n)
	}
}

func clusterThere(t *testing.T) {
	a := startAgent(t, "")
	c := a.cluster(t, "admin", a.admin)
	server, url := beside(t, small, map[string]string{"/dir/image.iso.sha256": small.SHA256()})
	c.ends(t, c.job(t, wish(url, "checksum", sha(small))), "success")
	n := len(server.Requests())
	r := c.do(t, "POST", downloadPath, wish(url, "checksum", sha(small))).want(t, 202)
	job := jobsPath + "/" + r.str("job.uuid")
	c.do(t, "GET", job, "").is(t, "state", "success", "message", "success: already in slot 1")
	c.do(t, "POST", downloadPath+"?return_timeout=1", wish(url, "checksum", sha(small))).want(t, 201)
	a.loginAdmin(t).do(t, "GET", fetches+strings.TrimPrefix(job, jobsPath), "").is(t, "body.status", "finished", "body.slot_id", 1,
		"body.bytes_downloaded", small.Size(), "body.bytes_total", small.Size())
	if got := len(server.Requests()); got != n {
		t.Errorf("%d requests", got-n)
	}
	c.ends(t, c.job(t, wish(url)), "success").is(t, "message", "success: already in slot 1")
	if n := asked(server, "/dir/image.iso"); n != 1 {
		t.Errorf("the image was asked for %d times", n)
	}
	c.do(t, "GET", packagesPath, "").is(t, "num_records", 1)

	// The same name, other content.
	another := fetchtest.NewImage(8, 300_000)
	_, clash := beside(t, another, nil)
	r = c.do(t, "POST", downloadPath, wish(clash, "checksum", sha(another))).refuses(t, 409, "10551327", "")
	if !strings.HasPrefix(r.str("error.message"), "Package image with the same name already exists") {
		t.Error(r.raw)
	}
	// The same version, found out after the download.
	version := c.do(t, "GET", packagesPath, "").str("records.0.version")
	s := fetchtest.NewHTTP(t, nil)
	renamed := s.Handle("/"+version+".img", fetchtest.Whole(another).Serve)
	r = c.ends(t, c.job(t, wish(renamed, "checksum", sha(another))), "failure").is(t, "code", 10551327)
	if m := r.str("message"); strings.Contains(m, "already exists") || !strings.Contains(m, "Delete that package first") {
		t.Error(r.raw)
	}
}

func clusterFull(t *testing.T) {
	a := startAgent(t, "[slots]\ncount = 1\n")
	c := a.cluster(t, "admin", a.admin)
	c.ends(t, c.job(t, wish(serveSmall(t), "checksum", sha(small))), "success")
	img := fetchtest.NewImage(9, 300_000)
	_, url := beside(t, img, nil)
	r := c.ends(t, c.job(t, wish(url, "checksum", sha(img))), "failure").is(t, "code", 10551859)
	if !strings.Contains(r.str("message"), "Delete") {
		t.Error(r.raw)
	}
}

func clusterSecrets(t *testing.T) {
	a := startAgent(t, "")
	c := a.cluster(t, "admin", a.admin)
	const user, password = "canary-user", "canary-Pa55"
	for i, how := range []string{"userinfo", "fields", "both"} {
		img := fetchtest.NewImage(uint64(40+i), 300_000)
		s := fetchtest.NewHTTP(t, nil)
		plain := s.Handle(fmt.Sprintf("/%s.iso", how), fetchtest.Protected(user, password, fetchtest.Whole(img).Serve))
		body := wish(strings.Replace(plain, "://", "://"+user+":"+password+"@", 1), "checksum", sha(img))
		switch how {
		case "fields":
			body = wish(plain, "checksum", sha(img), "username", user, "password", password)
		case "both": // the fields win
			body = wish(strings.Replace(plain, "://", "://x:y@", 1), "checksum", sha(img), "username", user, "password", password)
		}
		job := c.job(t, body)
		all := c.ends(t, job, "success").raw + c.do(t, "GET", downloadPath, "").raw + c.do(t, "GET", jobsPath, "").raw + c.do(t, "GET", packagesPath, "").raw + a.log.String()
		for _, secret := range []string{user, password} {
			if strings.Contains(all, secret) {
				t.Errorf("%s: %s shows", how, secret)
			}
		}
	}
}

func clusterStatus(t *testing.T) {
	a := startAgent(t, "")
	c := a.cluster(t, "admin", a.admin)
	for _, query := range []string{"", "?max_records=1024&fields=", "?fields=*", "?fields=**"} {
		c.do(t, "GET", downloadPath+query, "").want(t, 200).is(t, "state", "not_started", "code", 10551384, "message", "No package download has been started.", "num_records", nil)
	}
	img := fetchtest.NewImage(10, 600_000)
	server, url := serveStalling(t, img)
	job := c.job(t, wish(url, "checksum", sha(img)))
	x := server.Next(t)
	c.ends(t, job, "running")
	if r := c.do(t, "GET", downloadPath, "").want(t, 200).is(t, "state", "running", "code", 10551382, "error", nil); !strings.HasPrefix(r.str("message"), "Package download in progress") {
		t.Error(r.raw)
	}
	x.Release()
	c.ends(t, job, "success")
	c.do(t, "GET", downloadPath, "").is(t, "state", "success", "code", 0, "message", "Package download complete", "error", nil, "progress.percent", 100)
	c.ends(t, c.job(t, wish(url+"x", "checksum", sha(img), "username", "u", "password", "p")), "success") // there already
	missing := fetchtest.NewHTTP(t, nil).Handle("/x.iso", fetchtest.Status(404))
	c.ends(t, c.job(t, wish(missing, "checksum", sha(small))), "failure")
	r := c.do(t, "GET", downloadPath, "").want(t, 200).is(t, "state", "failure", "code", 10551885, "error.code", "10551885")
	if r.str("message") == "" || r.str("message") != r.str("error.message") {
		t.Error(r.raw)
	}
}

func clusterCollections(t *testing.T) {
	a := startAgent(t, "")
	c := a.cluster(t, "admin", a.admin)
	img := fetchtest.NewImage(11, 600_000)
	server, slow := serveStalling(t, img)
	c.ends(t, c.job(t, wish(serveSmall(t), "checksum", sha(small))), "success")
	job := c.job(t, wish(slow, "checksum", sha(img)))
	server.Next(t)
	c.ends(t, job, "running")
	c.job(t, wish("http://127.0.0.1:1/x", "checksum", sha(fetchtest.NewImage(12, 300_000))))
	count := func(query string, want int) reply {
		t.Helper()
		r := c.do(t, "GET", jobsPath+"?"+query, "").want(t, 200).is(t, "num_records", want)
		if n := len(r.get("records").([]any)); n != want {
			t.Errorf("%s: %d records", query, n)
		}
		return r
	}
	count("", 3)
	count("state=running", 1).is(t, "records.0._links.self.href", job)
	count("state=running|success", 2)
	count("state=!running", 2)
	count("state=%21running%7C%22queued%22", 2)
	count("state=q*d", 1)
	count("state={running}", 1)
	count("end_time=null", 2)
	count("end_time=!null", 1)
	count("code=0", 3)
	count("code=>0", 0)
	count("code=0..5", 3)
	count("start_time=>2020-01-01", 2)
	count("message=*progress*&state=running", 1)
	count("uuid="+strings.TrimPrefix(job, jobsPath+"/"), 1)
	count("order_by=state", 3).is(t, "records.0.state", "queued", "records.2.state", "success")
	count("order_by=state+desc,uuid", 3).is(t, "records.0.state", "success")
	count("fields=**&max_records=100000&pretty=True", 3)
	r := c.do(t, "GET", jobsPath+"?return_records=False", "").want(t, 200).is(t, "num_records", 3)
	if r.raw != `{"num_records":3}`+"\n" {
		t.Error(r.raw)
	}
	r = count("max_records=1&fields=message,state&state=!x", 1)
	next := r.str("_links.next.href")
	if !strings.HasPrefix(next, jobsPath+"?") || strings.Count(next, "api/") != 1 || r.header.Get("Link") != "<"+next+`>; rel="next"` {
		t.Errorf("next: %q, %q", next, r.header)
	}
	seen := 1
	for next != "" {
		r = c.do(t, "GET", next, "").want(t, 200)
		next, seen = r.str("_links.next.href"), seen+1
	}
	if seen != 3 {
		t.Errorf("%d pages", seen)
	}
	for query, target := range map[string]string{"max_records=0": "max_records", "max_records=x": "max_records", "offset=-1": "offset", "order_by=colour": "order_by", "order_by=state+up": "order_by"} {
		c.do(t, "GET", jobsPath+"?"+query, "").refuses(t, 400, "262197", target)
	}
	c.do(t, "GET", jobsPath+"?colour=red", "").refuses(t, 400, "262179", "colour")
	c.do(t, "GET", jobsPath+"?colour=red&ignore_unknown_fields=true", "").want(t, 200)
	c.do(t, "GET", jobsPath+"?return_timeout=700", "").want(t, 200)
}

func clusterPackages(t *testing.T) {
	x := newBox(t, "", nil)
	c := x.cluster(t, "admin", x.admin)
	list := c.do(t, "GET", packagesPath, "").want(t, 200).is(t, "num_records", 1, "records.0.slot_id", 2)
	version := list.str("records.0.version")
	c.do(t, "GET", packagesPath+"/"+url.PathEscape(version), "").want(t, 200).is(t, "version", version)
	c.do(t, "GET", packagesPath+"/nope", "").refuses(t, 404, "4", "")
	c.do(t, "DELETE", packagesPath+"/nope", "").refuses(t, 404, "10551325", "")
	// Another image of the same version, over SPS, which minds less.
	again := fetchtest.NewImage(13, 300_000)
	s := fetchtest.NewHTTP(t, nil)
	x.c.awaitStatus(t, x.c.fetch(t, s.Handle("/"+version+".iso", fetchtest.Whole(again).Serve), again.SHA256()), "finished")
	list = c.do(t, "GET", packagesPath+"?version="+url.QueryEscape(version+"+slot3"), "").want(t, 200).is(t, "num_records", 1, "records.0.slot_id", 3)
	href := list.str("records.0._links.self.href")
	c.do(t, "GET", href, "").want(t, 200).is(t, "slot_id", 3)
	c.do(t, "GET", packagesPath+"/"+version+"+slot3", "").want(t, 200).is(t, "slot_id", 3)
	r := c.do(t, "DELETE", href, "{}").want(t, 202)
	c.ends(t, jobsPath+"/"+r.str("job.uuid"), "success")
	c.do(t, "GET", href, "").refuses(t, 404, "4", "")
	c.do(t, "DELETE", href+"?return_timeout=30", "{}").refuses(t, 404, "10551325", "")
	// The version that runs.
	running := c.do(t, "GET", softwarePath, "").want(t, 200).str("version")
	r = c.do(t, "DELETE", packagesPath+"/"+url.PathEscape(running)+"?return_timeout=30", "").want(t, 200)
	c.do(t, "GET", jobsPath+"/"+r.str("job.uuid"), "").is(t, "state", "success")
	x.c.do(t, "GET", slotsPath+"/1", "").is(t, "body.current", true)
	// The one that boots next, and one that is pinned.
	x.c.do(t, "PATCH", slotsPath+"/2", `{"pinned":true}`).want(t, 200)
	c.do(t, "DELETE", packagesPath+"/"+url.PathEscape(version), "").refuses(t, 409, "10551367", "")
	x.c.do(t, "PATCH", slotsPath+"/2", `{"pinned":false}`).want(t, 200)
	x.upgrade(t, `{"slot_id":2}`)
	c.do(t, "DELETE", packagesPath+"/"+url.PathEscape(version), "").refuses(t, 409, "10551367", "")
}

func clusterSoftware(t *testing.T) {
	x := newBox(t, "", nil)
	c := x.cluster(t, "admin", x.admin)
	fresh := c.do(t, "GET", softwarePath, "").want(t, 200).is(t, "state", "completed", "pending_version", nil, "validation_results", []any{}, "update_details", []any{}, "status_details", []any{})
	running, node := fresh.str("version"), fresh.str("nodes.0.name")
	version := c.do(t, "GET", packagesPath, "").str("records.0.version")
	fresh.is(t, "nodes.0.version", running)
	body := fmt.Sprintf(`{"version":%q}`, version)
	for _, tt := range []struct {
		query, body, code, target string
		status                    int
	}{
		{"", `{}`, "10551872", "version", 400},
		{"", `{"version":"nope"}`, "10551325", "version", 404},
		{"", fmt.Sprintf(`{"version":%q}`, running), "10551854", "version", 409},
		{"?action=pause", body, "10551300", "action", 409},
		{"?action=resume", body, "10551303", "action", 409},
		{"?action=cancel", ``, "10551306", "action", 409},
		{"?action=x", body, "262197", "action", 400},
		{"?nodes_to_update=other", body, "262197", "nodes_to_update", 400},
		{"?validate_only=perhaps", body, "262197", "validate_only", 400},
		{"", `{"version":"x","colour":1}`, "262179", "colour", 400},
	} {
		c.do(t, "PATCH", softwarePath+tt.query, tt.body).refuses(t, tt.status, tt.code, tt.target)
	}
	r := c.do(t, "PATCH", softwarePath+"?validate_only=true&return_timeout=60", body).want(t, 200)
	c.do(t, "GET", jobsPath+"/"+r.str("job.uuid"), "").is(t, "state", "success", "description", "PATCH "+softwarePath)
	c.do(t, "GET", softwarePath, "").is(t, "validation_results", []any{}, "state", "completed")

	r = c.do(t, "PATCH", softwarePath+"?skip_warnings=True&stabilize_minutes=8&force_rolling=false&nodes_to_update="+url.QueryEscape(node), body).want(t, 202)
	job := jobsPath + "/" + r.str("job.uuid")
	r = c.do(t, "GET", softwarePath, "").want(t, 200).is(t, "state", "in_progress", "version", running)
	if n, _ := r.get("estimated_duration").(float64); n < 1 || r.get("elapsed_duration") == nil {
		t.Error(r.raw)
	}
	for _, request := range [][2]string{{"PATCH", softwarePath}, {"PATCH", softwarePath + "?validate_only=true"}, {"POST", downloadPath}} {
		text := body
		if request[0] == "POST" {
			text = wish(serveSmall(t), "checksum", sha(small))
		}
		c.do(t, request[0], request[1], text).refuses(t, 409, "10551357", "")
	}
	upgrade := upgradesPath + strings.TrimPrefix(job, jobsPath)
	x.becomes(t, upgrade, "activated")
	c.ends(t, job, "success")
	c.do(t, "GET", softwarePath, "").is(t, "state", "in_progress", "pending_version", version)
	x.reboot(t, 2)
	x.becomes(t, upgrade, "confirmed")
	c.do(t, "GET", softwarePath, "").is(t, "state", "completed", "version", version, "nodes.0.version", version, "pending_version", nil)
	c.ends(t, job, "success")
	c.do(t, "GET", softwarePath+"/history", "").is(t, "num_records", 1, "records.0.state", "successful", "records.0.from_version", running, "records.0.to_version", version,
		"records.0.node.name", node)

	// Back again, but the image is damaged.
	damage(t, x.agent, 1)
	r = c.do(t, "PATCH", softwarePath, fmt.Sprintf(`{"version":%q}`, running)).want(t, 202)
	failed := jobsPath + "/" + r.str("job.uuid")
	if m := c.ends(t, failed, "failure").is(t, "code", 10551396).str("message"); !strings.Contains(m, "Image digest") {
		t.Error(m)
	}
	c.do(t, "GET", softwarePath, "").is(t, "validation_results.0.update_check", "Image digest", "validation_results.0.status", "error", "state", "completed")
	x.restart(t, syscall.SIGTERM)
	c.ends(t, failed, "failure")
}

// TestOntapFallback: the box came back in another slot.
func TestOntapFallback(t *testing.T) {
	t.Parallel()
	x := newBox(t, "", nil)
	c := x.cluster(t, "admin", x.admin)
	version := c.do(t, "GET", packagesPath, "").str("records.0.version")
	r := c.do(t, "PATCH", softwarePath+"?return_timeout=30", fmt.Sprintf(`{"version":%q}`, version)).want(t, 202) // before the reboot
	upgrade := upgradesPath + "/" + r.str("job.uuid")
	x.becomes(t, upgrade, "activated")
	x.reboot(t, 1)
	x.becomes(t, upgrade, "failed")
	c.do(t, "GET", softwarePath, "").is(t, "state", "failed")
	c.ends(t, jobsPath+"/"+r.str("job.uuid"), "failure")
	c.do(t, "GET", softwarePath+"/history", "").is(t, "records.0.state", "canceled")
}

func clusterUpload(t *testing.T) {
	a := startAgent(t, "[slots]\ncount = 2\n")
	c := a.clusterUser(t, "operator")
	image := string(small.Bytes())
	send := func(body, query string) reply {
		t.Helper()
		return c.do(t, "POST", softwarePath+"/upload"+query, body, "Content-Type", "multipart/form-data; boundary=X")
	}
	part := func(field, name, content string) string {
		return fmt.Sprintf("--X\r\nContent-Disposition: form-data; name=%q; filename=%q\r\n\r\n%s\r\n", field, name, content)
	}
	c.do(t, "POST", softwarePath+"/upload", `{}`, "Content-Type", "application/json").refuses(t, 400, "10551808", "")
	send(part("file", "a.iso", image)+part("file", "b.iso", image)+"--X--\r\n", "").refuses(t, 400, "10551807", "")
	send(part("file", strings.Repeat("x", 256), image)+"--X--\r\n", "").refuses(t, 400, "10551799", "")
	send(part("firmware", "a.iso", image)+"--X--\r\n", "").refuses(t, 400, "262177", "")
	send(part("file", "a.iso", image), "").refuses(t, 400, "262177", "")
	clean(t, a.loginAdmin(t), "")
	r := send(part("file", "a.iso", image)+"--X--\r\n", "").want(t, 202)
	c.ends(t, jobsPath+"/"+r.str("job.uuid"), "success").is(t, "description", "POST "+softwarePath+"/upload")
	c.do(t, "GET", packagesPath, "").is(t, "num_records", 1, "records.0.sha256", small.SHA256())
	send(part("file", "again.iso", image)+"--X--\r\n", "?return_timeout=10").want(t, 201) // it is there
	c.do(t, "GET", packagesPath, "").is(t, "num_records", 1)
	second := string(fetchtest.NewImage(14, 300_000).Bytes())
	send(part("file", "c.iso", second)+"--X--\r\n", "").want(t, 202)
	send(part("file", "d.iso", string(fetchtest.NewImage(15, 300_000).Bytes()))+"--X--\r\n", "").refuses(t, 409, "10551859", "")
	full := startAgent(t, "[slots]\nreserve = 9000000000000000\n")
	f := full.clusterUser(t, "operator")
	f.do(t, "POST", softwarePath+"/upload", part("file", "c.iso", second)+"--X--\r\n", "Content-Type", "multipart/form-data; boundary=X").refuses(t, 507, "10551804", "")
}

func clusterNodes(t *testing.T) {
	a := startAgent(t, "")
	c := a.cluster(t, "admin", a.admin)
	c.do(t, "GET", softwarePath+"/history", "").want(t, 200).is(t, "records", []any{}, "num_records", 0)
	host, err := os.Hostname()
	check(t, err)
	box := c.do(t, "GET", clusterPath+"?fields=version", "").want(t, 200).is(t, "name", host, "version.generation", 9, "version.major", 16, "version.minor", 1,
		"management_interfaces.0.ip.address", "127.0.0.1")
	if !strings.HasPrefix(box.str("version.full"), "slotfetch ") || !uuidText.MatchString(box.str("uuid")) {
		t.Error(box.raw)
	}
	c.do(t, "GET", clusterPath+"/nodes?fields=management_interfaces,name", "").want(t, 200).is(t, "num_records", 1, "records.0.name", host, "records.0.uuid", box.str("uuid"))
	c.do(t, "GET", clusterPath+"/nodes?name=nope", "").is(t, "num_records", 0)
	c.do(t, "GET", softwarePath, "").is(t, "version", "unknown", "nodes.0.version", "unknown")
	a.restart(t, syscall.SIGTERM)
	c.do(t, "GET", clusterPath, "").is(t, "uuid", box.str("uuid"))
	other := startAgent(t, "[ontap]\nversion = \"9.8.0\"\n")
	other.cluster(t, "admin", other.admin).do(t, "GET", clusterPath, "").is(t, "version.minor", 0, "version.major", 8)
}

// clusterCodes reaches the codes of a download that the other items do not.
func clusterCodes(t *testing.T) {
	a := startAgent(t, "[ontap]\nread_only = true\n")
	c := a.cluster(t, "admin", a.admin)
	c.do(t, "POST", downloadPath, wish(serveSmall(t))).refuses(t, 403, "10551798", "")
	c.do(t, "POST", softwarePath+"/upload", "", "Content-Type", "multipart/form-data; boundary=X").refuses(t, 403, "10551798", "")

	a = startAgent(t, "[fetch]\ndeadline = \"300ms\"\nretry_rounds = 2\nmax_size = 100000\n")
	c = a.cluster(t, "admin", a.admin)
	end := func(h fetchtest.Handler, code int) {
		t.Helper()
		url := fetchtest.NewHTTP(t, nil).Handle("/x.iso", h)
		c.ends(t, c.job(t, wish(url, "checksum", sha(small))), "failure").is(t, "code", code, "error.code", fmt.Sprint(code))
	}
	end(fetchtest.Mute, 10551383)                      // the deadline
	end(fetchtest.Status(410), 10551885)               //
	end(fetchtest.Status(401), 10551381)               //
	end(fetchtest.Status(500), 10551381)               //
	end(fetchtest.Whole(small).Serve, 10551359)        // too large
	end(fetchtest.Redirect("file:///etc/x"), 10551885) //
	for url, code := range map[string]int{"http://no-such-host.invalid/x": 10551885, "http://169.254.169.254/x": 10551885, "http://127.0.0.1:1/x": 10551381} {
		c.ends(t, c.job(t, wish(url, "checksum", sha(small))), "failure").is(t, "code", code)
	}

	a = startAgent(t, "[slots]\nreserve = 9000000000000000\n")
	c = a.cluster(t, "admin", a.admin)
	end(fetchtest.Whole(small).Serve, 10551892)
}
