package main_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

const uploadPath = "/api/upload/firmware"

// send begins an upload on a connection of its own; header is whole lines. What comes back is read with answer.
func (c *client) send(t *testing.T, query string, header ...string) *uploading {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(c.a.base, "https://"), &tls.Config{InsecureSkipVerify: true}) // the certificate is self-made
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	check(t, conn.SetDeadline(time.Now().Add(fetchtest.Patience)))
	u := &uploading{conn: conn, in: bufio.NewReader(conn)}
	u.request, err = http.NewRequest("POST", c.a.base+uploadPath+query, nil)
	check(t, err)
	u.write(t, fmt.Sprintf("POST %s%s HTTP/1.1\r\nHost: %s\r\nCookie: %s\r\n%s\r\n\r\n", uploadPath, query, u.request.URL.Host, c.cookie, strings.Join(header, "\r\n")))
	return u
}

type uploading struct {
	conn    *tls.Conn
	in      *bufio.Reader
	request *http.Request
}

func (u *uploading) write(t *testing.T, s string) {
	t.Helper()
	_, err := io.WriteString(u.conn, s)
	check(t, err)
}

// answer is the final one; the line 100 Continue must have come, or not.
func (u *uploading) answer(t *testing.T, continued bool) reply {
	t.Helper()
	got := false
	resp, err := http.ReadResponse(u.in, u.request)
	for err == nil && resp.StatusCode == 100 {
		got = true
		resp, err = http.ReadResponse(u.in, u.request)
	}
	check(t, err)
	defer resp.Body.Close()
	if got != continued {
		t.Errorf("100 Continue: %v", got)
	}
	raw, err := io.ReadAll(resp.Body)
	check(t, err)
	if resp.Close { // which takes it out of the header
		resp.Header.Set("Connection", "close")
	}
	a := reply{what: "upload", code: resp.StatusCode, header: resp.Header, raw: string(raw)}
	if err := conforms(u.request, "", a.code, a.header, a.raw); err != nil {
		t.Errorf("not as described: %v: %d %s", err, a.code, a.raw)
	}
	check(t, json.Unmarshal(raw, &a.json))
	return a
}

// form is an image in a multipart body.
func form(boundary, header, image string) string {
	return "--" + boundary + "\r\n" + header + "\r\n\r\n" + image + "\r\n--" + boundary + "--\r\n"
}

func length(s string) string { return "Content-Length: " + strconv.Itoa(len(s)) }

func sum(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

// audited is the newest event of that action.
func (a *agent) audited(t *testing.T, action string) (event string) {
	t.Helper()
	check(t, a.sqlite(t).QueryRow(`SELECT actor || ' ' || object || ' ' || detail FROM events WHERE action = ? ORDER BY id DESC LIMIT 1`, action).Scan(&event))
	return event
}

// upload sends a raw body and wants it in a slot.
func (c *client) upload(t *testing.T, query, image string, header ...string) reply {
	t.Helper()
	u := c.send(t, query, append(header, length(image))...)
	u.write(t, image)
	return u.answer(t, false)
}

// clean wants no partial, and only these slots occupied.
func clean(t *testing.T, c *client, slots string) {
	t.Helper()
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(5 * time.Millisecond) {
		partials := c.a.partials(t)
		if len(partials) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Errorf("left behind: %v", partials)
			break
		}
	}
	if got := occupied(t, c); got != slots {
		t.Errorf("occupied slots: %q, want %q", got, slots)
	}
}

// uploadEncodings sends what curl, safeguard-ps, the .NET and the Java client of the vendor send.
func uploadEncodings(t *testing.T) {
	a := startAgent(t, "")
	c := a.user(t, "operator")
	image := string(small.Bytes()) + "\r\n\r\n"
	curl := form("------------------------d74496d66958873e", `Content-Disposition: form-data; name="firmware"; filename="sps-7.4.0.iso"`+"\r\nContent-Type: application/octet-stream", image)
	java := form("lqOC6kF-4_kVX0B1WQYgVAGDv1yJdSy9uhA1", `Content-Disposition: form-data; name="firmware"; filename="sps-7.4.0.iso"`+"\r\nContent-Type: multipart/form-data", image)
	for i, e := range []struct {
		name      string
		header    []string
		body      string
		continues bool
		version   string
		source    string
	}{
		{"curl -F firmware=@FILE", []string{"User-Agent: curl/7.88.1", "Accept: */*", "Expect: 100-continue",
			"Content-Type: multipart/form-data; boundary=------------------------d74496d66958873e", length(curl)}, curl, true, "sps-7.4.0", "upload:sps-7.4.0.iso"},
		{"safeguard-ps", []string{"User-Agent: PowerShell/6.0.0", "Accept: application/json", "Content-Type: application/x-iso9660-image", length(image)}, image, false, "unknown", "upload"},
		{".NET", []string{"Accept: application/octet-stream", "Content-Type: application/octet-stream", "Transfer-Encoding: chunked"},
			fmt.Sprintf("%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", 100_000, image[:100_000], len(image)-100_000, image[100_000:]), false, "unknown", "upload"},
		{"Java, a file", []string{"Accept: application/json", "Content-Type: application/json", "User-Agent: Apache-HttpClient/5.1.3 (Java/11.0.18)", length(java)},
			java, false, "sps-7.4.0", "upload:sps-7.4.0.iso"},
	} {
		u := c.send(t, "", e.header...)
		if e.continues {
			line, err := u.in.ReadString('\n')
			check(t, err)
			if line != "HTTP/1.1 100 Continue\r\n" {
				t.Fatalf("%s: %q", e.name, line)
			}
			_, err = u.in.Discard(2)
			check(t, err)
		}
		u.write(t, e.body)
		slot := strconv.Itoa(i + 1)
		r := u.answer(t, false).want(t, 200).is(t, "key", slot, "body.sha256", sum(image), "body.size", len(image), "body.version", e.version,
			"body.source", e.source, "body.current", false, "meta", map[string]any{"href": uploadPath, "slot": slotsPath + "/" + slot,
				"test": "/api/firmware/test", "upgrade": "/api/firmware/upgrade", "number_of_empty_slots": float64(4 - i)})
		data, err := os.ReadFile(filepath.Join(a.state, "slots", slot, "image"))
		check(t, err)
		if string(data) != image {
			t.Errorf("%s: %d bytes in the slot, want %d", e.name, len(data), len(image))
		}
		c.do(t, "GET", slotsPath+"/"+slot, "").want(t, 200).is(t, "body", r.get("body"))
	}
	c.upload(t, "", image).want(t, 200)
	clean(t, c, "1 2 3 4 5")

	// Full: neither is the body read nor the client asked for it.
	for _, header := range [][]string{{"Expect: 100-continue", "Content-Length: 1000000000"}, {"Expect: 100-continue", "Transfer-Encoding: chunked"},
		{"Content-Length: 1000000000"}, {"Content-Length: 0"}} {
		c.send(t, "", header...).answer(t, false).fails(t, 409, "Conflict", "").is(t, "error.details.state", "full")
	}
	if got := strings.Count(a.log.String(), "msg=\"upload finished\""); got != 5 || len(c.do(t, "GET", fetches, "").get("items").([]any)) != 0 {
		t.Errorf("%d uploads in the log", got)
	}
	if event := a.audited(t, "slot.upload"); event != fmt.Sprintf("operator1 5 sha256=%s size=%d", sum(image), len(image)) {
		t.Errorf("audit: %q", event)
	}
}

// TestUploadRules: who may, into which slot, with which digest; and that nothing is left of what is refused.
func TestUploadRules(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "[fetch]\nmax_size = 1000000\n")
	c, viewer, stranger := a.loginAdmin(t), a.user(t, "viewer"), a.stranger(t)
	image := string(small.Bytes())
	stranger.send(t, "", "Expect: 100-continue", length(image)).answer(t, false).fails(t, 401, "Unauthenticated", "")
	viewer.send(t, "", "Expect: 100-continue", length(image)).answer(t, false).fails(t, 403, "Unauthorized", "")
	for query, field := range map[string]string{"?sha256=12": "sha256", "?sha256=": "sha256", "?sha512=" + sum(""): "sha512", "?slot_id=6": "slot_id", "?slot_id=01": "slot_id",
		"?slot_id=": "slot_id", "?slot_id=2&slot_id=3": "slot_id", "?sha256=" + sum("") + ";": "query"} {
		c.send(t, query, "Expect: 100-continue", length(image)).answer(t, false).fails(t, 400, "SemanticError", field)
	}
	c.send(t, "", "Expect: 100-continue", "Content-Encoding: gzip", length(image)).answer(t, false).fails(t, 400, "SemanticError", "Content-Encoding")
	c.send(t, "", "Content-Length: 0").answer(t, false).fails(t, 400, "IncompleteRequestBodyError", "firmware")
	c.send(t, "").answer(t, false).fails(t, 400, "IncompleteRequestBodyError", "firmware")
	c.upload(t, "", "{}", "Content-Type: application/json").fails(t, 400, "IncompleteRequestBodyError", "firmware")
	c.send(t, "", "Expect: 100-continue", "Content-Length: 3000000").answer(t, false).fails(t, 413, "RequestTooLarge", "").is(t, "error.details.limit", 1000000)
	u := c.send(t, "", "Transfer-Encoding: chunked")
	u.write(t, fmt.Sprintf("%x\r\n%s\r\n", 1_000_001, strings.Repeat("a", 1_000_001)))
	u.answer(t, false).fails(t, 413, "RequestTooLarge", "")
	clean(t, c, "")

	// Digests.
	wrong := sum("another")
	c.upload(t, "?sha256="+wrong, image).fails(t, 400, "SemanticError", "sha256").is(t, "error.details.expected", wrong, "error.details.got", small.SHA256(),
		"error.message", fmt.Sprintf("SHA-256 mismatch: expected %s, got %s. The file was discarded.", wrong, small.SHA256()))
	good512 := fmt.Sprintf("%x", sha512.Sum512([]byte(image)))
	c.upload(t, "?sha512="+strings.Repeat("0", 128), image).fails(t, 400, "SemanticError", "sha512").is(t, "error.details.got", good512)
	clean(t, c, "")
	c.upload(t, "?slot_id=4&odd=1&sha512="+good512+"&sha256="+strings.ToUpper(small.SHA256()), image, `Content-Disposition: attachment; filename="/tmp/fw-1.2.iso"`).
		want(t, 200).is(t, "key", "4", "body.version", "fw-1.2", "body.source", "upload:fw-1.2.iso")
	c.send(t, "?slot_id=4", "Expect: 100-continue", length(image)).answer(t, false).fails(t, 409, "Conflict", "").is(t, "error.details", map[string]any{"slot_id": 4.0, "state": "occupied"})
	check(t, os.WriteFile(filepath.Join(a.state, "slots", "boot.json"), []byte(`{"current":1}`), 0o600))
	c.send(t, "?slot_id=1", "Expect: 100-continue", length(image)).answer(t, false).fails(t, 409, "Conflict", "").is(t, "error.details.state", "protected")
	c.upload(t, "", image).want(t, 200).is(t, "key", "2")
	check(t, os.WriteFile(filepath.Join(a.state, "slots", "boot.json"), []byte(`{`), 0o600))
	c.send(t, "", "Expect: 100-continue", length(image)).answer(t, false).fails(t, 503, "ServiceUnavailable", "")
	check(t, os.Remove(filepath.Join(a.state, "slots", "boot.json")))
	clean(t, c, "2 4")
	if s := c.samples(t); s["slotfetch_uploads_total{outcome=finished}"] != 2 || s["slotfetch_uploads_total{outcome=failed}"] < 3 ||
		s["slotfetch_uploads{}"] != 0 || s["slotfetch_uploaded_bytes_total{}"] < 2*float64(small.Size()) {
		t.Errorf("%v", s)
	}

	// Space, which is not to be had.
	restricted(t, a, "[slots]\nreserve = 9000000000000000000\n")
	for _, header := range []string{"Content-Length: 900000", "Transfer-Encoding: chunked"} {
		u := c.send(t, "", header)
		if header == "Transfer-Encoding: chunked" {
			u.write(t, fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", 900_000, strings.Repeat("a", 900_000)))
		}
		r := u.answer(t, false).fails(t, 507, "InsufficientStorage", "").is(t, "error.details.free", 0)
		if n, _ := r.get("error.details.needed").(float64); n != 900_000 {
			t.Errorf("%s: needed %v", header, n)
		}
	}
	restricted(t, a, "[slots]\nrequire_iso = true\n")
	c.upload(t, "", image).fails(t, 400, "SemanticError", "firmware")
	clean(t, c, "2 4")
}

// restricted starts the agent again with another drop-in.
func restricted(t *testing.T, a *agent, extra string) {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(filepath.Dir(a.config), "conf.d", "extra.toml"), []byte(extra), 0o600))
	a.restart(t, syscall.SIGTERM)
}

// TestUploadCut: a body that does not come whole leaves nothing, however it ends.
func TestUploadCut(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	image := string(fetchtest.NewImage(3, 3_000_000).Bytes())
	const kind = "Content-Type: multipart/form-data; boundary=X"
	whole := form("X", `Content-Disposition: form-data; name="firmware"`, image)
	for name, body := range map[string]string{
		"no last boundary":  strings.TrimSuffix(whole, "\r\n--X--\r\n"),
		"half a boundary":   strings.TrimSuffix(whole, "--\r\n"),
		"no image":          form("X", `Content-Disposition: form-data; name="firmware"`, ""),
		"no such part":      form("X", `Content-Disposition: form-data; name="file"`, "z"),
		"no part":           "--X--\r\n",
		"more behind":       whole + whole,
		"boundary in image": form("X", `Content-Disposition: form-data; name="firmware"`, image+"\r\n--X--\r\n"+image),
	} {
		u := c.send(t, "", kind, length(body))
		go io.WriteString(u.conn, body) // which may not be read to its end
		if r := u.answer(t, false).fails(t, 400, "IncompleteRequestBodyError", "firmware"); r.header.Get("Connection") != "close" {
			t.Errorf("%s: %v", name, r.header)
		}
		clean(t, c, "")
	}
	// The length lies, and the connection is cut.
	long := "Content-Length: " + strconv.Itoa(len(whole)+1000)
	for _, header := range [][]string{{kind, long}, {long}, {"Transfer-Encoding: chunked"}} {
		u := c.send(t, "", header...)
		if len(header) == 1 && header[0] != long {
			u.write(t, fmt.Sprintf("%x\r\n", len(whole)+1000))
		}
		u.write(t, whole)
		c.awaitPartials(t, 1)
		check(t, u.conn.NetConn().Close())
		clean(t, c, "")
	}
	// Both ways at once: the client says that there is no more, and still listens.
	u := c.send(t, "", kind, long)
	u.write(t, whole)
	check(t, u.conn.CloseWrite())
	u.answer(t, false).fails(t, 400, "IncompleteRequestBodyError", "firmware")
	// A length that is too short cuts the last boundary off.
	u = c.send(t, "", kind, "Content-Length: "+strconv.Itoa(len(whole)-5))
	u.write(t, whole)
	u.answer(t, false).fails(t, 400, "IncompleteRequestBodyError", "firmware")
	clean(t, c, "")
	// What was there before does not matter for the next.
	u = c.send(t, "", kind, length(whole))
	u.write(t, whole)
	u.answer(t, false).want(t, 200).is(t, "body.sha256", sum(image))
	clean(t, c, "1")
}

// TestUploadsAtATime: two go on, a third is told to come back; each has a slot of its own, and a fetch takes neither.
func TestUploadsAtATime(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "[slots]\ncount = 3\n")
	c := a.loginAdmin(t)
	image := string(small.Bytes())
	begun := make([]*uploading, 2)
	for i := range begun {
		begun[i] = c.send(t, "", length(image))
		begun[i].write(t, image[:100_000])
		c.awaitPartials(t, i+1)
	}
	third := c.send(t, "", "Expect: 100-continue", length(image)).answer(t, false).fails(t, 503, "ServiceUnavailable", "")
	if third.header.Get("Retry-After") == "" {
		t.Errorf("%v", third.header)
	}
	for _, slot := range []string{"1", "2"} { // reserved, and empty for all to see
		c.do(t, "GET", slotsPath+"/"+slot, "").want(t, 200).is(t, "body", map[string]any{})
		c.do(t, "DELETE", slotsPath+"/"+slot, "").fails(t, 409, "Conflict", "").is(t, "error.details.state", "reserved")
	}
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished").is(t, "body.slot_id", 3)
	if s := c.samples(t); s["slotfetch_uploads{}"] != 2 {
		t.Errorf("%v uploads under way", s["slotfetch_uploads{}"])
	}
	// Full, since the two have the rest.
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "failed").is(t, "body.error_details.code", "no_slot")
	for i, u := range begun {
		u.write(t, image[100_000:])
		u.answer(t, false).want(t, 200).is(t, "key", strconv.Itoa(i+1), "meta.number_of_empty_slots", 1-i)
	}
	c.send(t, "", "Expect: 100-continue", length(image)).answer(t, false).fails(t, 409, "Conflict", "")
}

// awaitPartials waits until there are so many.
func (c *client) awaitPartials(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(fetchtest.Patience); len(c.a.partials(t)) != n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("partials: %v, want %d", c.a.partials(t), n)
		}
	}
}

// TestUploadRaces: of all who want the last empty slot one gets it, and none is left half way. In one round of three the
// fetch is ahead.
func TestUploadRaces(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "[slots]\ncount = 2\n")
	c := a.loginAdmin(t)
	c.upload(t, "", "first").want(t, 200)
	source := serveSmall(t)
	winners := map[string]int{}
	for round := range 12 {
		var group sync.WaitGroup
		codes := make([]int, 2)
		job := ""
		if round%3 == 0 {
			job = c.fetch(t, source, small.SHA256())
		}
		if round%6 == 0 {
			c.await(t, job, "its start", func(r reply) bool { return r.str("body.status") != "queued" })
		}
		for i := range codes {
			u := c.send(t, "", length(string(small.Bytes())))
			group.Go(func() {
				_, _ = io.Copy(u.conn, small.Reader()) // refused, it may break off
				resp, err := http.ReadResponse(u.in, u.request)
				if err == nil {
					codes[i] = resp.StatusCode
				}
			})
		}
		if job == "" {
			job = c.fetch(t, source, small.SHA256())
		}
		group.Wait()
		end := c.await(t, job, "its end", func(r reply) bool { return r.get("body.end_time") != nil })
		won := 0
		for _, code := range codes {
			if code == 200 {
				won++
				winners["upload"]++
			}
		}
		if end.str("body.status") == "finished" {
			won++
			winners["fetch"]++
		}
		if won != 1 {
			t.Fatalf("%d got the slot: %v, %s", won, codes, end.raw)
		}
		clean(t, c, "1 2")
		c.do(t, "GET", slotsPath+"/2", "").is(t, "body.sha256", small.SHA256())
		c.do(t, "DELETE", slotsPath+"/2", "").want(t, 200)
	}
	t.Logf("won: %v", winners)
	if winners["upload"] == 0 || winners["fetch"] == 0 {
		t.Error("one of them never wins")
	}
	// Deleting while it comes, and as soon as it is there.
	u := c.send(t, "", length(string(small.Bytes())))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(u.conn, small.Reader())
	}()
	deleted := false
	for end := time.Now().Add(fetchtest.Patience); !deleted && time.Now().Before(end); {
		r := c.do(t, "DELETE", slotsPath+"/2", "")
		deleted = r.code == 200
		if !deleted && r.code != 409 && r.code != 404 {
			t.Fatalf("%d %s", r.code, r.raw)
		}
	}
	<-done
	u.answer(t, false).want(t, 200).is(t, "key", "2", "body.sha256", small.SHA256())
	clean(t, c, "1")
}

// TestUploadStops: the agent does not wait for uploads, and keeps nothing of them.
func TestUploadStops(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c := a.loginAdmin(t)
	image := string(small.Bytes())
	begin := func() *uploading {
		u := c.send(t, "", length(image))
		u.write(t, image[:200_000])
		c.awaitPartials(t, 1)
		return u
	}
	u := begin()
	check(t, a.cmd.Process.Signal(syscall.SIGTERM))
	u.answer(t, false).fails(t, 503, "ServiceUnavailable", "")
	a.stop(t, syscall.SIGTERM)
	if left := a.partials(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	a.start(t)
	begin()
	a.stop(t, syscall.SIGKILL)
	if left := a.partials(t); len(left) != 1 {
		t.Errorf("%v", left)
	}
	a.start(t)
	clean(t, c, "")
	c.upload(t, "", image).want(t, 200).is(t, "key", "1")
}

// TestUploadByCurl: the real curl, which waits for the 100 Continue.
func TestUploadByCurl(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("no curl")
	}
	a := startAgent(t, "[slots]\ncount = 3\n")
	c := a.loginAdmin(t)
	img := fetchtest.NewImage(5, 5_000_000)
	file := img.WriteFile(t, t.TempDir(), "sps 7.iso", time.Now())
	for i, args := range [][]string{{"-F", "firmware=@" + file}, {"--http1.1", "-F", "firmware=@" + file}, {"-X", "POST", "-T", file, "-H", "Transfer-Encoding: chunked", "--http1.1"}} {
		ctx, stop := context.WithTimeout(t.Context(), fetchtest.Patience)
		defer stop()
		u := a.base + uploadPath + "?" + url.Values{"sha256": {img.SHA256()}}.Encode()
		out, err := exec.CommandContext(ctx, "curl", append([]string{"-sSk", "--fail-with-body", "-b", c.cookie, u}, args...)...).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte(img.SHA256())) {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		clean(t, c, strings.TrimSpace("1 2 3"[:2*i+1]))
	}
}

// TestUploadMemory: a large image takes no more memory than a small one, and the answer comes soon after the last byte. The
// race detector has memory of its own, so the program is built without.
func TestUploadMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("large")
	}
	a := newAgent(t, "")
	a.program = filepath.Join(t.TempDir(), "slotfetchd")
	if out, err := exec.Command("go", "build", "-o", a.program, ".").CombinedOutput(); err != nil {
		t.Fatalf("cannot build slotfetchd: %v\n%s", err, out)
	}
	a.first(t)
	c := a.loginAdmin(t)
	img := fetchtest.NewImage(7, 300<<20)
	head := "--X\r\nContent-Disposition: form-data; name=\"firmware\"; filename=\"a.iso\"\r\n\r\n"
	const tail = "\r\n--X--\r\n"
	u := c.send(t, "?sha256="+img.SHA256(), "Content-Type: application/json", fmt.Sprint("Content-Length: ", int64(len(head)+len(tail))+img.Size()))
	check(t, u.conn.SetDeadline(time.Now().Add(5*time.Minute)))
	began := time.Now()
	_, err := io.Copy(u.conn, io.MultiReader(strings.NewReader(head), img.Reader(), strings.NewReader(tail)))
	check(t, err)
	sent := time.Now()
	u.answer(t, false).want(t, 200).is(t, "body.size", img.Size())
	const most = 40 << 20
	peak := a.peak(t)
	t.Logf("peak %d KiB, %s for %d bytes, answer after %s", peak>>10, sent.Sub(began).Round(time.Millisecond), img.Size(), time.Since(sent).Round(time.Millisecond))
	if peak > most {
		t.Errorf("the agent took %d bytes of memory, more than %d", peak, most)
	}
	if late := time.Since(sent); late > 100*time.Second {
		t.Errorf("the answer took %s", late)
	}
}
