package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"slotfetch/api"
)

// lineEvery is the pace of progress lines while nothing but the byte count changes.
const lineEvery = 5 * time.Second

// reporter shows the progress of fetches on stderr.
type reporter interface {
	// update takes the newest document of one fetch.
	update(api.Fetch)
	// say prints a line without disturbing what is shown.
	say(format string, args ...any)
	// close takes down what is shown; no call may follow.
	close()
}

// newReporter chooses by --progress; auto is bars on a terminal that can show them, else lines.
func (a *app) newReporter(keys []string) reporter {
	form := a.progress
	if form == "auto" {
		switch {
		case a.quiet:
			form = "none"
		case canDraw(a.stderr):
			form = "bar"
		default:
			form = "line"
		}
	}
	switch form {
	case "bar":
		if canDraw(a.stderr) {
			return newBars(a.stderr, keys)
		}
		return &lines{app: a, seen: map[string]shown{}}
	case "line":
		return &lines{app: a, seen: map[string]shown{}}
	case "json":
		return &documents{app: a, seen: map[string]api.FetchBody{}}
	}
	return silent{app: a}
}

// silent shows nothing but notes.
type silent struct{ app *app }

func (silent) update(api.Fetch)                 {}
func (s silent) say(format string, args ...any) { s.app.note(format, args...) }
func (silent) close()                           {}

// shown is what the last line about a fetch said.
type shown struct {
	stage string
	at    time.Time
}

// lines writes a line for every change of phase, and every few seconds in between.
type lines struct {
	app  *app
	seen map[string]shown
}

func (l *lines) update(f api.Fetch) {
	now, before := l.app.now(), l.seen[f.Key]
	if stage(f.Body) == before.stage && (final(f.Body.Status) || now.Sub(before.at) < lineEvery) {
		return
	}
	l.seen[f.Key] = shown{stage: stage(f.Body), at: now}
	line := f.Key + " " + progressText(f.Body)
	if why := text(f.Body.RetryReason); why != "" {
		line += ": " + why
	}
	fmt.Fprintln(l.app.stderr, clean(line))
}

func (l *lines) say(format string, args ...any) { l.app.note(format, args...) }
func (l *lines) close()                         {}

// documents writes the document of a fetch on one line whenever it has changed.
type documents struct {
	app  *app
	seen map[string]api.FetchBody
}

func (d *documents) update(f api.Fetch) {
	if before, ok := d.seen[f.Key]; ok && sameBody(before, f.Body) {
		return
	}
	d.seen[f.Key] = f.Body
	_ = writeJSON(d.app.stderr, f, "")
}

// say stays silent: whoever reads this stream expects documents only.
func (d *documents) say(string, ...any) {}
func (d *documents) close()             {}

// sameBody compares what changes while a fetch goes on.
func sameBody(a, b api.FetchBody) bool {
	return a.Status == b.Status && text(a.Phase) == text(b.Phase) && a.BytesDownloaded == b.BytesDownloaded &&
		a.BytesTotal == b.BytesTotal && a.Attempts == b.Attempts && text(a.Error) == text(b.Error)
}

// bars draws one bar a fetch on a terminal.
type bars struct {
	progress *mpb.Progress
	byKey    map[string]*bar
}

type bar struct {
	drawn *mpb.Bar

	mu   sync.Mutex
	last api.FetchBody
}

func newBars(stderr io.Writer, keys []string) *bars {
	b := &bars{
		progress: mpb.New(mpb.WithOutput(stderr), mpb.WithRefreshRate(200*time.Millisecond)),
		byKey:    map[string]*bar{},
	}
	for _, key := range keys {
		one := &bar{last: api.FetchBody{Status: "queued"}}
		name := ""
		if len(keys) > 1 {
			name = clean(key[:min(8, len(key))]) + " "
		}
		// Made with total 0, so that reaching the total does not end it: verifying and installing come after.
		one.drawn = b.progress.New(0, mpb.BarStyle(), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return name + clean(stage(one.body())) }, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return clean(one.text()) })),
		)
		b.byKey[key] = one
	}
	return b
}

func (b *bar) body() api.FetchBody {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

// text is what stands behind the bar: bytes, total, rate and time left.
func (b *bar) text() string {
	f := b.body()
	s := size(f.BytesDownloaded)
	if p, ok := percent(f); ok {
		s = fmt.Sprintf("%3d%% %s / %s", p, s, size(f.BytesTotal))
	}
	if f.BytesPerSecond != nil && !final(f.Status) {
		s += "  " + rate(*f.BytesPerSecond)
	}
	if f.ETASeconds != nil && !final(f.Status) {
		s += "  ETA " + span(time.Duration(*f.ETASeconds)*time.Second)
	}
	return s
}

func (b *bars) update(f api.Fetch) {
	one, ok := b.byKey[f.Key]
	if !ok {
		return
	}
	one.mu.Lock()
	one.last = f.Body
	one.mu.Unlock()
	one.drawn.SetTotal(f.Body.BytesTotal, false)
	one.drawn.SetCurrent(f.Body.BytesDownloaded)
}

// say prints above the bars.
func (b *bars) say(format string, args ...any) {
	fmt.Fprintln(b.progress, cleanLines(fmt.Sprintf(format, args...)))
}

func (b *bars) close() {
	for _, one := range b.byKey {
		one.drawn.Abort(true)
	}
	b.progress.Wait()
}
