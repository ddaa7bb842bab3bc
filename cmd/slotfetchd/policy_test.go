package main_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// makeISO makes a real ISO 9660 image with this text as /slotfetch.json, and gives its SHA-256.
func makeISO(t *testing.T, file, manifest string) string {
	t.Helper()
	if _, err := exec.LookPath("xorriso"); err != nil {
		t.Skip("NOT TESTED: manifests in images, for xorriso is not installed (package xorriso)")
	}
	tree := t.TempDir()
	check(t, os.WriteFile(filepath.Join(tree, "slotfetch.json"), []byte(manifest), 0o644))
	check(t, os.WriteFile(filepath.Join(tree, "kernel"), make([]byte, 100_000), 0o644))
	out, err := exec.CommandContext(t.Context(), "xorriso", "-as", "mkisofs", "-quiet", "-V", "FIRMWARE", "-R", "-o", file, tree).CombinedOutput()
	if err != nil {
		t.Fatalf("xorriso: %v\n%s", err, out)
	}
	image, err := os.ReadFile(file)
	check(t, err)
	return fmt.Sprintf("%x", sha256.Sum256(image))
}

// What an image says of itself is taken, shown, and held against the configuration when somebody wants to activate it, but
// not before.
func TestUpgradePolicy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	minisign(t, dir, "-G", "-W", "-p", "k.pub", "-s", "k.sec")
	b, config := newBoots(t, nil)
	a := startAgent(t, config+fmt.Sprintf(`[slots]
manifest_file = "/slotfetch.json"
count = 9
[fetch]
file_roots = [%q]
[upgrade]
products = ["sps", "sps-*"]
versions = ["7.*"]
[trust]
keys = [%q]
`, dir, filepath.Join(dir, "k.pub")))
	x := &box{a, b, a.loginAdmin(t)}
	add := func(slot int, manifest string, more ...any) {
		t.Helper()
		file := filepath.Join(dir, fmt.Sprintf("%d.iso", slot))
		sum := makeISO(t, file, manifest)
		x.c.awaitStatus(t, x.c.fetch(t, "file://"+file, sum, append(more, "slot_id", slot)...), "finished")
	}
	add(1, `{"product":"sps","version":"7.0.5","min_version":"7.0.0"}`)
	x.c.do(t, "GET", slotsPath+"/1", "").want(t, 200).is(t, "body.product", "sps", "body.version", "7.0.5", "body.min_version", "7.0.0", "body.upgrade_from", "",
		"body.signed_by", "", "body.state", "ok")
	x.reboot(t, 1)
	add(2, `{"product":"sps-large","version":"7.4.0","upgrade_from":"7.0.0","news":{"en":"faster"}}`)
	add(3, `{"product":"spp","version":"7.4.0"}`)
	add(4, `{"product":"sps","version":"8.0.0"}`)
	add(5, `{"product":"sps","version":"7.9.0","upgrade_from":"7.4.0"}`)
	add(6, `{"product":["sps"],"version":"7.9.0"}`)
	add(7, `{}`)
	x.c.do(t, "GET", slotsPath+"/6", "").want(t, 200).is(t, "body.product", "", "body.version", "FIRMWARE")
	x.c.do(t, "GET", slotsPath+"/5", "").want(t, 200).is(t, "body.upgrade_from", "7.4.0")

	// A signed manifest beside the image that says something else.
	file := filepath.Join(dir, "8.iso")
	sum := makeISO(t, file, `{"product":"sps","version":"7.5.0"}`)
	info, err := os.Stat(file)
	check(t, err)
	signed := fmt.Sprintf(`{"product":"sps","version":"7.5.1","size":%d,"sha256":%q,"upgrade_from":"7.0.5"}`, info.Size(), sum)
	check(t, os.WriteFile(filepath.Join(dir, "m"), []byte(signed), 0o600))
	minisign(t, dir, "-S", "-s", "k.sec", "-m", "m")
	minisig, err := os.ReadFile(filepath.Join(dir, "m.minisig"))
	check(t, err)
	x.c.awaitStatus(t, x.c.fetch(t, "file://"+file, sum, "slot_id", 8, "signature", map[string]any{"manifest": signed, "minisig": string(minisig)}), "finished")
	x.c.do(t, "GET", slotsPath+"/8", "").want(t, 200).is(t, "body.version", "7.5.1", "body.upgrade_from", "7.0.5", "body.product", "sps")

	for slot, want := range map[int]string{
		3: "Product: FAILED (upgrade.products permits sps, sps-*, and this is spp)",
		4: "Version: FAILED (upgrade.versions permits 7.*, and this is 8.0.0)",
		5: "Version path: FAILED (7.9.0 can only be reached from 7.4.0 or higher, and 7.0.5 runs; upgrade to such a version first)",
		6: "Image manifest: FAILED (its product has the wrong type)",
		7: "Product: FAILED (upgrade.products permits sps, sps-*, and it is not known which this is)",
		8: "Image manifest: FAILED (its version is 7.5.0, and that of the signed manifest 7.5.1)",
	} {
		for _, path := range []string{testPath, upgradePath} {
			r := x.c.do(t, "POST", path, fmt.Sprintf(`{"slot_id":%d}`, slot)).fails(t, 400, "FirmwareTestFailed", "")
			if !strings.Contains("\n"+r.str("error.details.test_summary")+"\n", "\n"+want+"\n") {
				t.Errorf("slot %d: %s", slot, r.raw)
			}
		}
	}
	x.c.do(t, "POST", testPath, `{"slot_id":2}`).want(t, 200).is(t, "body.test_summary", "Image digest: ok\nISO structure: ok\nImage manifest: ok (sps-large 7.4.0)\n"+
		"Version path: ok (7.0.5 to 7.4.0)\nVersion: ok (7.4.0)\nProduct: ok (sps-large)\nFree space: ok")
	upgrade := x.upgrade(t, `{"slot_id":2}`)
	x.becomes(t, upgrade, "activated").is(t, "body.to_version", "7.4.0")
	x.reboot(t, 2)
	x.becomes(t, upgrade, "confirmed")
	if v := x.version(t); v != "7.4.0" {
		t.Errorf("it runs %q", v)
	}
	x.c.do(t, "POST", testPath, `{"slot_id":5}`).want(t, 200) // now there is a way
	x.becomes(t, x.c.do(t, "POST", rollbackPath, "").want(t, 200).str("meta.href"), "activated")
}

// Patterns that nothing can match are found before they are in force.
func TestUpgradePolicyConfig(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]string{`upgrade.products=["[a"]`: "upgrade.products must hold patterns", `upgrade.versions=[""]`: "upgrade.versions must hold patterns",
		`upgrade.test_hooks=test.d`: "upgrade.test_hooks must be an absolute path", `upgrade.test_hook_timeout=0s`: "no duration"} {
		a := newAgent(t, "")
		out, err := a.command("config", "check", "--set", set).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, %s", set, err, out)
		}
	}
}
