package main_test

import (
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// TestOrder watches, by strace, in which order the agent makes things durable. Most of these rules no test by killing
// can see fail: the kernel keeps what was written, and file systems keep more than they promise.
func TestOrder(t *testing.T) {
	t.Parallel()
	needStrace(t)
	x := newTorture(t, 0)
	x.moody = func(r *http.Request, image int) (busy, breaks bool) {
		return false, image == 4 && r.Header.Get("Range") == ""
	}
	x.closeGate()()
	x.a = newAgent(t, "[slots]\nreserve = 0\n[fetch]\nconnections = 1\n")
	t.Cleanup(x.a.kill)
	x.a.start(t)
	x.a.newPassword(t)
	x.c = x.a.loginAdmin(t)
	x.a.stop(t, syscall.SIGTERM)
	name := filepath.Join(t.TempDir(), "trace")
	x.a.under = []string{"strace", "-D", "-f", "-q", "-y", "-s", "0", "-o", name, "-e",
		"trace=openat,write,pwrite64,ftruncate,fsync,fdatasync,renameat,renameat2,unlinkat"}
	x.a.start(t)
	finished := x.order(4, false)
	x.until("an end", func(rows map[string]reply) bool { return x.ended(rows, finished) })
	x.empty("1", finished)
	cancelled := x.order(5, false)
	x.until("a download", func(rows map[string]reply) bool {
		n, _ := rows[cancelled].get("body.bytes_downloaded").(float64)
		return n > 0
	})
	x.orders[cancelled].pruning = true
	x.remove(cancelled)
	if !x.orders[cancelled].cancel {
		t.Error("the cancel was not answered")
	}
	x.a.stop(t, syscall.SIGTERM)
	tr := &trace{t: t, calls: parseTrace(x.a.traced(t, name))}

	const wal = `^(fsync|fdatasync)\(\d+<[^>]*slotfetch\.db-wal>`
	sync := func(file string) string { return `^fsync\(\d+<[^>]*/` + file + `>` }
	partial := regexp.QuoteMeta(finished + ".partial")
	changes := `^(write|pwrite64|ftruncate)\(\d+<[^>]*` + partial

	first := tr.next(nil, changes)
	data := tr.next(first, `^fdatasync\(\d+<[^>]*`+partial)
	tr.none(first, data, wal, "a checkpoint is in the row before its data are on the disk")
	row := tr.next(data, wal)

	moved := tr.next(data, `^renameat2\(\d+<[^>]*>, "`+partial+`", \d+<[^>]*/slots/1>, "image"`)
	if row.end > moved.begin { // the end of the agent makes all durable
		t.Error("no call like that makes the checkpoint's row durable before the image is renamed")
	}
	image := tr.next(data, sync(partial))
	tr.none(image, moved, changes, "the partial changes after its fsync")
	if image.end > moved.begin {
		t.Error("the image is renamed before its fsync")
	}
	slot := tr.next(moved, sync("slots/1"))
	part := tr.next(moved, sync(`\.part`))
	draft := tr.next(moved, `^openat\(.*"manifest\.json\.tmp", .*O_CREAT`)
	if slot.end > draft.begin || part.end > draft.begin {
		t.Error("the manifest is begun before the image's name is durable")
	}
	text := tr.next(draft, sync(`manifest\.json\.tmp`))
	published := tr.next(text, `^renameat\(.*"manifest\.json\.tmp", .*"manifest\.json"`)
	slot = tr.next(published, sync("slots/1"))
	root := tr.next(published, sync("slots"))
	tr.none(moved, slot, wal, "something is recorded before the manifest's name is durable")
	tr.none(moved, root, wal, "something is recorded before the slot's name is durable")
	tr.next(root, wal)

	gone := tr.next(root, `^unlinkat\(\d+<[^>]*/slots/1>, "manifest\.json", `)
	durable := tr.next(gone, sync("slots/1"))
	bytes := tr.next(gone, `^unlinkat\(\d+<[^>]*/slots/1>, "image"`)
	if durable.end > bytes.begin {
		t.Error("the image is removed before the promise is durably gone")
	}
	tr.next(bytes, sync("slots/1"))

	removed := tr.next(bytes, `^unlinkat\(\d+<[^>]*/\.part>, "`+regexp.QuoteMeta(cancelled+".partial"))
	durable = tr.next(removed, sync(`\.part`))
	tr.none(removed, durable, wal, "a cancel is recorded before the partial is durably gone")
	tr.next(durable, wal)
}

// tracedCall is a system call, from line begin to line end of its trace.
type tracedCall struct {
	text       string
	begin, end int
}

type trace struct {
	t     *testing.T
	calls []*tracedCall // in the order in which they began
}

var traceLine = regexp.MustCompile(`^(\d+) +(?:<\.\.\. \w+ resumed>)?(.*)`)

func parseTrace(text string) (calls []*tracedCall) {
	running := map[string]*tracedCall{} // by thread
	n := 0
	for line := range strings.Lines(text) {
		n++
		m := traceLine.FindStringSubmatch(strings.TrimSpace(line))
		switch {
		case m == nil:
		case strings.Contains(line, " resumed>"):
			if c := running[m[1]]; c != nil {
				c.end, c.text = n, c.text+m[2]
			}
		default:
			c := &tracedCall{text: m[2], begin: n, end: n}
			if begun, ok := strings.CutSuffix(m[2], " <unfinished ...>"); ok {
				c.text = begun
				running[m[1]] = c
			}
			calls = append(calls, c)
		}
	}
	return calls
}

// next is the first successful call like pattern that begins after a is over.
func (tr *trace) next(a *tracedCall, pattern string) *tracedCall {
	tr.t.Helper()
	like, failed := regexp.MustCompile(pattern), regexp.MustCompile(`\) += -1 `)
	for _, c := range tr.calls {
		if (a == nil || c.begin > a.end) && like.MatchString(c.text) && !failed.MatchString(c.text) {
			return c
		}
	}
	after := ""
	if a != nil {
		after = " after " + a.text
	}
	for _, c := range tr.calls {
		tr.t.Log(c.begin, c.end, c.text)
	}
	tr.t.Fatalf("no call like %s%s", pattern, after)
	return nil
}

// none wants no call like pattern to begin after a is over and before b is.
func (tr *trace) none(a, b *tracedCall, pattern, otherwise string) {
	tr.t.Helper()
	like := regexp.MustCompile(pattern)
	for _, c := range tr.calls {
		if c.begin > a.end && c.begin < b.end && c != b && like.MatchString(c.text) {
			tr.t.Errorf("%s: %s, between %s and %s", otherwise, c.text, a.text, b.text)
		}
	}
}
