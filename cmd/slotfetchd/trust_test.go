package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"slotfetch/fetch/fetchtest"
)

// minisign runs the real program in dir.
func minisign(t *testing.T, dir string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("minisign"); err != nil {
		t.Skip("NOT TESTED: signatures, for minisign is not installed (package minisign)")
	}
	cmd := exec.Command("minisign", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("minisign %v: %v\n%s", args, err, out)
	}
}

// A box that takes signed images only: what it asks of a request, what it finds beside an image, what it shows.
func TestTrust(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	minisign(t, dir, "-G", "-W", "-p", "k.pub", "-s", "k.sec")
	a := startAgent(t, fmt.Sprintf("[trust]\nkeys = [%q]\nrequire = true\nproduct = \"sps\"\n", filepath.Join(dir, "k.pub")))
	c := a.loginAdmin(t)
	source := fetchtest.NewHTTP(t, nil)
	url := source.Handle("/a.iso", fetchtest.Whole(small).Serve)
	manifest := fmt.Sprintf(`{"product":"sps","version":"7.0.5","size":%d,"sha256":%q,"min_version":"7.0"}`, small.Size(), small.SHA256())
	check(t, os.WriteFile(filepath.Join(dir, "m"), []byte(manifest), 0o600))
	minisign(t, dir, "-S", "-s", "k.sec", "-m", "m")
	minisig, err := os.ReadFile(filepath.Join(dir, "m.minisig"))
	check(t, err)
	with := func(manifest, minisig any) string {
		text, err := json.Marshal(map[string]any{"url": url, "signature": map[string]any{"manifest": manifest, "minisig": minisig}})
		check(t, err)
		return string(text)
	}

	c.do(t, "POST", fetches, with(manifest, 1)).fails(t, 400, "SemanticError", "signature.minisig")
	c.do(t, "POST", fetches, with(manifest, nil)).fails(t, 400, "IncompleteRequestBodyError", "signature.minisig")
	c.do(t, "POST", fetches, with(strings.Repeat("x", 70_000), "x")).fails(t, 400, "SemanticError", "signature.manifest")
	c.do(t, "POST", fetches, `{"url":"`+url+`","signature":true}`).fails(t, 400, "SemanticError", "signature")
	c.do(t, "POST", fetches, `{"url":"`+url+`","cheksum":{}}`).fails(t, 400, "IncompleteRequestBodyError", "checksum")
	both := strings.Replace(with(manifest, string(minisig)), `{`, `{"slot_id":5,"checksum":{"sha512":""},`, 1)
	c.awaitStatus(t, c.do(t, "POST", fetches, both).want(t, 202).str("meta.href"), "finished").is(t, "body.slot_id", 5)
	c.do(t, "DELETE", slotsPath+"/5", "").want(t, 200)
	c.do(t, "POST", fetches, strings.Replace(both, "sha512", "SHA256", 1)).fails(t, 400, "IncompleteRequestBodyError", "checksum.sha256")
	c.awaitStatus(t, c.fetch(t, url, small.SHA256()), "failed").is(t, "body.error_details.code", "signature_missing")
	bad := c.do(t, "POST", fetches, with(manifest+" ", string(minisig))).want(t, 202).str("meta.href")
	c.awaitStatus(t, bad, "failed").is(t, "body.error_details.code", "signature_bad", "body.sha256", nil)
	good := c.do(t, "POST", fetches, with(manifest, string(minisig))).want(t, 202).str("meta.href")
	c.awaitStatus(t, good, "finished").is(t, "body.sha256", small.SHA256(), "body.slot_id", 1)
	pub, err := os.ReadFile(filepath.Join(dir, "k.pub"))
	check(t, err)
	r := c.do(t, "GET", slotsPath+"/1", "").is(t, "body.version", "7.0.5", "body.product", "sps", "body.min_version", "7.0")
	if id := r.str("body.signed_by"); id == "" || !strings.Contains(string(pub), id) {
		t.Errorf("signed by %q, the key is %q", id, pub)
	}

	serve := func(path, text string) {
		source.Handle(path, func(x *fetchtest.Exchange) {
			x.Printf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
		})
	}
	serve("/a.iso.manifest.json", manifest)
	serve("/a.iso.manifest.json.minisig", string(minisig))
	c.awaitStatus(t, c.fetch(t, url, small.SHA256()), "finished").is(t, "body.slot_id", 2)
	dry := c.do(t, "POST", fetches+"?dry_run=true", `{"url":"`+url+`","force":true}`).want(t, 200)
	if dry.str("body.checks.0.name") != "signature" || dry.str("body.checks.0.result") != "ok" {
		t.Error(dry.raw)
	}

	// The key is withdrawn: what it has signed is here, and can neither be activated nor stand for an image.
	c.do(t, "POST", testPath, `{"slot_id":1}`).want(t, 200)
	minisign(t, dir, "-G", "-f", "-W", "-p", "k.pub", "-s", "k.sec")
	a.restart(t, syscall.SIGTERM)
	c = a.loginAdmin(t)
	for _, path := range []string{testPath, upgradePath} {
		r := c.do(t, "POST", path, `{"slot_id":1}`).fails(t, 400, "FirmwareTestFailed", "")
		if !strings.Contains(r.str("error.details.test_summary"), "Signature: FAILED (by ") {
			t.Errorf("%s: %s", path, r.raw)
		}
	}
}

// The configuration says what is wrong with a key.
func TestTrustConfig(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]string{`trust.keys=["hello"]`: "entry 1", `trust.keys=["/nowhere/k.pub"]`: "cannot read /nowhere/k.pub", `trust.require=true`: "at least one key",
		`slots.evict=newest`: "slots.evict", `slots.scrub_rate=1`: "slots.scrub_rate", `fetch.keep_count=-1`: "fetch.keep_count", `slots.scrub_interval=x`: "no duration"} {
		a := newAgent(t, "")
		out, err := a.command("config", "check", "--set", set).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, %s", set, err, out)
		}
	}
}
