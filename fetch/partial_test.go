package fetch_test

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
	"slotfetch/store"
)

// await waits until something is so.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(fetchtest.Patience); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no sign of %s", what)
		}
	}
}

// brokenOff serves an image until so many bytes of an answer are sent.
func brokenOff(img *fetchtest.Image, after int64) fetchtest.Handler {
	f := fetchtest.Whole(img)
	f.Fault, f.After = fetchtest.FIN, after
	return f.Serve
}

// What was fetched before a partial was given up is no measure for what comes after: a source that gets on a little with each
// attempt gets there.
func TestProgressAfterRestart(t *testing.T) {
	t.Parallel()
	img, other := fetchtest.NewImage(92, 4<<20), fetchtest.NewImage(93, 4<<20)
	bits := func(x *fetchtest.Exchange) { // a probation at first
		after := int64(256 << 10)
		if x.Header.Get("Range") == "" {
			after = 1200 << 10
		}
		brokenOff(img, after)(x)
	}
	for _, tc := range []struct {
		name   string
		url    fetchtest.Handler
		mirror fetchtest.Handler
	}{
		{"a mirror after the URL", fetchtest.Sequence(brokenOff(img, 3<<20), fetchtest.Status(404)), bits},
		{"a file that is replaced", fetchtest.Sequence(brokenOff(other, 3<<20), bits), fetchtest.Status(404)},
		{"a mirror after a URL with another file", fetchtest.Whole(other).Serve, bits},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, t.TempDir(), nil)
			f := b.until(b.mirrored(img.SHA256(), fetchtest.NewHTTP(t, nil).Handle("/a.iso", tc.url), fetchtest.NewHTTP(t, nil).Handle("/b.iso", tc.mirror)), final)
			if f.Status != store.Finished || f.Attempts < 8 {
				t.Errorf("it is %s after %d attempts: %s %s", f.Status, f.Attempts, f.ErrorCode, f.Error)
			}
		})
	}
}

// A partial is given up later than nothing: its server may only be away for a while.
func TestKeptPartial(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(94, 4<<20)
	var away []fetchtest.Handler
	for range 20 {
		away = append(away, fetchtest.Status(503))
	}
	server := fetchtest.NewHTTP(t, nil)
	b := newBox(t, t.TempDir(), func(c *fetch.Config) { c.Retry.Keep = fetchtest.Patience })
	some := b.enqueue(server.Handle("/some.iso", fetchtest.Sequence(append(append([]fetchtest.Handler{brokenOff(img, 3<<20)}, away...), fetchtest.Whole(img).Serve)...)), img.SHA256())
	if f := b.until(some, final); f.Status != store.Finished || f.Attempts != 22 || f.ResumedFrom < 2<<20 {
		t.Errorf("with a partial it is %s after %d attempts, the last from %d: %s", f.Status, f.Attempts, f.ResumedFrom, f.Error)
	}
	useless := fetchtest.Whole(img)
	useless.ETag, useless.Modified, useless.Fault, useless.After = "", time.Time{}, fetchtest.FIN, 3<<20
	lost := b.enqueue(server.Handle("/lost.iso", fetchtest.Sequence(useless.Serve, fetchtest.Status(503))), fetchtest.NewImage(95, 1000).SHA256())
	if f := b.until(lost, final); f.Status != store.Failed || f.ErrorCode != "http_503" || f.Attempts != 4 {
		t.Errorf("with a part that nobody can continue it is %s after %d attempts: %s", f.Status, f.Attempts, f.Error)
	}
	none := b.enqueue(server.Handle("/none.iso", fetchtest.Status(503)), fetchtest.NewImage(95, 1000).SHA256())
	if f := b.until(none, final); f.Status != store.Failed || f.ErrorCode != "http_503" || f.Attempts != 3 {
		t.Errorf("with nothing it is %s after %d attempts: %s", f.Status, f.Attempts, f.Error)
	}
}

// What was received before a pause counts for fetch.max_traffic, whatever became of it.
func TestTrafficOverPauses(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(85, 4<<20)
	stall := fetchtest.Whole(img)
	stall.ETag, stall.Modified, stall.NoRange = "", time.Time{}, true
	stall.Fault, stall.After = fetchtest.Stall, 3<<20
	b := newBox(t, t.TempDir(), func(c *fetch.Config) { c.MaxTraffic = 1 })
	key := b.enqueue(fetchtest.NewHTTP(t, nil).Handle("/a.iso", stall.Serve), img.SHA256())
	for range 2 {
		b.arrives(key, 3<<20)
		b.change(key, fetch.Change{Paused: ptr(true)})
		b.until(key, func(f store.Fetch) bool { return f.Status == store.Queued })
		b.change(key, fetch.Change{Paused: ptr(false)})
	}
	if f := b.until(key, final); f.ErrorCode != "traffic" || f.BytesReceived < 6<<20 {
		t.Errorf("it is %s: %s, received %d", f.Status, f.ErrorCode, f.BytesReceived)
	}
}

// A hash that cannot be restored costs a look at the partial, no download.
func TestUnreadableHash(t *testing.T) {
	t.Parallel()
	for _, clean := range []bool{true, false} {
		t.Run(fmt.Sprint("clean ", clean), func(t *testing.T) {
			t.Parallel()
			img := fetchtest.NewImage(84, 4<<20)
			stall := fetchtest.Whole(img)
			stall.Fault, stall.After = fetchtest.Stall, 3<<20
			url := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Sequence(stall.Serve, fetchtest.Whole(img).Serve))
			dir := t.TempDir()
			small := func(c *fetch.Config) { c.CheckpointBytes = 1 << 20 }
			b := newBox(t, dir, small)
			key := b.enqueue(url, img.SHA256())
			b.checkpointed(key, 2<<20)
			b.close()
			db, err := sql.Open("sqlite3", filepath.Join(dir, "slotfetch.db"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = db.Exec(`UPDATE fetches SET cp_state = ?, cp_clean = ?`, []byte(`{"sha256":"b3RoZXI="}`), clean)
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			b = newBox(t, dir, small)
			if f := b.until(key, final); f.Status != store.Finished || f.ResumedFrom < 2<<20 {
				t.Errorf("it is %s, resumed from %d", f.Status, f.ResumedFrom)
			}
		})
	}
}

// Where a file was put together from two that the server calls the same, the digest being wrong is not the last word on what the
// server has.
func TestDigestOfTwo(t *testing.T) {
	t.Parallel()
	old, img := fetchtest.NewImage(4, 4<<20), fetchtest.NewImage(5, 4<<20)
	now := fetchtest.Whole(img)
	now.ETag = fetchtest.Whole(old).ETag
	b := newBox(t, t.TempDir(), nil)
	server := fetchtest.NewHTTP(t, nil)
	f := b.until(b.enqueue(server.Handle("/a.iso", fetchtest.Sequence(brokenOff(old, 2<<20), now.Serve)), img.SHA256()), final)
	if f.Status != store.Finished || f.Attempts != 3 || f.ResumedFrom != 0 {
		t.Errorf("it is %s after %d attempts, the last from %d: %s", f.Status, f.Attempts, f.ResumedFrom, f.Error)
	}
	// Once, and not where it is of one piece.
	wrong := fetchtest.NewImage(6, 1000).SHA256()
	f = b.until(b.enqueue(server.Handle("/b.iso", fetchtest.Sequence(brokenOff(old, 2<<20), fetchtest.Whole(old).Serve)), wrong), final)
	if f.ErrorCode != "digest" || f.Attempts != 3 {
		t.Errorf("it is %s after %d attempts: %s", f.Status, f.Attempts, f.Error)
	}
	f = b.until(b.enqueue(server.Handle("/c.iso", fetchtest.Whole(old).Serve), wrong), final)
	if f.ErrorCode != "digest" || f.Attempts != 1 {
		t.Errorf("it is %s after %d attempts: %s", f.Status, f.Attempts, f.Error)
	}
}

// Where only the end of the answer got lost, nothing is fetched again.
func TestWholePartial(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(89, 4<<20)
	cut := fetchtest.Whole(img)
	cut.Chunked, cut.Fault, cut.After = true, fetchtest.FIN, img.Size()
	server := fetchtest.NewHTTP(t, nil)
	b := newBox(t, t.TempDir(), nil)
	f := b.until(b.enqueue(server.Handle("/a.iso", fetchtest.Sequence(cut.Serve, fetchtest.Whole(img).Serve)), img.SHA256()), final)
	var sent int64
	for _, x := range server.Requests() {
		sent += x.Sent()
	}
	if f.Status != store.Finished || sent != img.Size() {
		t.Errorf("it is %s: %d bytes sent for %d: %s", f.Status, sent, img.Size(), f.Error)
	}
}

// After a restart of the agent a fetch that cannot go on yet shows how far it is.
func TestCountsAfterRestart(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(98, 4<<20)
	stall := fetchtest.Whole(img)
	stall.Fault, stall.After = fetchtest.Stall, 3<<20
	url := fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Sequence(stall.Serve, fetchtest.Status(503)))
	dir := t.TempDir()
	small := func(c *fetch.Config) {
		c.CheckpointBytes = 1 << 20
		c.Retry = fetch.Retry{Rounds: 2, Initial: time.Second, Max: time.Second}
	}
	b := newBox(t, dir, small)
	key := b.enqueue(url, img.SHA256())
	b.checkpointed(key, 2<<20)
	b.close()
	b = newBox(t, dir, small)
	shows := func(f store.Fetch) bool { return f.BytesDownloaded >= 2<<20 && f.BytesTotal == img.Size() }
	if f := b.until(key, func(f store.Fetch) bool { return f.Phase == store.Waiting }); !shows(f) {
		t.Errorf("waiting, it has %d of %d bytes", f.BytesDownloaded, f.BytesTotal)
	}
	if f := b.until(key, final); f.Status != store.Failed || !shows(f) {
		t.Errorf("it is %s with %d of %d bytes", f.Status, f.BytesDownloaded, f.BytesTotal)
	}
}

// A mirror that is slow from its first byte on is not taken for a fetch that hangs.
func TestSlowProbation(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(88, 8<<20)
	drip := fetchtest.Whole(img)
	drip.Fault, drip.After, drip.Pause = fetchtest.Drip, 1000, 5*time.Millisecond
	mirror := fetchtest.NewHTTP(t, nil)
	b := newBox(t, t.TempDir(), nil)
	key := b.mirrored(img.SHA256(), fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Sequence(brokenOff(img, 6<<20), fetchtest.Status(404))), mirror.Handle("/b.iso", drip.Serve))
	x := mirror.Next(t)
	await(t, "more of the mirror than fits into a second", func() bool { return x.Sent() > 1300 })
	await(t, "a sign of life", func() bool {
		_, stuck := b.fetch.Stuck(time.Second)
		return !stuck
	})
	if _, _, err := b.fetch.Cancel(t.Context(), key, admin); err != nil {
		t.Error(err)
	}
}

// A file that is another one with each answer, and answers that break off, do not go on for ever.
func TestAlwaysAnother(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(96, 16<<20)
	away := func(after int64) fetchtest.Handler {
		n := 0
		return func(x *fetchtest.Exchange) {
			f := fetchtest.Whole(img)
			f.ETag, f.Fault, f.After = fmt.Sprintf(`"%d"`, n), fetchtest.FIN, after
			n++
			f.Serve(x)
		}
	}
	for _, tc := range []struct {
		name        string
		url, mirror fetchtest.Handler
	}{{"one server", away(1 << 20), fetchtest.Status(404)}, {"two servers", away(1200 << 10), away(1200 << 10)}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, t.TempDir(), func(c *fetch.Config) { c.MaxTraffic = -1 })
			f := b.until(b.mirrored(img.SHA256(), fetchtest.NewHTTP(t, nil).Handle("/a.iso", tc.url), fetchtest.NewHTTP(t, nil).Handle("/b.iso", tc.mirror)), final)
			if f.Status != store.Failed || f.ErrorCode != "broken" && f.ErrorCode != "http_404" || f.Attempts > 20 {
				t.Errorf("it is %s after %d attempts: %s %s", f.Status, f.Attempts, f.ErrorCode, f.Error)
			}
		})
	}
}

// A mirror with a wrong file is not the reason to fetch again what was continued.
func TestDigestOfMirror(t *testing.T) {
	t.Parallel()
	old, img := fetchtest.NewImage(4, 4<<20), fetchtest.NewImage(5, 4<<20)
	now := fetchtest.Whole(img)
	now.ETag = fetchtest.Whole(old).ETag
	b := newBox(t, t.TempDir(), nil)
	mirror := fetchtest.NewHTTP(t, nil)
	f := b.until(b.mirrored(img.SHA256(), fetchtest.NewHTTP(t, nil).Handle("/a.iso", fetchtest.Sequence(brokenOff(old, 2<<20), brokenOff(old, 0), now.Serve)),
		mirror.Handle("/b.iso", fetchtest.Whole(fetchtest.NewImage(7, 1000)).Serve)), final)
	if f.Status != store.Finished || len(mirror.Requests()) != 1 {
		t.Errorf("it is %s after %d attempts, %d at the mirror: %s %s", f.Status, f.Attempts, len(mirror.Requests()), f.ErrorCode, f.Error)
	}
}

// After a Metalink nobody is asked again who has not the file.
func TestMetalinkAfterGone(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(97, 4<<20)
	a, m := fetchtest.NewHTTP(t, nil), fetchtest.NewHTTP(t, nil)
	place := m.Handle("/b.iso", fetchtest.Whole(img).Serve)
	list := m.Handle("/b.meta4", fetchtest.Raw(fmt.Sprintf("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"+
		`<metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="b.iso"><hash type="sha-256">%s</hash><url>%s</url></file></metalink>`, img.SHA256(), place)))
	b := newBox(t, t.TempDir(), nil)
	f := b.until(b.mirrored(img.SHA256(), a.Handle("/a.iso", fetchtest.Sequence(brokenOff(img, 3<<20), fetchtest.Status(404))), list), final)
	if f.Status != store.Finished || len(a.Requests()) != 2 {
		t.Errorf("it is %s, the first was asked %d times: %s", f.Status, len(a.Requests()), f.Error)
	}
}

// A Metalink that cannot be had leaves a record like any other attempt.
func TestMetalinkAttempts(t *testing.T) {
	t.Parallel()
	server := fetchtest.NewHTTP(t, nil)
	b := newBox(t, t.TempDir(), nil)
	key := b.enqueue(server.Handle("/a.meta4", fetchtest.Status(503)), fetchtest.NewImage(99, 1000).SHA256())
	f := b.until(key, final)
	if list := b.attempts(key); f.Attempts != 3 || len(list) != 3 || list[0].ErrorCode != "http_503" || list[0].HTTPStatus != 503 {
		t.Errorf("%d attempts, recorded %+v", f.Attempts, list)
	}
}

// Where nobody knows the digest, a transfer over FTP that was not seen to end is none, though as many bytes came as were announced.
func TestUnendedFTP(t *testing.T) {
	t.Parallel()
	img := fetchtest.NewImage(98, 100_000)
	whole := fetchtest.Script{Files: map[string]*fetchtest.Image{"a.iso": img}}
	held, troubled := whole, whole
	held.Fault, held.After = fetchtest.Stall, img.Size()
	troubled.Done = "451 disk trouble"
	for _, tc := range []struct {
		name   string
		script fetchtest.Script
		code   string
	}{{"ended", whole, ""}, {"held open", held, "stalled"}, {"in trouble", troubled, "ftp_451"}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, t.TempDir(), func(c *fetch.Config) {
				var err error
				if c.Source, err = source.New(source.Config{Egress: fetchtest.Loopback(), IdleTimeout: time.Second}); err != nil {
					t.Fatal(err)
				}
			})
			f := b.until(b.alone(fetchtest.NewFTP(t, tc.script).URL+"/a.iso", nil), final)
			if f.ErrorCode != tc.code || (f.Status == store.Finished) != (tc.code == "") {
				t.Errorf("it is %s: %s %s", f.Status, f.ErrorCode, f.Error)
			}
		})
	}
}
