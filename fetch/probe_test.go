package fetch_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"slotfetch/api"
	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
	"slotfetch/slots"
	"slotfetch/store"
)

// wanted is a request as a client makes it; the first URL may have credentials.
func wanted(t testing.TB, sha256 string, urls ...string) fetch.Request {
	t.Helper()
	q := fetch.Request{SHA256: sha256}
	for i, raw := range urls {
		u, cred, err := source.ParseURL(raw)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			q.URL, q.Secrets.URL = u, cred
			continue
		}
		q.Mirrors, q.Secrets.Mirrors = append(q.Mirrors, u), append(q.Secrets.Mirrors, cred)
	}
	return q
}

// look probes q and wants that nothing has changed by that: no row, no file, no reservation.
func (b *box) look(q fetch.Request) api.ProbeBody {
	b.t.Helper()
	before := b.traces()
	body, err := b.fetch.Probe(b.t.Context(), q)
	if err != nil {
		b.t.Fatal(err)
	}
	if d := cmp.Diff(before, b.traces()); d != "" {
		b.t.Errorf("the look changed something:\n%s", d)
	}
	if b.t.Failed() || testing.Verbose() {
		b.t.Logf("verdict %s", body.Verdict)
		for _, c := range body.Checks {
			b.t.Logf("%-11s %-7s %s", c.Name, c.Result, c.Message)
		}
	}
	return body
}

// traces is all that a fetch leaves behind.
func (b *box) traces() []string {
	b.t.Helper()
	var all []string
	err := filepath.WalkDir(filepath.Join(b.dir, "slots"), func(path string, e fs.DirEntry, err error) error {
		all = append(all, path)
		return err
	})
	if err == nil {
		err = b.fetch.Each(b.t.Context(), func(f store.Fetch) error {
			row, err := json.Marshal(f)
			all = append(all, string(row))
			return err
		})
	}
	if err == nil {
		var list []slots.Slot
		list, err = b.slots.List()
		for _, s := range list {
			all = append(all, fmt.Sprint(s.ID, s.Manifest != nil, s.Reserved))
		}
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}

// troubles are the checks with a warning or a failure: "NAME RESULT CODE", those of a mirror with a number before.
func troubles(body api.ProbeBody) []string {
	var all, urls []string
	for _, c := range body.Checks {
		which := ""
		if c.URL != nil {
			if !slices.Contains(urls, *c.URL) {
				urls = append(urls, *c.URL)
			}
			if n := slices.Index(urls, *c.URL); n > 0 {
				which = fmt.Sprint(n, " ")
			}
		}
		if c.Code != nil {
			all = append(all, which+c.Name+" "+c.Result+" "+*c.Code)
		}
	}
	return all
}

// ranging is a file as a very good server has it.
func ranging(img *fetchtest.Image) fetchtest.Handler {
	f := fetchtest.Whole(img)
	f.Ends = true
	return f.Serve
}

// dated is text with a Date, which a good server sends.
func dated(body string) fetchtest.Handler {
	return func(x *fetchtest.Exchange) {
		x.Printf("HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Length: %d\r\n\r\n%s", time.Now().UTC().Format(http.TimeFormat), len(body), body)
	}
}

func TestProbe(t *testing.T) {
	img := fetchtest.NewImage(95, 3<<20+1)
	s := fetchtest.NewHTTP(t, nil)
	good := s.Handle("/a.iso", ranging(img))
	again := s.Handle("/again.iso", ranging(img))
	other := s.Handle("/other.iso", ranging(fetchtest.NewImage(96, 5000)))
	private := s.Handle("/private.iso", fetchtest.Protected("ann", "s3cret", ranging(img)))
	otherHost := fetchtest.NewHTTP(t, nil).Handle("/private.iso", fetchtest.Protected("ann", "s3cret", ranging(img)))
	none, dead := s.URL+"/none.iso", "http://127.0.0.1:1/a.iso"
	meta := s.Handle("/a.meta4", dated(metalink(img.SHA256(), again, good)))
	metaDead := s.Handle("/dead.meta4", dated(metalink(img.SHA256(), dead, good)))
	metaOnlyDead := s.Handle("/only.meta4", dated(metalink(img.SHA256(), dead)))
	metaOther := s.Handle("/other.meta4", dated(metalink(strings.Repeat("ab", 32), good)))
	sum := img.SHA256()
	for _, tc := range []struct {
		name     string
		q        fetch.Request
		verdict  string
		size     int64
		troubles []string
	}{
		{"good", wanted(t, sum, good), "ok", img.Size(), nil},
		{"without a digest", wanted(t, "", good), "warning", img.Size(), []string{"checksum warning no_checksum"}},
		{"404", wanted(t, sum, none), "fail", -1, []string{"answer fail http_404"}},
		{"401", wanted(t, sum, private), "fail", -1, []string{"credentials fail http_401"}},
		{"credentials", wanted(t, sum, strings.Replace(private, "//", "//ann:s3cret@", 1)), "warning", img.Size(), []string{"credentials warning clear_text"}},
		{"a mirror is dead", wanted(t, sum, good, dead), "warning", img.Size(), []string{"1 connect fail refused"}},
		{"the URL is dead", wanted(t, sum, dead, again), "warning", img.Size(), []string{"connect fail refused"}},
		{"both are dead", wanted(t, sum, dead, none), "fail", -1, []string{"connect fail refused", "1 answer fail http_404"}},
		{"a mirror has another file", wanted(t, sum, good, other), "warning", img.Size(), []string{"1 size warning size_differs"}},
		{"credentials are of the URL's origin", wanted(t, sum, strings.Replace(private, "//", "//ann:s3cret@", 1), private+"?2", otherHost), "warning", img.Size(),
			[]string{"credentials warning clear_text", "1 credentials warning clear_text", "2 credentials fail http_401"}},
		{"Metalink", wanted(t, sum, meta), "ok", img.Size(), nil},
		{"Metalink without a digest", wanted(t, "", meta), "warning", img.Size(), []string{"checksum warning no_checksum"}},
		{"Metalink whose first place is dead", wanted(t, sum, metaDead), "warning", -1, []string{"1 connect fail refused"}},
		{"Metalink whose only place is dead", wanted(t, sum, metaOnlyDead), "fail", -1, []string{"1 connect fail refused"}},
		{"Metalink of another image", wanted(t, sum, metaOther), "fail", -1, []string{"metalink fail metalink"}},
		{"no Metalink", wanted(t, sum, s.URL+"/none.meta4"), "fail", -1, []string{"answer fail http_404"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBox(t, t.TempDir(), nil)
			body := b.look(tc.q)
			if d := cmp.Diff(tc.troubles, troubles(body)); d != "" {
				t.Errorf("checks (-want +got):\n%s", d)
			}
			if body.Verdict != tc.verdict {
				t.Errorf("verdict %s, want %s", body.Verdict, tc.verdict)
			}
			if body.URL != tc.q.URL.String() || body.SlotID == nil || *body.SlotID != 1 || body.Free == nil || *body.Free <= 0 || body.Deduplicated {
				t.Errorf("got %+v", body)
			}
			known := tc.size >= 0
			if (body.Size != nil) != known || known && *body.Size != tc.size || (body.BytesPerSecond != nil) != known || (body.ETASeconds != nil) != known {
				t.Errorf("size %v, rate %v, ETA %v", body.Size, body.BytesPerSecond, body.ETASeconds)
			}
			var names []string
			for _, c := range body.Checks {
				if text := fmt.Sprint(c.Message, c.Remedy); strings.Contains(text, "s3cret") {
					t.Errorf("it has a secret: %s", text)
				}
				names = append(names, c.Name)
			}
			if names[0] != "checksum" || names[1] != "slot" || !slices.Contains(names, "space") {
				t.Errorf("the checks are %v", names)
			}
		})
	}
}

// TestProbeSlot: the box says beforehand what the fetch would say, word for word.
func TestProbeSlot(t *testing.T) {
	img := fetchtest.NewImage(95, 1<<20)
	url := fetchtest.NewHTTP(t, nil).Handle("/a.iso", ranging(img))
	b := newBox(t, t.TempDir(), nil)
	same := func(name string, q fetch.Request) {
		t.Helper()
		q.Force = true
		body := b.look(q)
		f, err := b.fetch.Enqueue(q, admin)
		if err != nil {
			t.Fatal(err)
		}
		f = b.until(f.Key, final)
		var said string
		for _, c := range body.Checks {
			if c.Result == "fail" {
				said = c.Name + ": " + c.Message + " " + *c.Remedy
			}
		}
		if f.Status != store.Failed || said != name+": "+f.Error || body.Verdict != "fail" {
			t.Errorf("it said %q, and the fetch is %s: %s", said, f.Status, f.Error)
		}
	}
	two := 2
	q := wanted(t, img.SHA256(), url)
	b.until(b.enqueue(url, img.SHA256()), final)
	if err := b.slots.SetBoot(&two, nil); err != nil {
		t.Fatal(err)
	}
	q.Slot = &two
	same("slot", q) // protected
	if err := b.slots.SetBoot(nil, nil); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		b.until(b.enqueue(url, img.SHA256()), final)
	}
	same("slot", q) // occupied
	q.Slot = nil
	same("slot", q) // full

	// What a slot has is not asked for, unless it is.
	asked := b.look(q)
	if !asked.Deduplicated || asked.Verdict != "ok" || *asked.SlotID != 1 || *asked.Size != img.Size() || asked.BytesPerSecond != nil || len(asked.Checks) != 2 {
		t.Errorf("got %+v", asked)
	}

	full, err := slots.Open(slots.Config{Dir: t.TempDir(), First: 1, Count: 5, Reserve: 1 << 62, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { full.Close() })
	b = newBox(t, t.TempDir(), func(c *fetch.Config) { c.Slots = full })
	same("space", q)
}

// TestProbesAtATime: a third look is refused while two go on, and all end when the manager does.
func TestProbesAtATime(t *testing.T) {
	b := newBox(t, t.TempDir(), nil)
	s := fetchtest.NewHTTP(t, nil)
	q := wanted(t, strings.Repeat("ab", 32), s.Handle("/a.iso", fetchtest.Mute))
	ends := make(chan api.ProbeBody, 2)
	probe := func() {
		body, err := b.fetch.Probe(context.Background(), q)
		if err != nil {
			body.Verdict = err.Error()
		}
		ends <- body
	}
	go probe()
	go probe()
	first, second := s.Next(t), s.Next(t)
	if _, err := b.fetch.Probe(t.Context(), q); err == nil {
		t.Error("a third look went on")
	}
	first.Release()
	if body := fetchtest.Await(t, "the first look", ends); body.Verdict != "fail" {
		t.Errorf("got %+v", body)
	}
	go probe()
	s.Next(t)
	if err := b.fetch.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if body := fetchtest.Await(t, "the looks to end with the manager", ends); body.Verdict != "the agent is stopping" {
			t.Errorf("a look that was broken off says %+v", body)
		}
	}
	fetchtest.Await(t, "the connection to end", second.Closed)
}
