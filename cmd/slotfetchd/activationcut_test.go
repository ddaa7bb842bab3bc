package main_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"slotfetch/fetch/fetchtest"
	"slotfetch/store"
)

// TestActivationPowerCut does what TestPowerCut does with a life of upgrades: an image comes into a slot and is pinned and
// labelled, is activated and confirmed, is rolled back, and activated again, when the box falls back. Agent, root side, hooks
// and boot loader keep all that they know on the recorded disk. After each cut boot.json and care.json are as before or after
// what was going on, the slot that boots is a whole one that boot.json protects, and the upgrade comes to its end.
// SLOTFETCH_STATES is the number of cuts.
func TestActivationPowerCut(t *testing.T) {
	t.Parallel()
	states, seed := setting(t, "SLOTFETCH_STATES", 12), setting(t, "SLOTFETCH_SEED", uint64(time.Now().UnixNano()))
	l := newCutLab(t)
	base := ext4.with(t, l.state)
	log := l.record(t, slices.Clone(base))
	flushes := flushesIn(log)
	t.Logf("SLOTFETCH_SEED=%d: %d writes and %d flushes", seed, len(log)-flushes, flushes)
	if flushes < 100 {
		t.Fatal("the flushes do not come through")
	}
	var changes []int // the moments after which boot.json or care.json is another one
	for i, m := range l.moments[1:] {
		if before := l.moments[i]; m.boot != before.boot || m.care != before.care {
			changes = append(changes, i)
		}
	}
	if len(changes) != 10 {
		t.Fatalf("%d changes in %+v", len(changes), l.moments)
	}
	rng := rand.New(rand.NewPCG(seed, 7))
	ends := map[store.UpgradeStatus]int{}
	lost := 0
	for n := range states {
		from, to := l.moments[0].position, len(log)
		if n%2 == 1 { // while one of the two changes
			i := changes[n/2%len(changes)]
			from, to = l.moments[i].position, l.moments[i+1].position
		}
		cut := from + rng.IntN(to-from) + 1
		survived, how := crash(rng, log[:cut])
		t.Run(fmt.Sprintf("%d/%s", cut, how), func(t *testing.T) {
			i, _ := slices.BinarySearchFunc(l.moments, cut+1, func(m moment, at int) int { return m.position - at })
			status, err := l.suffer(t, rng, diskAfter(t, base, survived), l.moments[i-1:min(i+1, len(l.moments))], n%8 == 0)
			if err != nil {
				t.Log(err)
				lost++
				return
			}
			ends[status]++
		})
	}
	t.Logf("RAN %d cuts of a life of %d writes and %d flushes%s", states, len(log)-flushes, flushes, lostDisks(t, lost, states))
	t.Logf("statuses in which the cut left the last upgrade: %v", ends)
}

// moment is what the disk and the caller know when the disk has come to position. From one moment to the next each file
// changes once at most.
type moment struct {
	position   int
	boot, care string            // the files' content; empty: there is none
	upgrades   map[string]string // of what a reply has told: final status by path, or empty
}

// cutLab is a box with a disk of its own. Its boot loader remembers as the hooks for trials do.
type cutLab struct {
	*box
	two     string // the order of the image for slot 2
	moments []moment
}

const loaderDir = "loader" // of the state directory, so that it is on the same disk

// newCutLab gives a box that is off and has an image in slot 1.
func newCutLab(t *testing.T) *cutLab {
	t.Helper()
	scripts := map[string]string{}
	null, err := filepath.Abs("../../systemd/hooks/null")
	check(t, err)
	for _, name := range []string{"activate", "confirm", "rollback"} {
		scripts[name] = ". " + filepath.Join(null, name)
	}
	b, config := newBoots(t, scripts)
	a := startAgent(t, config+"[slots]\ncount = 3\nreserve = 0\nscrub_interval = \"\"\n")
	check(t, os.Symlink(filepath.Join(a.state, loaderDir), filepath.Join(b.dir, "state")))
	l := &cutLab{box: &box{a, b, a.loginAdmin(t)}}
	server := fetchtest.NewHTTP(t, nil)
	one, two := fetchtest.NewImage(other, 200_000), fetchtest.NewImage(other+1, 200_000)
	l.c.awaitStatus(t, l.c.fetch(t, server.Handle("/fw-7.0.5.iso", fetchtest.Whole(one).Serve), one.SHA256()), "finished")
	l.two = order(server.Handle("/fw-7.4.0.iso", fetchtest.Whole(two).Serve), two.SHA256(), "slot_id", 2)
	l.down(t)
	check(t, os.Mkdir(filepath.Join(a.state, loaderDir), 0o700))
	return l
}

// record lives the life on a recorded disk and notes its moments.
func (l *cutLab) record(t *testing.T, image []byte) []diskEvent {
	t.Helper()
	r := newRecorder(t, image, 0)
	unmount := ext4.mounted(t, r.file, l.state)
	defer unmount()
	defer l.kill()
	known := map[string]string{}
	mark := func() {
		l.moments = append(l.moments, moment{r.position(), l.text(t, "slots/boot.json"), l.text(t, "slots/2/care.json"), maps.Clone(known)})
	}
	mark()
	l.powerOn(t, true) // it finds out which slot runs
	mark()
	job := l.c.do(t, "POST", fetches, l.two).want(t, 202).str("meta.href")
	l.c.awaitStatus(t, job, "finished")
	mark()
	care := func(body string) {
		l.c.do(t, "PATCH", slotsPath+"/2", body).want(t, 200)
		mark()
	}
	begun := func(path string) string {
		known[path] = ""
		mark()
		l.becomes(t, path, "activated")
		mark()
		return path
	}
	ends := func(path, status string, works bool) {
		l.down(t)
		l.powerOn(t, works)
		mark()
		l.becomes(t, path, status)
		known[path] = status
		mark()
	}
	care(`{"pinned":true,"label":"trial"}`)
	care(`{"pinned":false}`)
	ends(begun(l.upgrade(t, `{"slot_id":2,"reboot":"next"}`)), "confirmed", true)
	care(`{"label":"good"}`)
	ends(begun(l.c.do(t, "POST", rollbackPath, `{"reboot":"next"}`).want(t, 200).str("meta.href")), "confirmed", true)
	ends(begun(l.upgrade(t, `{"slot_id":2,"reboot":"next"}`)), "failed", false)
	l.boot(t, 1, 1)
	l.down(t)
	mark()
	log, _, _ := r.all() // without the unmount, as in TestPowerCut
	return log
}

// suffer powers the box on with a disk that a cut has left between two moments, or after the last. It gives the status in which
// the last upgrade was. With more there is another upgrade afterwards. An error means that the kernel cannot mount it.
func (l *cutLab) suffer(t *testing.T, rng *rand.Rand, file string, between []moment, more bool) (store.UpgradeStatus, error) {
	l.log = &journal{}
	defer func() {
		if t.Failed() {
			t.Logf("between %+v; the agent's log:\n%s", between, l.log)
		}
	}()
	unmount, err := ext4.recover(t, file, l.state)
	if err != nil {
		return "", err
	}
	defer unmount()
	defer l.kill()
	last := l.look(t, between)
	if t.Failed() {
		return last, nil
	}
	works, early := rng.IntN(3) > 0, rng.IntN(2) == 0
	l.bootUp(t, works)
	if early { // systemd need not wait for the agent
		l.root(t)
	}
	l.start(t)
	l.c = l.loginAdmin(t)
	list := l.c.do(t, "GET", upgradesPath, "").want(t, 200)
	for path, status := range between[0].upgrades {
		r := l.c.do(t, "GET", path, "")
		if r.code != 200 || status != "" && r.str("body.status") != status {
			t.Errorf("an upgrade was accepted, and then %q: %d %s", status, r.code, r.raw)
		}
	}
	if list.get("items.0") != nil && list.get("items.0.body.end_time") == nil {
		for _, slot := range []string{"1", "2"} {
			l.c.do(t, "DELETE", slotsPath+"/"+slot, "").fails(t, 409, "Conflict", "")
		}
	}
	l.settle(t, works)
	if more {
		l.another(t)
	}
	return last, nil
}

// look is at the disk before anybody has touched it. It gives the status of the last upgrade.
func (l *cutLab) look(t *testing.T, between []moment) store.UpgradeStatus {
	t.Helper()
	text := l.text(t, "slots/boot.json")
	for _, f := range []struct {
		name, text string
		of         func(moment) string
	}{
		{"boot.json", text, func(m moment) string { return m.boot }},
		{"care.json", l.text(t, "slots/2/care.json"), func(m moment) string { return m.care }},
	} {
		if !slices.ContainsFunc(between, func(m moment) bool { return f.of(m) == f.text }) {
			t.Errorf("%s is %q, which is neither old nor new", f.name, f.text)
		}
	}
	last := l.lastUpgrade(t)
	chosen, _ := l.chosen(t)
	l.whole(t, chosen)
	if text == "" || t.Failed() { // nothing had happened yet
		return last.Status
	}
	current, next := l.bootFile(t)
	l.whole(t, current)
	l.whole(t, next)
	if chosen != current && chosen != next {
		t.Errorf("the boot loader boots slot %d, and boot.json protects %d and %d", chosen, current, next)
	}
	if r := l.handover(t, "request.json"); r != nil && r["slot_id"] != float64(next) {
		t.Errorf("the root side was asked for %v, and boot.json says %d, then %d", r, current, next)
	}
	l.handover(t, "result.json") // can be read
	var want []int
	switch last.Status {
	case store.UpgradeRequested, store.UpgradeReverting:
		want = []int{*last.From, last.To}
	case store.UpgradeActivated, store.UpgradeBooted, store.UpgradeConfirmed:
		want = []int{last.To}
	case store.UpgradeFailed:
		want = []int{*last.From}
	}
	if want != nil && !slices.Contains(want, next) {
		t.Errorf("the upgrade to slot %d is %s, and boot.json says %d, then %d", last.To, last.Status, current, next)
	}
	return last.Status
}

// settle plays the root side, and reboots, until no upgrade is under way; then everybody agrees. works tells whether what is
// booted for the first time comes up.
func (l *cutLab) settle(t *testing.T, works bool) {
	t.Helper()
	for range 5 {
		list := l.rest(t)
		if list.get("items.0") != nil && list.get("items.0.body.end_time") == nil {
			l.down(t)
			l.powerOn(t, works)
			continue // it waits for a reboot
		}
		running, once := l.chosen(t)
		if once {
			t.Errorf("slot %d still boots next: %s", running, list.raw)
		}
		l.boot(t, running, running)
		if to := list.get("items.0.body.to_slot"); to != nil && (list.str("items.0.body.status") == "confirmed") != (to == float64(running)) {
			t.Errorf("slot %d runs: %s", running, list.raw)
		}
		l.c.do(t, "DELETE", slotsPath+"/"+strconv.Itoa(running), "").fails(t, 409, "Conflict", "")
		return
	}
	t.Error("it does not come to rest")
}

// rest plays the root side until nobody waits for it, and gives all upgrades.
func (l *cutLab) rest(t *testing.T) reply {
	t.Helper()
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(5 * time.Millisecond) {
		if l.handover(t, "request.json") != nil {
			l.root(t)
		}
		list := l.c.do(t, "GET", upgradesPath, "").want(t, 200)
		if status := list.str("items.0.body.status"); status != "requested" && status != "booted" && status != "reverting" {
			return list
		}
		if time.Now().After(end) {
			t.Fatalf("it does not end: %s", list.raw)
		}
	}
}

// another upgrade is to the other slot, once its image is there.
func (l *cutLab) another(t *testing.T) {
	t.Helper()
	running, _ := l.chosen(t)
	for _, item := range l.c.do(t, "GET", fetches, "").want(t, 200).get("items").([]any) {
		l.c.await(t, fetches+"/"+reply{json: item}.str("key"), "its end", func(r reply) bool { return r.get("body.end_time") != nil })
	}
	to := 3 - running
	if l.text(t, fmt.Sprintf("slots/%d/manifest.json", to)) == "" { // it was not even ordered
		l.c.awaitStatus(t, l.c.do(t, "POST", fetches, l.two).want(t, 202).str("meta.href"), "finished")
	}
	path := upgradePath
	if to == 1 { // which is a downgrade
		path = rollbackPath
	}
	l.c.do(t, "POST", path, fmt.Sprintf(`{"slot_id":%d,"reboot":"next"}`, to)).want(t, 200)
	l.settle(t, true)
	l.boot(t, to, to)
}

// powerOn starts the agent in what the boot loader boots.
func (l *cutLab) powerOn(t *testing.T, works bool) {
	t.Helper()
	l.bootUp(t, works)
	l.start(t)
}

// bootUp is what the boot loader does. What it boots once it boots once, whether that works or not.
func (l *cutLab) bootUp(t *testing.T, works bool) {
	t.Helper()
	slot, once := l.chosen(t)
	if once {
		dir := filepath.Join(l.state, loaderDir)
		check(t, os.Remove(filepath.Join(dir, "null.next")))
		d, err := os.Open(dir)
		check(t, err)
		check(t, d.Sync())
		check(t, d.Close())
	}
	if once && !works {
		slot, _ = l.chosen(t)
	}
	l.boots.reboot(t, slot)
}

// chosen is the slot that the boot loader boots, and whether only once. A box comes with slot 1.
func (l *cutLab) chosen(t *testing.T) (slot int, once bool) {
	t.Helper()
	for _, name := range []string{"null.next", "null.default"} {
		text, err := os.ReadFile(filepath.Join(l.state, loaderDir, name))
		if os.IsNotExist(err) {
			continue
		}
		check(t, err)
		slot, err = strconv.Atoi(strings.TrimSpace(string(text)))
		check(t, err)
		return slot, name == "null.next"
	}
	return 1, false
}

// whole wants the image of a slot to be that of its manifest.
func (l *cutLab) whole(t *testing.T, slot int) {
	t.Helper()
	var m manifest
	check(t, json.Unmarshal([]byte(l.text(t, fmt.Sprintf("slots/%d/manifest.json", slot))), &m))
	if sum := sha256.Sum256([]byte(l.text(t, fmt.Sprintf("slots/%d/image", slot)))); hex.EncodeToString(sum[:]) != m.SHA256 {
		t.Errorf("slot %d holds %x, and its manifest says %s", slot, sum, m.SHA256)
	}
}

// text is the content of a file in the state directory; empty if there is none.
func (l *cutLab) text(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(l.state, name))
	if os.IsNotExist(err) {
		return ""
	}
	check(t, err)
	if len(bytes.Trim(text, "\x00")) == 0 {
		return "nothing but zeros" // which is not the same as no file
	}
	return string(text)
}

// lastUpgrade is that of a copy of the database.
func (l *cutLab) lastUpgrade(t *testing.T) (u store.Upgrade) {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copy.db")
	for _, suffix := range []string{"", "-wal"} {
		if text := l.text(t, "slotfetch.db"+suffix); text != "" {
			check(t, os.WriteFile(copied+suffix, []byte(text), 0o600))
		}
	}
	s, err := store.Open(copied, store.Options{MustExist: true})
	check(t, err)
	defer s.Close()
	list, err := s.Upgrades(t.Context())
	check(t, err)
	if list != nil {
		u = list[0]
	}
	return u
}
