package main_test

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"slotfetch/fetch/fetchtest"
)

// TestHistories has concurrent callers order, look, list, pause, resume, cancel and prune while the agent is killed and started again,
// and holds all that they saw against the life of a fetch: see history.judge. SLOTFETCH_HISTORIES is how many histories
// there are; -rapid.seed repeats one, as far as timing lets it.
func TestHistories(t *testing.T) {
	t.Parallel()
	const agents = 2
	histories := max(1, setting(t, "SLOTFETCH_HISTORIES", 200)/agents)
	check(t, flag.Set("rapid.checks", strconv.Itoa(histories)))
	check(t, flag.Set("rapid.nofailfile", "true"))
	check(t, flag.Set("rapid.shrinktime", "10s"))
	for n := range agents {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			t.Parallel()
			testHistories(t, histories)
		})
	}
}

func testHistories(t *testing.T, histories int) {
	a := startAgent(t, "[slots]\ncount = 64\nreserve = 0\n[fetch]\nworkers = 2\nretry_initial = \"5ms\"\nretry_rounds = 3\n")
	c := a.loginAdmin(t)
	login := time.Now()
	o := newHistoryOrigin(t)
	fetched, looks, ends := 0, 0, map[syscall.Signal]int{}
	rapid.Check(t, func(rt *rapid.T) {
		if time.Since(login) > time.Hour {
			c, login = a.loginAdmin(t), time.Now()
		}
		h := &history{t: t, a: a, c: c, o: o, fetches: map[string]*told{}}
		o.reset()
		h.forget()
		lives := rapid.SliceOfN(rapid.Custom(drawLife), 1, 4).Draw(rt, "lives")
		for n, l := range lives {
			last := n == len(lives)-1
			h.live(l, last)
			if !last {
				ends[l.end]++
			}
		}
		h.settle()
		if bad := h.judge(); bad != nil {
			rt.Errorf("%d wrong:\n%s", len(bad), strings.Join(bad[:min(len(bad), 10)], "\n"))
		}
		fetched += len(h.fetches)
		for _, f := range h.fetches {
			looks += len(f.seen)
		}
	})
	t.Logf("RAN %d histories with %d fetches, seen %d times; %d kills and %d stops", histories, fetched, looks, ends[syscall.SIGKILL], ends[syscall.SIGTERM])
	if histories >= 50 && (fetched < histories || ends[syscall.SIGKILL] < histories/10) {
		t.Error("too little happened")
	}
}

// life is what callers do between two starts: each has a script of its own. end comes after a while; the last life ends
// when all have done theirs.
type life struct {
	callers [][]step
	after   time.Duration
	end     syscall.Signal
}

// step is one request.
type step struct {
	do    string
	what  int // which image, or which fetch
	after time.Duration
}

func drawLife(rt *rapid.T) life {
	pace := rapid.IntRange(0, 4)
	one := rapid.Custom(func(rt *rapid.T) step {
		return step{rapid.SampledFrom([]string{"post", "post", "post", "get", "get", "list", "delete", "delete", "pause", "pause", "resume"}).Draw(rt, "do"),
			rapid.IntRange(0, 63).Draw(rt, "what"), time.Duration(pace.Draw(rt, "after")) * time.Millisecond}
	})
	return life{
		callers: rapid.SliceOfN(rapid.SliceOfN(one, 1, 10), 1, 4).Draw(rt, "callers"),
		after:   time.Duration(rapid.IntRange(0, 80).Draw(rt, "milliseconds")) * time.Millisecond,
		end:     rapid.SampledFrom([]syscall.Signal{syscall.SIGKILL, syscall.SIGKILL, syscall.SIGTERM}).Draw(rt, "end"),
	}
}

// historyOrigin has an image of each character.
type historyOrigin struct {
	url    string
	images []*fetchtest.Image

	mu   sync.Mutex
	busy map[string]bool // who was told to come again
}

// The images by what the origin does with them; the digest that goes with wrong is of nothing.
const (
	fine = iota
	slowly
	wrong
	missing
	busyOnce
	kinds
)

func newHistoryOrigin(t *testing.T) *historyOrigin {
	o := &historyOrigin{}
	for i := range kinds {
		o.images = append(o.images, fetchtest.NewImage(uint64(2000+i), []int64{5000, 500_000, 70_000, 1, 40_000}[i]))
	}
	s := httptest.NewServer(http.HandlerFunc(o.serve))
	t.Cleanup(s.Close)
	o.url = s.URL
	return o
}

func (o *historyOrigin) reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.busy = map[string]bool{}
}

// serve serves /kind/number: each fetch has a number of its own, so that a busy origin is busy once for each.
func (o *historyOrigin) serve(w http.ResponseWriter, r *http.Request) {
	kind := kindOf(r.URL.Path)
	o.mu.Lock()
	busy := kind == busyOnce && !o.busy[r.URL.Path]
	o.busy[r.URL.Path] = true
	o.mu.Unlock()
	switch {
	case busy:
		w.WriteHeader(http.StatusServiceUnavailable)
	case kind == missing || kind < 0:
		http.NotFound(w, r)
	default:
		content := o.images[kind].Reader()
		w.Header().Set("ETag", strconv.Quote(o.images[kind].SHA256()[:16]))
		if kind == slowly {
			http.ServeContent(w, r, "", time.Time{}, &slow{SectionReader: content})
			return
		}
		http.ServeContent(w, r, "", time.Time{}, content)
	}
}

func kindOf(path string) int {
	kind, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	n, err := strconv.Atoi(kind)
	if err != nil || n < 0 || n >= kinds {
		return -1
	}
	return n
}

// history is what callers saw. Its times are of one clock, out here.
type history struct {
	t *testing.T
	a *agent
	c *client
	o *historyOrigin

	mu      sync.Mutex
	life    int
	ends    []time.Time // when the lives before were ended; who has waited since then may see the fetches queued again
	asked   int         // POSTs
	fetches map[string]*told
	keys    []string // in the order in which they became known
	strays  []string
}

// told is all that callers were told of one fetch.
type told struct {
	kind    int
	seen    []look
	deletes []deletion
	pauses  []pausing
}

// look is a status that was seen between begin and end; gone stands for no such fetch.
type look struct {
	begin, end time.Time
	life       int
	status     string
	phase      string
	how        string
}

const gone = "gone"

// deletion is a DELETE; code 0 stands for no answer.
type deletion struct {
	begin, end time.Time
	life, code int
	pruned     bool
}

// pausing is a PATCH that pauses or resumes; code 0 stands for no answer.
type pausing struct {
	begin, end time.Time
	life, code int
	paused     bool
	effective  bool // it was answered that the fetch is queued and paused: else it may have ended before, or be about to pause
}

func (l look) String() string { return strings.TrimSpace(l.status+" "+l.phase) + " by " + l.how }

// live lets the callers do their scripts, and ends the agent meanwhile.
func (h *history) live(l life, last bool) {
	var wg sync.WaitGroup
	for _, script := range l.callers {
		wg.Go(func() {
			for _, s := range script {
				time.Sleep(s.after) // the pace of the callers
				if !h.step(s) {
					return
				}
			}
		})
	}
	if last {
		wg.Wait()
		return
	}
	time.Sleep(l.after) // the instant is the test
	h.ends = append(h.ends, time.Now())
	h.a.stop(h.t, l.end)
	wg.Wait()
	h.a.start(h.t)
	h.life++
}

// step makes one request. It tells whether there was an answer.
func (h *history) step(s step) bool {
	switch s.do {
	case "post":
		return h.post(s.what % kinds)
	case "list":
		return h.list() != nil
	}
	h.mu.Lock()
	if len(h.keys) == 0 {
		h.mu.Unlock()
		return true
	}
	key := h.keys[s.what%len(h.keys)]
	h.mu.Unlock()
	switch s.do {
	case "get":
		return h.get(key)
	case "pause", "resume":
		return h.pause(key, s.do == "pause")
	}
	return h.delete(key)
}

func (h *history) post(kind int) bool {
	sum := h.o.images[kind].SHA256()
	if kind == wrong {
		sum = strings.Repeat("0d", 32)
	}
	h.mu.Lock()
	h.asked++
	n := h.asked
	h.mu.Unlock()
	begin := time.Now()
	r, err := h.c.try("POST", fetches, order(fmt.Sprintf("%s/%d/%d", h.o.url, kind, n), sum, "force", true))
	if err != nil || r.code == 503 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.code != 202 {
		h.strays = append(h.strays, fmt.Sprintf("%s: %d %s", r.what, r.code, r.raw))
		return true
	}
	f := h.known(r.str("key"), kind)
	f.seen = append(f.seen, look{begin, time.Now(), h.life, "queued", "", "POST"}) // it does not say more
	return true
}

// known is the entry of a fetch. The caller has the lock.
func (h *history) known(key string, kind int) *told {
	if h.fetches[key] == nil {
		h.fetches[key] = &told{kind: kind}
		h.keys = append(h.keys, key)
	}
	return h.fetches[key]
}

func (h *history) get(key string) bool {
	begin := time.Now()
	r, err := h.c.try("GET", fetches+"/"+key, "")
	if err != nil || r.code == 503 {
		return false
	}
	h.saw(key, begin, r, "GET")
	return true
}

// saw takes down what an answer about one fetch says.
func (h *history) saw(key string, begin time.Time, r reply, how string) {
	end := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	l := look{begin, end, h.life, r.str("body.status"), r.str("body.phase"), how}
	switch {
	case r.code == 404:
		l.status = gone
	case r.code != 200 && r.code != 202 || l.status == "":
		h.strays = append(h.strays, fmt.Sprintf("%s: %d %s", r.what, r.code, r.raw))
		return
	}
	h.fetches[key].seen = append(h.fetches[key].seen, l)
}

func (h *history) delete(key string) bool {
	h.mu.Lock()
	d := deletion{begin: time.Now(), life: h.life}
	h.fetches[key].deletes = append(h.fetches[key].deletes, d)
	i := len(h.fetches[key].deletes) - 1
	h.mu.Unlock()
	r, err := h.c.try("DELETE", fetches+"/"+key, "")
	if err != nil || r.code == 503 {
		return false
	}
	switch {
	case r.code == 404:
		h.saw(key, d.begin, r, "DELETE")
	case r.code == 200 && r.get("body") == nil:
		d.pruned = true
	case r.code == 200, r.code == 202:
		h.saw(key, d.begin, r, "DELETE")
	case r.code != 409:
		h.mu.Lock()
		h.strays = append(h.strays, fmt.Sprintf("%s: %d %s", r.what, r.code, r.raw))
		h.mu.Unlock()
	}
	d.end, d.code = time.Now(), r.code
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fetches[key].deletes[i] = d
	return true
}

func (h *history) pause(key string, paused bool) bool {
	h.mu.Lock()
	p := pausing{begin: time.Now(), life: h.life, paused: paused}
	h.fetches[key].pauses = append(h.fetches[key].pauses, p)
	i := len(h.fetches[key].pauses) - 1
	h.mu.Unlock()
	r, err := h.c.try("PATCH", fetches+"/"+key, fmt.Sprintf(`{"paused": %v}`, paused))
	if err != nil || r.code == 503 {
		return false
	}
	if r.code != 409 {
		h.saw(key, p.begin, r, "PATCH")
	}
	p.end, p.code = time.Now(), r.code
	p.effective = paused && r.code == 200 && r.str("body.status") == "queued" && r.get("body.paused") == true
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fetches[key].pauses[i] = p
	return true
}

// list takes down what it says of all, and gives it; nil if there was no answer.
func (h *history) list() map[string]reply {
	h.mu.Lock()
	before := slices.Clone(h.keys)
	h.mu.Unlock()
	begin := time.Now()
	r, err := h.c.try("GET", fetches, "")
	if err != nil || r.code != 200 {
		return nil
	}
	end := time.Now()
	rows := map[string]reply{}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, item := range r.get("items").([]any) {
		row := reply{json: item}
		key := row.str("key")
		rows[key] = row
		kind := kindOf(strings.TrimPrefix(row.str("body.url"), h.o.url))
		f := h.known(key, kind)
		f.seen = append(f.seen, look{begin, end, h.life, row.str("body.status"), row.str("body.phase"), "list"})
	}
	for _, key := range before { // were there before it was asked
		if _, ok := rows[key]; !ok {
			h.fetches[key].seen = append(h.fetches[key].seen, look{begin, end, h.life, gone, "", "list"})
		}
	}
	return rows
}

// settle resumes all, waits until all have ended, and looks once more at each.
func (h *history) settle() {
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(5 * time.Millisecond) {
		rows := h.list()
		for key, row := range rows {
			if row.get("body.paused") == true {
				h.pause(key, false)
			}
		}
		if rows != nil && unfinished(rows) == 0 {
			break
		} else if time.Now().After(end) {
			h.t.Fatalf("fetches that do not end: %v", rows)
		}
	}
	for _, key := range h.keys {
		h.get(key)
	}
}

// forget prunes all, whoever ordered it, and empties all slots.
func (h *history) forget() {
	for end := time.Now().Add(fetchtest.Patience); ; time.Sleep(time.Millisecond) {
		list := h.do("GET", fetches)
		items := list.get("items").([]any)
		for _, item := range items {
			h.do("DELETE", fetches+"/"+reply{json: item}.str("key"))
		}
		if len(items) == 0 {
			break
		}
		if time.Now().After(end) {
			h.t.Fatalf("fetches that do not go away: %s", list.raw)
		}
	}
	for _, item := range h.do("GET", slotsPath).get("items").([]any) {
		if slot := (reply{json: item}); slot.str("body.sha256") != "" {
			h.do("DELETE", slotsPath+"/"+slot.str("key")).want(h.t, 200)
		}
	}
	if left := h.a.partials(h.t); left != nil {
		h.t.Errorf("left behind: %v", left)
	}
}

// do is a request that has to be answered.
func (h *history) do(method, path string) reply {
	r, err := h.c.try(method, path, "")
	check(h.t, err)
	return r
}

// allowed tells whether a fetch that was seen as a may be seen as b later; restarted, if the agent was started between,
// paused, if it may have been paused.
func allowed(a, b look, restarted, paused bool) bool {
	switch a.status {
	case "queued":
		return true
	case "in-progress":
		switch {
		case b.status == "queued":
			return restarted || paused && a.phase != "installing"
		case a.phase == "installing" && !restarted:
			return b.phase == "installing" || b.status != "in-progress" && b.status != "cancelled"
		}
		return true
	case gone:
		return b.status == gone
	}
	return b.status == a.status || b.status == gone
}

// judge holds what was seen against the life of a fetch: its status moves forward, but for one step back by a restart or
// a pause; what is paused stays queued until it is resumed; what ended stays as it ended; what was accepted is there until somebody prunes it, once; a DELETE does what it answers;
// and each ends in a way that fits its image.
func (h *history) judge() (bad []string) {
	bad = h.strays
	if len(h.fetches) > h.asked {
		bad = append(bad, fmt.Sprintf("%d fetches of %d orders", len(h.fetches), h.asked))
	}
	for key, f := range h.fetches {
		wrongly := func(format string, args ...any) {
			bad = append(bad, fmt.Sprintf("fetch %s of kind %d: ", key, f.kind)+fmt.Sprintf(format, args...))
		}
		for _, a := range f.seen {
			for _, b := range f.seen {
				if later := a.life < b.life || a.life == b.life && a.end.Before(b.begin); later && !allowed(a, b, a.life != b.life || h.ended(b), f.paused(a, b)) {
					wrongly("%v, later %v", a, b)
				}
			}
		}
		f.judgeDeletes(wrongly)
		f.judgePauses(wrongly)
		ends := map[int][]string{fine: {"finished"}, slowly: {"finished"}, busyOnce: {"finished"}, wrong: {"failed"}, missing: {"failed"}}[f.kind]
		if last := f.seen[len(f.seen)-1].status; last != gone && !slices.Contains(ends, last) && !(last == "cancelled" && len(f.deletes) > 0) {
			wrongly("it is %s, with %d DELETEs", last, len(f.deletes))
		}
	}
	return bad
}

// ended tells whether the agent was told to end before the answer to l came.
func (h *history) ended(l look) bool { return l.life < len(h.ends) && h.ends[l.life].Before(l.end) }

// paused tells whether a pause can have had its effect after a and before b.
func (f *told) paused(a, b look) bool {
	return slices.ContainsFunc(f.pauses, func(p pausing) bool {
		over := p.effective && p.life == a.life && p.end.Before(a.begin)
		return p.paused && p.code != 409 && p.code != 404 && !over && !p.begin.After(b.end)
	})
}

func (f *told) judgePauses(wrongly func(format string, args ...any)) {
	for _, p := range f.pauses {
		if !p.effective {
			continue
		}
		var resumed time.Time // at the earliest
		for _, r := range f.pauses {
			if !r.paused && (r.code == 0 || r.end.After(p.begin)) && (resumed.IsZero() || r.begin.Before(resumed)) {
				resumed = r.begin
			}
		}
		for _, s := range f.seen {
			if p.end.Before(s.begin) && (resumed.IsZero() || s.end.Before(resumed)) && (s.status == "in-progress" || s.status == "finished" || s.status == "failed") {
				wrongly("paused, later %v", s)
			}
		}
	}
}

func (f *told) judgeDeletes(wrongly func(format string, args ...any)) {
	pruned := 0
	for _, d := range f.deletes {
		if d.pruned {
			pruned++
		}
		for _, s := range f.seen {
			switch later := d.life < s.life || d.life == s.life && d.code != 0 && d.end.Before(s.begin); {
			case !later:
			case d.pruned && s.status != gone:
				wrongly("pruned, later %v", s)
			case d.code == 202 && !slices.Contains([]string{"in-progress", "cancelled", gone}, s.status):
				wrongly("a cancel was accepted, later %v", s)
			}
		}
	}
	if pruned > 1 {
		wrongly("pruned %d times", pruned)
	}
	for _, s := range f.seen {
		if s.status == gone && !slices.ContainsFunc(f.deletes, func(d deletion) bool {
			return (d.pruned || d.code == 0) && !d.begin.After(s.end)
		}) {
			wrongly("nobody pruned it: %v", s)
		}
	}
}
