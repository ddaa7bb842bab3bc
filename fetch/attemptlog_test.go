package fetch_test

import (
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/store"
)

// told is what a test can know of a store.Attempt: of durations, whether there is one.
type told struct {
	Number                       int
	URL, RedirectedTo, Address   string
	Ended                        bool
	DNS, Connect, TLS, FirstByte bool
	From                         int64 // -1: no stream
	Bytes                        int64
	Connections, Status          int
	Code, Class                  string
	Measured                     bool
}

func (b *box) attempts(key string) []store.Attempt {
	b.t.Helper()
	list, _, err := b.fetch.Attempts(b.t.Context(), key)
	if err != nil {
		b.t.Fatal(err)
	}
	return list
}

// wantAttempts compares the attempts of a fetch, and looks whether they are sane.
func (b *box) wantAttempts(key string, want ...told) {
	b.t.Helper()
	var got []told
	for _, a := range b.attempts(key) {
		g := told{a.Number, a.URL, a.RedirectedTo, a.Address, !a.Ended.IsZero(), a.DNS != nil, a.Connect != nil, a.TLS != nil, a.FirstByte != nil, -1,
			a.BytesReceived, a.Connections, a.HTTPStatus, a.ErrorCode, a.ErrorClass, a.Bottleneck != ""}
		if a.ResumedFrom != nil {
			g.From = *a.ResumedFrom
		}
		if (a.ErrorCode == "") != (a.Error == "") || a.ErrorCode == "" && a.ErrorClass != "" {
			b.t.Errorf("attempt %d ended with %q: %q", a.Number, a.ErrorCode, a.Error)
		}
		if age := time.Since(a.Started); age < 0 || age > time.Hour || g.Ended && a.Ended.Before(a.Started) {
			b.t.Errorf("attempt %d ran from %s to %s", a.Number, a.Started, a.Ended)
		}
		got = append(got, g)
	}
	if d := cmp.Diff(want, got); d != "" {
		b.t.Errorf("attempts (-want +got):\n%s", d)
	}
}

func TestAttempts(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(71, 3<<20)
	srv, other := fetchtest.NewHTTP(t, nil), fetchtest.NewHTTP(t, nil)
	cut := fetchtest.Whole(img)
	cut.Fault, cut.After = fetchtest.FIN, 1<<20
	wrong := fetchtest.Whole(fetchtest.NewImage(72, img.Size()))
	wrong.Modified, wrong.ETag = time.Time{}, ""
	good := fetchtest.Whole(img).Serve
	direct := func(srv *fetchtest.HTTP, path string) told {
		return told{Number: 1, URL: srv.URL + path, Address: srv.Addr, Ended: true, Connect: true, FirstByte: true, From: -1, Connections: 1}
	}
	with := func(a told, change func(*told)) told { change(&a); return a }
	for _, tc := range []struct {
		name string
		url  string
		want []told
	}{
		{"503, then good", srv.Handle("/busy.iso", fetchtest.Sequence(fetchtest.Status(503), good)), []told{
			with(direct(srv, "/busy.iso"), func(a *told) { a.Status, a.Code, a.Class = 503, "http_503", "temporary" }),
			with(direct(srv, "/busy.iso"), func(a *told) { a.Number, a.Status, a.From, a.Bytes, a.Measured = 2, 200, 0, img.Size(), true }),
		}},
		{"cut, then resumed", srv.Handle("/cut.iso", fetchtest.Sequence(cut.Serve, good)), []told{
			with(direct(srv, "/cut.iso"), func(a *told) {
				a.Status, a.From, a.Bytes, a.Code, a.Class, a.Measured = 200, 0, 1<<20, "broken", "temporary", true
			}),
			with(direct(srv, "/cut.iso"), func(a *told) { a.Number, a.Status, a.From, a.Bytes, a.Measured = 2, 206, 1<<20, 2<<20, true }),
		}},
		{"wrong image", srv.Handle("/wrong.iso", wrong.Serve), []told{
			with(direct(srv, "/wrong.iso"), func(a *told) {
				a.Status, a.From, a.Bytes, a.Code, a.Class, a.Measured = 200, 0, img.Size(), "digest", "permanent", true
			}),
		}},
		{"redirect", srv.Handle("/away.iso", fetchtest.Redirect(other.Handle("/there.iso", good)+"?sig=canary")) + "?token=canary", []told{
			with(direct(other, ""), func(a *told) {
				a.URL, a.RedirectedTo = srv.URL+"/away.iso?…", other.URL+"/there.iso?…"
				a.Status, a.From, a.Bytes, a.Measured = 200, 0, img.Size(), true
			}),
		}},
		{"no name", "http://nowhere.invalid/x.iso", []told{
			{Number: 1, URL: "http://nowhere.invalid/x.iso", Ended: true, DNS: true, From: -1, Code: "dns", Class: "temporary"},
			{Number: 2, URL: "http://nowhere.invalid/x.iso", Ended: true, DNS: true, From: -1, Code: "dns", Class: "temporary"},
			{Number: 3, URL: "http://nowhere.invalid/x.iso", Ended: true, DNS: true, From: -1, Code: "dns", Class: "temporary"},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBox(t, t.TempDir(), nil)
			key := b.enqueue(tc.url, img.SHA256())
			f := b.until(key, final)
			b.wantAttempts(key, tc.want...)
			last := tc.want[len(tc.want)-1]
			if f.Attempts != last.Number || (f.Status == store.Finished) != (last.Code == "") || f.ErrorCode != last.Code {
				t.Errorf("the fetch is %+v", f)
			}
			if said := fmt.Sprintf("%+v", b.attempts(key)); strings.Contains(said, "canary") {
				t.Errorf("a query is in %s", said)
			}
			if out, _, err := b.fetch.Delete(t.Context(), key, admin); out != store.Pruned || err != nil {
				t.Fatal(out, err)
			}
			if _, _, err := b.fetch.Attempts(t.Context(), key); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("after the prune: %v", err)
			}
			if left, err := b.store.Attempts(t.Context(), key); len(left) > 0 || err != nil {
				t.Errorf("after the prune there is %+v, %v", left, err)
			}
		})
	}
}

// TestAttemptLive: an attempt that hangs can be looked at, and what is said of it when it has been cut short stays over a
// restart.
func TestAttemptLive(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(73, 4<<20)
	srv := fetchtest.NewHTTP(t, nil)
	stall := fetchtest.Whole(img)
	stall.Fault, stall.After = fetchtest.Stall, 1<<20
	url := srv.Handle("/a.iso", stall.Serve)
	dir := t.TempDir()
	b := newBox(t, dir, nil)
	key := b.enqueue(url, img.SHA256())
	b.arrives(key, 1<<20)
	live := told{Number: 1, URL: url, Address: srv.Addr, Connect: true, FirstByte: true, From: 0, Bytes: 1 << 20, Connections: 1, Status: 200, Measured: true}
	// It is the network that is waited for, and the longer the more.
	a := b.attempts(key)[0]
	for end := time.Now().Add(fetchtest.Patience); a.Network < 100 || a.Bottleneck != "network"; a = b.attempts(key)[0] {
		if time.Now().After(end) {
			t.Fatalf("it is %+v", a)
		}
		time.Sleep(time.Millisecond)
	}
	b.wantAttempts(key, live)
	b.close()

	again := stall
	again.After = 1 << 20
	srv.Handle("/a.iso", again.Serve)
	b = newBox(t, dir, nil)
	b.arrives(key, 2<<20)
	ended, second := live, live
	ended.Ended, ended.Code = true, "stopped"
	second.Number, second.Status, second.From = 2, 206, 1<<20
	b.wantAttempts(key, ended, second)
	if a := b.attempts(key)[0]; a.Bottleneck != "network" || a.Network < 100 {
		t.Errorf("the first was %+v", a)
	}
	if _, f, err := b.fetch.Delete(t.Context(), key, admin); f.Status != store.Cancelled || err != nil {
		t.Fatal(f, err)
	}
	second.Ended, second.Code = true, "cancelled"
	b.wantAttempts(key, ended, second)
}

// TestAttemptSlow: a server that takes its time is what limits a download.
func TestAttemptSlow(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(74, 2<<20)
	srv := fetchtest.NewHTTP(t, nil)
	b := newBox(t, t.TempDir(), nil)
	slow := fetchtest.Whole(img)
	slow.Fault, slow.After = fetchtest.Stall, 1<<20
	key := b.enqueue(srv.Handle("/a.iso", slow.Serve), img.SHA256())
	x := srv.Next(t)
	for end := time.Now().Add(fetchtest.Patience); len(b.attempts(key)) == 0 || b.attempts(key)[0].Network < 300; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it is %+v", b.attempts(key))
		}
	}
	x.Release()
	if f := b.until(key, final); f.Status != store.Finished {
		t.Fatalf("got %+v", f)
	}
	if a := b.attempts(key)[0]; a.Bottleneck != "network" || a.Network < 300 || a.Hash+a.Disk >= a.Network || a.Limit != 0 || a.Error != "" {
		t.Errorf("got %+v", a)
	}
}

// TestAttemptUnrecorded: a record that cannot be written costs nothing but itself.
func TestAttemptUnrecorded(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(75, 1<<20)
	dir := t.TempDir()
	b := newBox(t, dir, nil)
	db, err := sql.Open("sqlite3", filepath.Join(dir, "slotfetch.db")+"?_busy_timeout=5000")
	if err == nil {
		_, err = db.Exec("CREATE TRIGGER no BEFORE INSERT ON attempts BEGIN SELECT RAISE(ABORT, 'no'); END")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	key := b.enqueue(fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Sequence(fetchtest.Status(503), fetchtest.Whole(img).Serve)), img.SHA256())
	if f := b.until(key, final); f.Status != store.Finished || f.Attempts != 2 {
		t.Errorf("got %+v", f)
	}
	b.wantAttempts(key)
}

func TestBottleneck(t *testing.T) {
	const s = time.Second
	for _, tc := range []struct {
		network, hash, disk, limit time.Duration
		ms                         [4]int64
		want                       string
	}{
		{0, 0, 0, 0, [4]int64{}, ""},
		{3 * s, 2 * s, s, 0, [4]int64{3000, 2000, 1000, 0}, "network"},
		{s, 3 * s, 2 * s, 0, [4]int64{1000, 3000, 2000, 0}, "hash"},
		{s, 2 * s, 3 * s, 0, [4]int64{1000, 2000, 3000, 0}, "disk"},
		{9 * s, 2 * s, 3 * s, 8 * s, [4]int64{1000, 2000, 3000, 8000}, "limit"}, // which is within network
		{5 * s, 3 * s, s, 3 * s, [4]int64{2000, 3000, 1000, 3000}, "hash"},
		{s, 0, 0, 2 * s, [4]int64{0, 0, 0, 2000}, "limit"},
	} {
		if ms, name := fetch.Bottleneck(tc.network, tc.hash, tc.disk, tc.limit); ms != tc.ms || name != tc.want {
			t.Errorf("%+v: %v, %q", tc, ms, name)
		}
	}
}
