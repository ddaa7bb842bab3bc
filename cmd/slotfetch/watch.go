package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"slotfetch/api"
)

func (a *app) watchCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "watch [KEY]",
		Short: "Watch fetches as they change",
		Long: `Without a key, watch all the fetches until Ctrl-C. With a key, watch that one to its end and
exit by how it ended.

On a terminal the table is drawn anew at every change; elsewhere every change is a line. With
-o ndjson every change is a document on one line; an entry that was pruned is
{"key": "…", "pruned": true}.`,
		Example:           "  slotfetch watch\n  slotfetch watch 3b0a\n  slotfetch watch -o ndjson | jq -r 'select(.body.status == \"failed\") | .body.error'",
		Args:              wants(0, 1),
		ValidArgsFunction: a.completeKeys(live, false),
		RunE:              a.act(a.watch),
	}
}

func (a *app) watch(ctx context.Context, args []string) error {
	switch a.output {
	case "json", "id":
		return usage("watch writes a stream, which -o "+a.output+" cannot hold", "Use -o ndjson.")
	}
	c, keys, err := a.openFor(ctx, args)
	if err != nil {
		return err
	}
	defer c.close()
	if a.curl {
		path := pathFetches
		if len(keys) == 1 {
			path = fetchPath(keys[0])
		}
		return c.printCurl(http.MethodGet, path, nil)
	}
	limited, cancel := a.until(ctx)
	defer cancel()
	w := &watcher{app: a, client: c, keys: keys, seen: map[string]api.Fetch{}}
	w.redraw = a.output == "table" && canDraw(a.stdout)
	p := &poller{app: a, client: c, say: a.note}
	err = p.poll(limited, w.look)
	switch {
	case len(keys) == 1 && err != nil:
		return a.explainWait(err, keys, []api.Fetch{w.seen[keys[0]]})
	case len(keys) == 1:
		return outcome(w.seen[keys[0]])
	case errors.Is(err, errTimeout) && w.live() == 0:
		return nil
	case errors.Is(err, errTimeout):
		return &failure{code: exitPending, kind: "StillPending", message: fmt.Sprintf("after %s, %d of the fetches still go on", a.timeout, w.live())}
	case errors.Is(err, context.Canceled):
		return &failure{code: exitInterrupted, kind: "Interrupted", printed: true, cause: err} // The way to end it.
	}
	return err
}

// watcher prints what has changed since it last looked.
type watcher struct {
	app    *app
	client *client
	keys   []string
	redraw bool

	seen  map[string]api.Fetch
	order []string
	drawn string
}

func (w *watcher) look(ctx context.Context) (bool, error) {
	docs, err := w.docs(ctx)
	if err != nil {
		return false, err
	}
	if w.redraw {
		w.remember(docs)
		if err := w.draw(docs); err != nil {
			return false, err
		}
	} else if err := w.stream(docs); err != nil {
		return false, err
	}
	return len(w.keys) == 1 && final(docs[0].Body.Status), nil
}

func (w *watcher) docs(ctx context.Context) ([]api.Fetch, error) {
	if len(w.keys) > 0 {
		return w.client.snapshot(ctx, w.keys, len(w.seen) > 0)
	}
	list, err := w.client.fetches(ctx)
	return list.Items, err
}

func (w *watcher) remember(docs []api.Fetch) {
	clear(w.seen)
	w.order = w.order[:0]
	for _, f := range docs {
		w.seen[f.Key] = f
		w.order = append(w.order, f.Key)
	}
}

func (w *watcher) live() int {
	n := 0
	for _, f := range w.seen {
		if !final(f.Body.Status) {
			n++
		}
	}
	return n
}

// stream prints every change, in the order of the list.
func (w *watcher) stream(docs []api.Fetch) error {
	gone := map[string]bool{}
	for _, key := range w.order {
		gone[key] = true
	}
	for _, f := range docs {
		delete(gone, f.Key)
		if before, ok := w.seen[f.Key]; ok && sameBody(before.Body, f.Body) {
			continue
		}
		if err := w.print(f); err != nil {
			return err
		}
	}
	for _, key := range w.order {
		if !gone[key] {
			continue
		}
		pruned := map[string]any{"key": key, "pruned": true}
		if err := w.emit(pruned, key+" pruned"); err != nil {
			return err
		}
	}
	w.remember(docs)
	return nil
}

func (w *watcher) print(f api.Fetch) error {
	line := f.Key + " " + progressText(f.Body)
	if why := trouble(f.Body); why != "" {
		line += ": " + why
	}
	return w.emit(f, line)
}

func (w *watcher) emit(doc any, line string) error {
	if w.app.output == "yaml" {
		if _, err := fmt.Fprintln(w.app.stdout, "---"); err != nil {
			return err
		}
	}
	return w.app.show(view{doc: doc, text: func(p *page) { p.line("%s", line) }})
}

// draw paints the table over the last one: home, every line with its rest cleared, then what is below. Wrapping is
// off meanwhile: a line that is too long would shift all the others.
func (w *watcher) draw(docs []api.Fetch) error {
	t := &page{colour: w.app.colour()}
	fetchTable(t, docs)
	var b strings.Builder
	t.flush(&b)
	table := b.String()
	if table == w.drawn {
		return nil
	}
	start := "\x1b[?7l\x1b[H"
	if w.drawn == "" {
		start += "\x1b[2J"
	}
	w.drawn = table
	title := fmt.Sprintf("Fetches of %s, %s. End with Ctrl-C.\n\n", clean(w.client.box.String()), w.app.now().Format(time.TimeOnly))
	if len(w.keys) == 1 {
		title = ""
	}
	text := fit(title+table, w.app.stdout)
	_, err := fmt.Fprint(w.app.stdout, start, strings.ReplaceAll(text, "\n", "\x1b[K\n"), "\x1b[J\x1b[?7h")
	return err
}

// fit cuts text to the height of the terminal: a longer one would scroll at every change. The newest are last.
func fit(text string, stdout any) string {
	fd, ok := terminalOf(stdout)
	if !ok {
		return text
	}
	_, height, err := term.GetSize(fd)
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if err != nil || height < 6 || len(lines) < height {
		return text
	}
	const head = 3 // title, blank line, column heads
	kept := append(lines[:head:head], lines[len(lines)-(height-1-head):]...)
	return strings.Join(kept, "\n") + "\n"
}
