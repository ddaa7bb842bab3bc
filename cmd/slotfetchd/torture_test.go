package main_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfetch/fetch/fetchtest"
	"slotfetch/store"
)

// TestTorture kills the agent at random instants of its life and looks each time whether it kept its promises: see
// verify. SLOTFETCH_TORTURE sets the number of kills, SLOTFETCH_SEED repeats a run, as far as timing lets it.
func TestTorture(t *testing.T) {
	t.Parallel()
	kills := setting(t, "SLOTFETCH_TORTURE", 12)
	seed := setting(t, "SLOTFETCH_SEED", uint64(time.Now().UnixNano()))
	t.Logf("SLOTFETCH_TORTURE=%d SLOTFETCH_SEED=%d", kills, seed)
	x := newTorture(t, seed)
	x.a = startAgent(t, fmt.Sprintf("[slots]\ncount = %d\nreserve = 0\n[fetch]\nworkers = 2\nretry_initial = \"60ms\"\n", tortureSlots))
	x.c = x.a.loginAdmin(t)
	for n := range kills {
		x.live(n)
		if t.Failed() {
			t.Fatalf("after kill %d", n+1)
		}
	}
	x.drain()
	x.logHits(t)
	t.Logf("RAN %d kills and stops, %d fetches", kills, x.count)
	if want := kills / 20; x.hits("committing") < want || x.hits("transferring") < want {
		t.Errorf("too few kills hit a transfer or a commit, want %d each", want)
	}
}

func (x *torture) logHits(t *testing.T) {
	var lines []string
	for _, what := range slices.Sorted(maps.Keys(x.hit)) {
		lines = append(lines, fmt.Sprintf("%4d %s", x.hit[what], what))
	}
	t.Logf("%d fetches accepted; what was hit:\n%s", x.count, strings.Join(lines, "\n"))
}

// setting reads a number from the environment.
func setting[N int | uint64](t *testing.T, name string, otherwise N) N {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	check(t, err)
	return N(n)
}

const (
	tortureSlots = 12
	maxLife      = 2 * time.Second
	tiny         = 3 // so many images are: their fetches hardly do anything but commit
)

// torture is an agent that is killed again and again, and what it owes us.
type torture struct {
	t   *testing.T
	a   *agent
	c   *client
	rng *rand.Rand // of the test's goroutine
	hit map[string]int

	images []*fetchtest.Image
	url    string
	asks   atomic.Int64                  // requests that the origin got
	gate   atomic.Pointer[chan struct{}] // the origin sends nothing before it is closed
	moody  func(r *http.Request, image int) (busy, breaks bool)
	fault  bool // a system call failed: fetches may fail, and answers may be of the kind 5xx
	dead   bool // the disk is: what cannot be recorded may have no end
	remote bool // the agent runs in a machine of its own: nobody sees its files

	mu     sync.Mutex
	orders map[string]*accepted // by key
	notes  map[string][]note    // by key of the image: what may have been noted about it last
	asked  int                  // POSTs whose answer the kill may have taken
	count  int                  // of fetches so far
}

// note is what care.json holds.
type note struct {
	Pinned bool   `json:"pinned"`
	Label  string `json:"label"`
}

// accepted is a fetch that was answered 202, with what is known of it since.
type accepted struct {
	image   *fetchtest.Image
	wrong   bool   // asked for with a digest that nothing has
	status  string // a final one that was seen
	cancel  bool   // a DELETE was answered: it is, or will be, cancelled
	pruning bool   // a DELETE of the final entry was sent
	pruned  bool   // and answered
	emptied bool   // a DELETE of its slot was sent
	held    bool   // a pause was answered, and no resume was sent since
	pausing bool   // a pause is on its way
}

// newTorture gives the torture its origin, but no agent yet.
func newTorture(t *testing.T, seed uint64) *torture {
	x := &torture{t: t, rng: rand.New(rand.NewPCG(seed, 0)), orders: map[string]*accepted{}, notes: map[string][]note{}, hit: map[string]int{}}
	var requests atomic.Int64
	x.moody = func(_ *http.Request, image int) (busy, breaks bool) {
		n := requests.Add(1)
		return n%5 == 0 && image >= tiny, n%4 == 0
	}
	x.serve()
	return x
}

// serve starts an origin with good validators: slow, and at times it breaks off or is busy.
func (x *torture) serve() {
	for i, size := range []int64{0, 1, 200_001, 2 << 20, 5<<20 + 17, 9 << 20} {
		x.images = append(x.images, fetchtest.NewImage(uint64(1000+i), size))
	}
	x.closeGate()
	modified := time.Date(2020, 5, 4, 8, 0, 1, 0, time.UTC)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x.asks.Add(1)
		select {
		case <-*x.gate.Load():
		case <-r.Context().Done():
			return
		}
		i, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil || i >= len(x.images) {
			http.NotFound(w, r)
			return
		}
		busy, breaks := x.moody(r, i)
		if busy {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("ETag", strconv.Quote(x.images[i].SHA256()[:16]))
		var content io.ReadSeeker = x.images[i].Reader()
		if i >= tiny {
			content = &slow{SectionReader: x.images[i].Reader(), breaks: breaks}
		}
		http.ServeContent(w, r, "", modified, content)
	}))
	x.t.Cleanup(s.Close)
	x.url = s.URL
}

// closeGate holds the origin up; what it returns lets it go on.
func (x *torture) closeGate() (open func()) {
	gate := make(chan struct{})
	x.gate.Store(&gate)
	return func() { close(gate) }
}

// slow reads at about 40 MB/s, so that a transfer has an inside to be killed in.
type slow struct {
	*io.SectionReader
	breaks bool // after 1 MiB
	read   int
}

func (s *slow) Read(p []byte) (int, error) {
	if s.breaks && s.read >= 1<<20 {
		panic(http.ErrAbortHandler)
	}
	time.Sleep(3 * time.Millisecond)
	n, err := s.SectionReader.Read(p[:min(len(p), 128<<10)])
	s.read += n
	return n, err
}

// live is one life: a start, perhaps with kills in it, a look at everything, work, and a kill.
func (x *torture) live(n int) {
	open := x.closeGate()
	if n > 0 {
		for x.rng.IntN(4) == 0 {
			x.killStarting()
		}
		x.a.start(x.t)
	}
	x.verify()
	if x.t.Failed() {
		return
	}
	trigger := x.newTrigger()
	open()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	actor, busy := rand.New(rand.NewPCG(x.rng.Uint64(), 1)), x.rng.IntN(3) > 0
	wg.Go(func() { x.act(actor, busy, stop) })
	wg.Go(func() { x.watch(trigger, stop) })
	trigger.wait(stop)
	sig := syscall.SIGKILL
	if x.rng.IntN(8) == 0 {
		sig = syscall.SIGTERM
	}
	x.a.stop(x.t, sig)
	close(stop)
	wg.Wait()
	x.examine(map[syscall.Signal]string{syscall.SIGKILL: "killed", syscall.SIGTERM: "stopped"}[sig])
}

// killStarting kills an agent that may not be ready yet.
func (x *torture) killStarting() {
	cmd := exec.Command(program, "--config", x.a.config, "serve")
	check(x.t, cmd.Start())
	time.Sleep(time.Duration(x.rng.Int64N(int64(300 * time.Millisecond)))) // the instant is the test
	check(x.t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	x.examine("killed at its start, then")
}

// trigger says when to kill.
type trigger struct {
	phase string        // as soon as the API shows a fetch in this phase
	seen  chan struct{} // closed when it did
	once  sync.Once
	event string   // as soon as the kernel tells of this change below slots; empty: none
	notes *os.File // where it tells
	skip  int      // so many of them are let pass
	delay time.Duration
	most  time.Duration
}

// Changes below the slots directory, in the order of a commit; the last one is of a slot that is emptied.
const (
	sealed    = "sealed"
	moved     = "moved image"
	drafted   = "created manifest.json.tmp"
	published = "moved manifest.json"
	emptied   = "deleted manifest.json"
)

func (x *torture) newTrigger() *trigger {
	tr := &trigger{seen: make(chan struct{}), most: maxLife}
	short := time.Duration(x.rng.Int64N(int64(time.Millisecond)))
	switch n := x.rng.IntN(10); {
	case n < 4:
		tr.delay, tr.most = time.Duration(x.rng.Int64N(int64(600*time.Millisecond))), 0
	case n < 5:
		tr.phase, tr.delay = []string{"waiting", "verifying", "installing"}[x.rng.IntN(3)], short
	default:
		tr.event, tr.delay = []string{sealed, sealed, moved, drafted, published, emptied}[x.rng.IntN(6)], short
		tr.skip = x.rng.IntN(3)
		x.subscribe(tr)
	}
	return tr
}

func (x *torture) subscribe(tr *trigger) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	check(x.t, err)
	tr.notes = os.NewFile(uintptr(fd), "inotify")
	dir := filepath.Join(x.a.state, "slots")
	entries, err := os.ReadDir(dir)
	check(x.t, err)
	for _, e := range entries {
		if e.IsDir() {
			_, err := unix.InotifyAddWatch(fd, filepath.Join(dir, e.Name()), unix.IN_ATTRIB|unix.IN_MOVED_TO|unix.IN_CREATE|unix.IN_DELETE)
			check(x.t, err)
		}
	}
}

func (tr *trigger) wait(stop <-chan struct{}) {
	if tr.notes != nil {
		defer tr.notes.Close()
		_ = tr.notes.SetReadDeadline(time.Now().Add(tr.most)) // inotify can be polled
		buf := make([]byte, 64<<10)
		for tr.skip >= 0 {
			n, err := tr.notes.Read(buf)
			if err != nil {
				break // it did not happen in time: then here
			}
			if slices.Contains(changes(buf[:n]), tr.event) {
				tr.skip--
			}
		}
	} else if tr.phase != "" {
		select {
		case <-tr.seen:
		case <-time.After(tr.most):
		}
	}
	time.Sleep(tr.delay) // the instant is the test
}

// changes gives names to inotify's events.
func changes(buf []byte) []string {
	var out []string
	for len(buf) >= unix.SizeofInotifyEvent {
		mask := uint32(buf[4]) | uint32(buf[5])<<8 | uint32(buf[6])<<16 | uint32(buf[7])<<24
		length := int(buf[12]) | int(buf[13])<<8
		name := strings.TrimRight(string(buf[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+length]), "\x00")
		buf = buf[unix.SizeofInotifyEvent+length:]
		switch {
		case mask&unix.IN_ATTRIB != 0 && strings.HasSuffix(name, ".partial"):
			out = append(out, sealed)
		case mask&unix.IN_MOVED_TO != 0:
			out = append(out, "moved "+name)
		case mask&unix.IN_CREATE != 0:
			out = append(out, "created "+name)
		case mask&unix.IN_DELETE != 0:
			out = append(out, "deleted "+name)
		}
	}
	return out
}

// try is do for an agent that may be killed meanwhile.
func (c *client) try(method, path, body string) (reply, error) {
	if c.before != nil {
		c.before()
	}
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	r, err := http.NewRequest(method, c.a.base+path, in)
	if err != nil {
		return reply{}, err
	}
	r.Header.Set("Cookie", c.cookie)
	resp, err := c.http.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return reply{}, err
	}
	a := reply{what: method + " " + path, code: resp.StatusCode, header: resp.Header, raw: string(raw)}
	return a, json.Unmarshal(raw, &a.json)
}

// act orders, cancels, prunes and empties slots until the agent is gone; a busy one has many tiny images fetched.
func (x *torture) act(rng *rand.Rand, busy bool, stop <-chan struct{}) {
	var wg sync.WaitGroup
	defer wg.Wait()
	most, images, pace := 6, len(x.images), 30*time.Millisecond
	if busy {
		most, images, pace = 20, tiny, time.Millisecond
	}
	for {
		select {
		case <-stop:
			return
		default:
		}
		x.emptySlot(rng, tortureSlots/2)
		switch n := rng.IntN(20); {
		case n < 12 && x.unfinished() < most:
			x.post(rng, rng.IntN(images))
		case n < 14:
			if key := x.any(rng); key != "" {
				wg.Go(func() { x.remove(key) }) // it may wait
			}
		case n == 14:
			if key := x.unended(rng); key != "" {
				wg.Go(func() { x.change(key, true) })
			}
		case n < 17:
			x.resume()
		}
		time.Sleep(time.Duration(rng.Int64N(int64(pace)))) // the pace of the callers
	}
}

func (x *torture) unfinished() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := 0
	for _, o := range x.orders {
		if o.status == "" && !o.pruning {
			n++
		}
	}
	return n
}

// any takes a key for the caller to delete, which nobody else does at the time; rarely one that is final.
func (x *torture) any(rng *rand.Rand) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var keys []string
	for key, o := range x.orders {
		if !o.pruning && (o.status == "" || rng.IntN(4) == 0) {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return ""
	}
	slices.Sort(keys)
	key := keys[rng.IntN(len(keys))]
	x.orders[key].pruning = true // perhaps: the answer tells
	return key
}

// post orders an image, at times with a digest that nothing has.
func (x *torture) post(rng *rand.Rand, i int) {
	wrong := rng.IntN(12) == 0
	sum := x.images[i].SHA256()
	if wrong {
		sum = strings.Repeat("0d", 32)
	}
	x.mu.Lock()
	x.asked++
	x.mu.Unlock()
	r, err := x.c.try("POST", fetches, order(fmt.Sprintf("%s/%d", x.url, i), sum, "force", true)) // each fetch has its slot
	if err != nil {
		return // it may be there or not
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	switch r.code {
	case 202:
		x.asked--
		x.count++
		x.orders[r.str("key")] = &accepted{image: x.images[i], wrong: wrong}
	case 503: // it is stopping
	default:
		x.t.Errorf("%s: %d %s", r.what, r.code, r.raw)
	}
}

// remove cancels or prunes, whatever it finds.
func (x *torture) remove(key string) {
	r, err := x.c.try("DELETE", fetches+"/"+key, "")
	if err != nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.orders[key]
	switch status := r.str("body.status"); {
	case r.code == 202, r.code == 200 && status == "cancelled":
		o.cancel, o.pruning = true, false
	case r.code == 409:
		o.pruning = false
	case r.code == 200 && r.get("body") == nil:
		o.pruned = true
	case x.fault && x.excused(r): // it may be durable or not
	case r.code == 503:
		o.pruning = false
	case r.code == 200 && status != "queued" && status != "":
		x.t.Errorf("%s: %s", r.what, r.raw)
	default:
		x.t.Errorf("%s: %d %s", r.what, r.code, r.raw)
	}
}

// unended takes the key of a fetch that is not known to have ended, for the caller to pause.
func (x *torture) unended(rng *rand.Rand) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var keys []string
	for key, o := range x.orders {
		if o.status == "" && !o.pruning && !o.cancel && !o.pausing {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return ""
	}
	slices.Sort(keys)
	key := keys[rng.IntN(len(keys))]
	x.orders[key].pausing = true
	return key
}

// change pauses or resumes.
func (x *torture) change(key string, paused bool) {
	if !paused {
		x.mu.Lock()
		x.orders[key].held = false // perhaps: the answer may get lost
		x.mu.Unlock()
	}
	r, err := x.c.try("PATCH", fetches+"/"+key, fmt.Sprintf(`{"paused": %v}`, paused))
	x.mu.Lock()
	defer x.mu.Unlock()
	x.orders[key].pausing = false
	switch {
	case err != nil:
	case r.code == 200 && paused && r.get("body.paused") == true:
		x.orders[key].held = true
	case r.code == 200, r.code == 202, r.code == 404, r.code == 409, r.code == 503, x.fault && x.excused(r):
	default:
		x.t.Errorf("%s: %d %s", r.what, r.code, r.raw)
	}
}

// resume resumes all that are paused, whoever knows it.
func (x *torture) resume() {
	r, err := x.c.try("GET", fetches, "")
	if err != nil || r.code != 200 {
		return
	}
	for _, item := range r.get("items").([]any) {
		row := reply{json: item}
		x.mu.Lock()
		o := x.orders[row.str("key")]
		ours := o != nil && !o.pausing && row.get("body.paused") == true
		x.mu.Unlock()
		if ours {
			x.change(row.str("key"), false)
		}
	}
}

// emptySlot empties one if more than most are full.
func (x *torture) emptySlot(rng *rand.Rand, most int) {
	holder := x.holders()
	if len(holder) <= most {
		return
	}
	full := slices.Sorted(maps.Keys(holder))
	id := full[rng.IntN(len(full))]
	x.empty(id, holder[id])
}

// holders are the keys of the fetches whose images are in slots.
func (x *torture) holders() map[string]string {
	holder := map[string]string{}
	if !x.remote {
		for id := range tortureSlots {
			if s := x.slot(strconv.Itoa(id + 1)); s != nil {
				holder[strconv.Itoa(id+1)] = s.Key
			}
		}
		return holder
	}
	r, err := x.c.try("GET", fetches, "")
	if err != nil || r.code != 200 {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, item := range r.get("items").([]any) {
		row := reply{json: item}
		if o := x.orders[row.str("key")]; o != nil && !o.emptied && row.str("body.status") == "finished" {
			holder[fmt.Sprint(row.get("body.slot_id"))] = row.str("key")
		}
	}
	return holder
}

// annotate notes something about the image of a fetch, which is in a slot. If the answer is lost, so may the note be.
func (x *torture) annotate(id, key string, n note) {
	x.mu.Lock()
	if x.notes[key] == nil {
		x.notes[key] = []note{{}}
	}
	x.notes[key] = append(slices.Clip(x.notes[key]), n)
	x.mu.Unlock()
	body, err := json.Marshal(n)
	check(x.t, err)
	r, err := x.c.try("PATCH", slotsPath+"/"+id, string(body))
	switch {
	case err != nil, x.excused(r), x.fault && r.code == 409: // the slot looks damaged while it cannot be read
	case r.code == 200:
		x.mu.Lock()
		x.notes[key] = []note{n}
		x.mu.Unlock()
	default:
		x.t.Errorf("%s: %d %s", r.what, r.code, r.raw)
	}
}

// empty empties a slot, which has the image of a fetch.
func (x *torture) empty(id, key string) {
	mark := func(emptied bool) {
		x.mu.Lock()
		defer x.mu.Unlock()
		if o := x.orders[key]; o != nil {
			o.emptied = emptied
		}
	}
	mark(true) // perhaps: the answer may get lost
	r, err := x.c.try("DELETE", slotsPath+"/"+id, "")
	switch {
	case err != nil, r.code == 200, x.fault && x.excused(r):
	case r.code == 409, r.code == 503: // its commit is not over yet; the agent is stopping
		mark(false)
	default:
		x.t.Errorf("%s: %d %s", r.what, r.code, r.raw)
	}
}

type manifest struct {
	Key    string `json:"key"`
	SHA256 string `json:"sha256"`
}

// slot is what the manifest on disk says; nil if there is none.
func (x *torture) slot(id string) *manifest {
	text, err := os.ReadFile(filepath.Join(x.a.state, "slots", id, "manifest.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var m manifest
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		x.t.Errorf("manifest of slot %s: %v in %q", id, err, text)
	}
	return &m
}

// watch asks for all fetches until the agent is gone, remembers ends that it saw, and tells the trigger.
func (x *torture) watch(tr *trigger, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		r, err := x.c.try("GET", fetches, "")
		if err != nil || r.code != 200 {
			continue
		}
		if phase := x.note(r); tr.phase != "" && slices.Contains(phase, tr.phase) {
			tr.once.Do(func() { close(tr.seen) })
		}
		time.Sleep(2 * time.Millisecond) // leave the agent some of the processor
	}
}

// note remembers final statuses and gives the phases that it saw. A final status never changes.
func (x *torture) note(list reply) (phases []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, item := range list.json.(map[string]any)["items"].([]any) {
		r := reply{json: item}
		status := r.str("body.status")
		phases = append(phases, r.str("body.phase"))
		o := x.orders[r.str("key")]
		if o == nil || r.get("body.end_time") == nil {
			continue
		}
		if o.status != "" && o.status != status {
			x.t.Errorf("fetch %s was %s and is %s", r.str("key"), o.status, status)
		}
		o.status = status
		if e := r.str("body.error"); status == "failed" && !(x.fault && !strings.Contains(e, "internal error")) && !strings.Contains(e, "No empty firmware slot") && !(o.wrong && strings.Contains(e, "SHA-256 mismatch")) {
			x.t.Errorf("fetch %s failed: %s", r.str("key"), e)
		}
		if status == "cancelled" && !o.cancel && !o.pruning {
			x.t.Errorf("fetch %s is cancelled, and nobody asked for it", r.str("key"))
		}
		if status == "finished" && (o.cancel || o.wrong) {
			x.t.Errorf("fetch %s is finished; cancelled: %v, wrong digest: %v", r.str("key"), o.cancel, o.wrong)
		}
	}
	return phases
}

// examine counts what the kill hit, by a copy of the database and by the disk.
func (x *torture) examine(how string) {
	copied := filepath.Join(x.t.TempDir(), "copy.db")
	for _, suffix := range []string{"", "-wal"} {
		text, err := os.ReadFile(filepath.Join(x.a.state, "slotfetch.db"+suffix))
		if suffix != "" && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		check(x.t, err)
		check(x.t, os.WriteFile(copied+suffix, text, 0o600))
	}
	s, err := store.Open(copied, store.Options{MustExist: true})
	check(x.t, err)
	defer s.Close()
	idle := true
	check(x.t, s.Unfinished(x.t.Context(), func(f store.Fetch) error {
		if f.Status == store.InProgress {
			idle = false
			x.hit[how+" "+x.stage(f)]++
		}
		return nil
	}))
	if idle {
		x.hit[how+" idle"]++
	}
}

// stage is how far a fetch in progress had come.
func (x *torture) stage(f store.Fetch) string {
	dir := filepath.Join(x.a.state, "slots")
	switch {
	case f.CancelRequested:
		return "cancelling"
	case f.Phase == store.Downloading, f.Phase == store.Waiting:
		return "transferring: " + string(f.Phase)
	case f.Phase == store.Verifying:
		return "committing: 0 verifying"
	}
	if info, err := os.Stat(filepath.Join(dir, ".part", f.Key+".partial")); err == nil {
		if info.Mode().Perm()&0o200 != 0 {
			return "committing: 1 installing"
		}
		return "committing: 2 sealed"
	}
	for id := range tortureSlots {
		name := strconv.Itoa(id + 1)
		if m := x.slot(name); m != nil && m.Key == f.Key {
			return "committing: 5 published, not recorded"
		}
		if _, err := os.Stat(filepath.Join(dir, name, "manifest.json.tmp")); err == nil {
			return "committing: 4 manifest written"
		}
	}
	return "committing: 3 renamed"
}

func (x *torture) hits(prefix string) int {
	n := 0
	for what, k := range x.hit {
		if strings.HasPrefix(what, "killed "+prefix) {
			n += k
		}
	}
	return n
}

var partialName = regexp.MustCompile(`^([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.partial$`)

// verify looks, after a restart and while the origin holds everything up, whether the agent kept its promises: no
// accepted fetch is lost, ends stay as they were, a finished fetch has its slot, each image has its digest, no slot
// has two fetches, and every partial belongs to somebody.
func (x *torture) verify() {
	t := x.t
	partials := x.a.partials(t)
	rows := x.verifyRows()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.verifySlots(rows)
	for _, name := range partials {
		m := partialName.FindStringSubmatch(name)
		if m == nil {
			t.Errorf("stray file in .part: %s", name)
			continue
		}
		row, ok := rows[m[1]]
		if !ok || row.get("body.end_time") != nil && slices.Contains(x.a.partials(t), name) {
			t.Errorf("partial %s has no owner: %v", name, row.json)
		}
	}
}

// verifyRows is the part of verify that needs no file. It gives the fetches by key.
func (x *torture) verifyRows() map[string]reply {
	t := x.t
	list := x.c.do(t, "GET", fetches, "").want(t, 200)
	x.note(list)
	x.mu.Lock()
	defer x.mu.Unlock()
	rows := map[string]reply{}
	unknown := 0
	for _, item := range list.get("items").([]any) {
		r := reply{json: item}
		key := r.str("key")
		rows[key] = r
		if x.orders[key] == nil { // posted, and killed before the answer
			unknown++
			x.adopt(key, r)
		}
	}
	if unknown > x.asked {
		t.Errorf("%d fetches that nobody asked for", unknown-x.asked)
	}
	x.asked = 0
	for key, o := range x.orders {
		row, there := rows[key]
		switch {
		case !there && !o.pruning:
			t.Errorf("fetch %s is lost", key)
		case there && o.pruned:
			t.Errorf("fetch %s was pruned and is back", key)
		case !there:
			delete(x.orders, key)
			continue
		case o.cancel && row.str("body.status") != "cancelled":
			t.Errorf("fetch %s was cancelled and is %s", key, row.str("body.status"))
		case o.held && row.get("body.end_time") == nil && row.get("body.paused") != true:
			t.Errorf("fetch %s was paused and is not any more", key)
		}
		o.pruning = false // it was a cancel, or did not get through
		if row.str("body.status") == "cancelled" {
			o.cancel = true
		}
	}
	return rows
}

// adopt takes over a fetch whose 202 was lost.
func (x *torture) adopt(key string, r reply) {
	i, err := strconv.Atoi(strings.TrimPrefix(r.str("body.url"), x.url+"/"))
	if err != nil || i >= len(x.images) {
		x.t.Errorf("unknown fetch: %v", r.json)
		return
	}
	x.orders[key] = &accepted{image: x.images[i], wrong: r.str("body.sha256") != x.images[i].SHA256()}
}

// verifySlots hashes every image. The caller has the lock.
func (x *torture) verifySlots(rows map[string]reply) {
	t := x.t
	holder := map[string]string{} // slot → key
	for id := range tortureSlots {
		name := strconv.Itoa(id + 1)
		entries, err := os.ReadDir(filepath.Join(x.a.state, "slots", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		check(t, err)
		var files []string
		for _, e := range entries {
			files = append(files, e.Name())
		}
		m := x.slot(name)
		if m == nil {
			if files != nil {
				t.Errorf("slot %s has no manifest, but %v", name, files)
			}
			continue
		}
		if x.notes[m.Key] == nil && x.fault { // what is there is about another image, because it could not be removed with that
			x.notes[m.Key] = []note{{}}
		}
		if x.notes[m.Key] != nil {
			files = slices.DeleteFunc(files, func(f string) bool { return f == "care.json" })
			x.verifyNote(name, m.Key)
		}
		if !slices.Equal(files, []string{"image", "manifest.json"}) {
			t.Errorf("slot %s has %v", name, files)
		}
		holder[name] = m.Key
		image, err := os.ReadFile(filepath.Join(x.a.state, "slots", name, "image"))
		check(t, err)
		if sum := sha256.Sum256(image); hex.EncodeToString(sum[:]) != m.SHA256 {
			t.Errorf("slot %s holds %d bytes with %x, its manifest says %s", name, len(image), sum, m.SHA256)
		}
		if o := x.orders[m.Key]; o != nil {
			if m.SHA256 != o.image.SHA256() || o.wrong {
				t.Errorf("slot %s holds what fetch %s did not ask for", name, m.Key)
			}
			if s := rows[m.Key].str("body.status"); s != "finished" {
				t.Errorf("slot %s is of fetch %s, which is %q", name, m.Key, s)
			}
		}
	}
	owner := map[string]string{}
	for key, row := range rows {
		o, slot := x.orders[key], fmt.Sprint(row.get("body.slot_id"))
		if holder[slot] == key {
			o.emptied = false // the DELETE did not get through
		}
		if row.str("body.status") != "finished" || o.emptied {
			continue
		}
		if other := owner[slot]; other != "" {
			t.Errorf("fetches %s and %s are both in slot %s", key, other, slot)
		}
		owner[slot] = key
		if holder[slot] != key {
			t.Errorf("fetch %s is finished, and slot %s is of %q", key, slot, holder[slot])
		}
	}
}

// verifyNote compares what is noted about the image in a slot. The caller has the lock.
func (x *torture) verifyNote(slot, key string) {
	r := x.c.do(x.t, "GET", slotsPath+"/"+slot, "").want(x.t, 200)
	if got := (note{r.get("body.pinned") == true, r.str("body.label")}); !slices.Contains(x.notes[key], got) {
		x.t.Errorf("about slot %s it is noted %+v, not one of %+v", slot, got, x.notes[key])
	} else {
		x.notes[key] = []note{got}
	}
}

// drain lets the agent do all that is left.
func (x *torture) drain() {
	x.closeGate()()
	x.a.start(x.t)
	x.settle()
}

// settle waits until the agent has done all that is left, and looks again.
func (x *torture) settle() {
	t := x.t
	for end := time.Now().Add(3 * fetchtest.Patience); ; time.Sleep(10 * time.Millisecond) {
		x.emptySlot(x.rng, tortureSlots-3)
		x.resume()
		list := x.c.do(t, "GET", fetches, "").want(t, 200)
		x.note(list)
		if !strings.Contains(list.raw, `"end_time":null`) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("fetches that do not end: %s", list.raw)
		}
	}
	x.verify()
	if left := x.a.partials(t); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

// TestTortureFirstStart kills the very first start, which makes database, keys, certificate and user.
func TestTortureFirstStart(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(setting(t, "SLOTFETCH_SEED", uint64(time.Now().UnixNano())), 2))
	starts := max(3, setting(t, "SLOTFETCH_TORTURE", 0)/10)
	for range starts {
		a := newAgent(t, "")
		for range 3 {
			cmd := exec.Command(program, "--config", a.config, "serve")
			check(t, cmd.Start())
			time.Sleep(time.Duration(rng.Int64N(int64(250 * time.Millisecond)))) // the instant is the test
			check(t, cmd.Process.Kill())
			_ = cmd.Wait() // killed
		}
		a.firstStart(t)
	}
	t.Logf("RAN %d first starts, of which three each were killed", starts)
}

// firstStart is the first start that nothing disturbs: somebody can log in and fetch, and there is no file too many.
func (a *agent) firstStart(t *testing.T) {
	t.Helper()
	a.start(t)
	a.newPassword(t)
	c := a.loginAdmin(t)
	c.awaitStatus(t, c.fetch(t, serveSmall(t), small.SHA256()), "finished")
	var files []string
	check(t, filepath.WalkDir(a.state, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && !strings.HasPrefix(path, a.database()) {
			files = append(files, strings.TrimPrefix(path, a.state))
		}
		return err
	}))
	want := []string{"/agent.lock", "/seal.key", "/slots/.lock", "/slots/1/image", "/slots/1/manifest.json", "/tls/tls.crt", "/tls/tls.key", "/uuid"}
	if !slices.Equal(files, want) {
		t.Errorf("the state directory has %v, want %v", files, want)
	}
	a.stop(t, syscall.SIGTERM)
}
