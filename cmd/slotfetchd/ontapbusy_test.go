package main_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
)

// This file has what the ONTAP dialect does while something is in its way: a database that is being written, a test that lasts,
// a disk that fails.

// TestOntapQuick: while another writer has the database and a download runs, no GET waits.
func TestOntapQuick(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c, s := a.cluster(t, "admin", a.admin), a.loginAdmin(t)
	c.ends(t, c.job(t, wish(serveSmall(t), "checksum", sha(small))), "success")
	img := fetchtest.NewImage(16, 64<<20)
	server, url := serveStalling(t, img)
	job := c.job(t, wish(url, "checksum", sha(img)))
	x := server.Next(t)
	c.ends(t, job, "running")
	version := c.do(t, "GET", packagesPath, "").str("records.0.version")

	db := a.sqlite(t)
	_, err := db.Exec("BEGIN IMMEDIATE")
	check(t, err)
	x.Release() // it comes in as fast as it can
	for _, path := range []string{clusterPath, clusterPath + "/nodes", softwarePath, softwarePath + "/history", downloadPath, packagesPath,
		packagesPath + "/" + version, jobsPath, job} {
		for who, get := range map[string]func() reply{
			"Basic":   func() reply { return c.do(t, "GET", path, "") },
			"session": func() reply { return s.do(t, "GET", path, "") },
		} {
			best := time.Hour
			for range 10 {
				begun := time.Now()
				get().want(t, 200)
				best = min(best, time.Since(begun))
			}
			if best > 100*time.Millisecond {
				t.Errorf("GET %s with %s takes %s at best", path, who, best)
			}
		}
	}
	// A download that cannot be stored is not begun, and a client that repeats is told so.
	_, other := beside(t, small, nil)
	r := c.do(t, "POST", downloadPath, wish(other, "checksum", sha(fetchtest.NewImage(17, 300_000)))).refuses(t, 503, "10551797", "")
	if r.header.Get("Retry-After") == "" {
		t.Errorf("no Retry-After in %v", r.header)
	}
	_, err = db.Exec("ROLLBACK")
	check(t, err)
	c.ends(t, job, "success")
	c.do(t, "GET", jobsPath, "").is(t, "num_records", 2)
}

// gate is a test hook that holds each test until it is opened.
type gate struct {
	x           *checked
	begun, open string
}

// newGate adds the hook to an agent that lets it take its time.
func newGate(t *testing.T) *gate {
	t.Helper()
	x := newChecked(t, "")
	x.stop(t, syscall.SIGTERM)
	check(t, os.WriteFile(filepath.Join(filepath.Dir(x.config), "conf.d", "zz.toml"), []byte("[upgrade]\ntest_hook_timeout = \"10m\"\n"), 0o644))
	x.start(t)
	dir := filepath.Join(filepath.Dir(x.hooks), "gate")
	check(t, os.Mkdir(dir, 0o777))
	check(t, os.Chmod(dir, 0o777))
	g := &gate{x, filepath.Join(dir, "begun"), filepath.Join(dir, "open")}
	// Without the directory it ends too.
	x.add(t, "10-gate", fmt.Sprintf("touch %q; while [ -d %q ] && ! [ -e %q ]; do sleep 0.01; done", g.begun, dir, g.open), 0o755)
	return g
}

// reached waits until a test is at the gate, and makes ready for the next one.
func (g *gate) reached(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(5 * time.Millisecond) {
		if os.Remove(g.begun) == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal("no test has come to the gate")
		}
	}
}

// TestOntapHeld: what is refused while a package is tested, and that nothing of it is taken for a result.
func TestOntapHeld(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	c := g.x.cluster(t, "admin", g.x.admin)
	version := c.do(t, "GET", packagesPath, "").str("records.0.version")
	body := fmt.Sprintf(`{"version":%q}`, version)
	r := c.do(t, "PATCH", softwarePath+"?validate_only=true&return_timeout=1", body).want(t, 202)
	g.reached(t)
	job := jobsPath + "/" + r.str("job.uuid")
	c.do(t, "GET", job, "").is(t, "state", "running", "code", 0, "error", nil)
	c.do(t, "GET", softwarePath, "").want(t, 200).is(t, "validation_results", nil, "state", "completed")
	c.do(t, "PATCH", softwarePath+"?validate_only=true", body).refuses(t, 409, "10551656", "")
	c.do(t, "PATCH", softwarePath, body).refuses(t, 409, "10551656", "")
	c.do(t, "DELETE", packagesPath+"/"+version, "").refuses(t, 409, "10551346", "")
	check(t, os.WriteFile(g.open, nil, 0o644))
	c.ends(t, job, "success")
	c.do(t, "GET", softwarePath, "").is(t, "validation_results", []any{})
	c.do(t, "DELETE", packagesPath+"/"+version+"?return_timeout=10", "").want(t, 200)
}

// TestOntapInterrupted: a job that nobody ends any more has failed, and an update that was not noted yet is none.
func TestOntapInterrupted(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	c := g.x.cluster(t, "admin", g.x.admin)
	body := fmt.Sprintf(`{"version":%q}`, c.do(t, "GET", packagesPath, "").str("records.0.version"))
	for _, query := range []string{"?validate_only=true", ""} {
		r := c.do(t, "PATCH", softwarePath+query, body).want(t, 202)
		g.reached(t)
		job := jobsPath + "/" + r.str("job.uuid")
		c.do(t, "GET", job, "").is(t, "state", "running")
		g.x.restart(t, syscall.SIGKILL)
		r = c.do(t, "GET", job, "").want(t, 200).is(t, "state", "failure", "code", 10551391, "error.code", "10551391")
		if m := r.str("message"); !strings.Contains(m, "restarted") || r.str("end_time") == "" {
			t.Error(r.raw)
		}
		c.do(t, "GET", softwarePath, "").is(t, "state", "completed", "validation_results", []any{})
		c.do(t, "GET", softwarePath+"/history", "").is(t, "num_records", 0)
	}
	// At a stop that is no crash the caller is told, and the stop is not held up.
	r := make(chan reply, 1)
	go func() {
		answer, err := g.x.c.try("PATCH", softwarePath+"?validate_only=true&return_timeout=120", body)
		if err != nil {
			t.Error(err)
		}
		r <- answer
	}()
	g.reached(t)
	g.x.stop(t, syscall.SIGTERM)
	if answer := <-r; answer.code != 202 && answer.code != 503 {
		t.Errorf("%d: %s", answer.code, answer.raw)
	}
	g.x.start(t)
}

// TestOntapStop: who waits for a download when the agent stops is told that it goes on.
func TestOntapStop(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c, s := a.cluster(t, "admin", a.admin), a.loginAdmin(t)
	img := fetchtest.NewImage(18, 600_000)
	server, url := serveStalling(t, img)
	r := make(chan reply, 1)
	go func() {
		answer, err := s.try("POST", downloadPath+"?return_timeout=120", wish(url, "checksum", sha(img)))
		if err != nil {
			t.Error(err)
		}
		r <- answer
	}()
	server.Next(t)
	a.stop(t, syscall.SIGTERM)
	answer := <-r
	answer.want(t, 202)
	a.start(t)
	server.Next(t).Release()
	c.ends(t, jobsPath+"/"+answer.str("job.uuid"), "success")
}

// TestOntapUploadFails: an image that cannot be put into its slot makes a job that failed.
func TestOntapUploadFails(t *testing.T) {
	t.Parallel()
	for _, timeout := range []string{"", "?return_timeout=5"} {
		a := startAgent(t, "[slots]\ncount = 1\n")
		c := a.cluster(t, "admin", a.admin)
		r, w := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), "POST", a.base+softwarePath+"/upload"+timeout, r)
		check(t, err)
		req.Header.Set("Authorization", c.auth)
		req.Header.Set("Content-Type", "multipart/form-data; boundary=X")
		sent := make(chan error, 1)
		go func() {
			_, err := io.WriteString(w, "--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.iso\"\r\n\r\n"+string(small.Bytes()))
			for end := time.Now().Add(fetchtest.Patience); err == nil && len(a.partials(t)) == 0; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					err = errors.New("no upload has begun")
				}
			}
			// The slot is chosen; now there is something in its place.
			err = errors.Join(err, os.WriteFile(filepath.Join(a.state, "slots", "1"), nil, 0o600))
			_, werr := io.WriteString(w, "\r\n--X--\r\n")
			sent <- errors.Join(err, werr, w.Close())
		}()
		resp, err := c.http.Do(req)
		check(t, err)
		text, err := io.ReadAll(resp.Body)
		check(t, errors.Join(err, resp.Body.Close(), <-sent))
		if timeout != "" && (resp.StatusCode != 500 || !strings.Contains(string(text), `"code":"10551800"`)) || timeout == "" && resp.StatusCode != 202 {
			t.Errorf("%d: %s", resp.StatusCode, text)
		}
		c.do(t, "GET", jobsPath, "").is(t, "num_records", 1, "records.0.state", "failure", "records.0.code", 10551800, "records.0.error.code", "10551800",
			"records.0.description", "POST "+softwarePath+"/upload")
		if p := a.partials(t); len(p) > 0 {
			t.Errorf("left: %v", p)
		}
	}
}

// TestOntapRotten: an image that a validation has found to be bad is brought again by the same download, and then the good one
// has the name.
func TestOntapRotten(t *testing.T) {
	t.Parallel()
	x := newBox(t, "", nil)
	c := x.cluster(t, "admin", x.admin)
	version := c.do(t, "GET", packagesPath, "").is(t, "num_records", 1, "records.0.slot_id", 2).str("records.0.version")
	damage(t, x.agent, 2)
	c.do(t, "PATCH", softwarePath+"?validate_only=true&return_timeout=60", fmt.Sprintf(`{"version":%q}`, version)).refuses(t, 409, "10551396", "")
	img := fetchtest.NewImage(uint64(other+1), 300_000) // what newBox has put there
	url := fetchtest.NewHTTP(t, nil).Handle("/"+version+".iso", fetchtest.Whole(img).Serve)
	c.ends(t, c.job(t, wish(url, "checksum", sha(img))), "success").is(t, "message", "success")
	c.do(t, "GET", packagesPath+"/"+version, "").want(t, 200).is(t, "slot_id", 3)
	c.do(t, "GET", packagesPath+"/"+version+"+slot2", "").want(t, 200).is(t, "slot_id", 2)
	c.do(t, "PATCH", softwarePath+"?validate_only=true&return_timeout=60", fmt.Sprintf(`{"version":%q}`, version)).want(t, 200)
}
