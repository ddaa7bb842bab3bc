package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// view is one result in every form that --output knows.
type view struct {
	doc   any         // json and yaml
	items []any       // ndjson, one a line; nil: doc alone
	ids   []string    // id, one a line
	text  func(*page) // table
}

// listView is the view of several things: items, each with its id.
func listView[T any](doc any, list []T, id func(T) string, text func(*page)) view {
	v := view{doc: doc, items: []any{}, text: text}
	for _, item := range list {
		v.items = append(v.items, item)
		v.ids = append(v.ids, id(item))
	}
	return v
}

// show writes a result to stdout in the form that was asked for.
func (a *app) show(v view) error {
	var b bytes.Buffer
	var err error
	switch a.output {
	case "json":
		err = writeJSON(&b, v.doc, "  ")
	case "ndjson":
		items := v.items
		if items == nil {
			items = []any{v.doc}
		}
		for _, item := range items {
			if err = writeJSON(&b, item, ""); err != nil {
				break
			}
		}
	case "yaml":
		err = writeYAML(&b, v.doc)
	case "id":
		for _, id := range v.ids {
			b.WriteString(clean(id) + "\n")
		}
	default:
		t := &page{quiet: a.quiet, colour: a.colour()}
		v.text(t)
		t.flush(&b)
	}
	if err != nil {
		return fmt.Errorf("cannot encode the result: %w", err)
	}
	if _, err := a.stdout.Write(b.Bytes()); err != nil {
		return fmt.Errorf("cannot write to stdout: %w", err)
	}
	return nil
}

// colour tells whether stdout is a terminal that wants colours (https://no-color.org).
func (a *app) colour() bool {
	return isTerminal(a.stdout) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func writeJSON(w io.Writer, doc any, indent string) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	return enc.Encode(doc)
}

// writeYAML goes by way of JSON, so that both forms have the same keys in the same order.
func writeYAML(w io.Writer, doc any) error {
	var b bytes.Buffer
	if err := writeJSON(&b, doc, ""); err != nil {
		return err
	}
	var node yaml.Node
	if err := yaml.Unmarshal(b.Bytes(), &node); err != nil {
		return err
	}
	plainStyle(&node)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&node); err != nil {
		return err
	}
	return enc.Close()
}

// plainStyle drops the brackets and quotes that JSON brought along; the encoder quotes where it must.
func plainStyle(n *yaml.Node) {
	if len(n.Content) > 0 || n.Kind == yaml.ScalarNode {
		n.Style = 0
	}
	for _, child := range n.Content {
		plainStyle(child)
	}
}

// page is text for people: rows that line up, and lines.
type page struct {
	quiet  bool
	colour bool
	parts  []any // [][]string blocks of rows, and string lines
}

// row adds one row; rows in sequence line up.
func (p *page) row(cells ...string) {
	for i := range cells {
		cells[i] = clean(cells[i])
	}
	if n := len(p.parts); n > 0 {
		if rows, ok := p.parts[n-1].([][]string); ok {
			p.parts[n-1] = append(rows, cells)
			return
		}
	}
	p.parts = append(p.parts, [][]string{cells})
}

// line adds a line of data.
func (p *page) line(format string, args ...any) {
	p.parts = append(p.parts, cleanLines(fmt.Sprintf(format, args...)))
}

// say adds a line that only people need; --quiet drops it.
func (p *page) say(format string, args ...any) {
	if !p.quiet {
		p.line(format, args...)
	}
}

func (p *page) flush(w io.Writer) {
	for _, part := range p.parts {
		switch part := part.(type) {
		case string:
			fmt.Fprintln(w, part)
		case [][]string:
			p.rows(w, part)
		}
	}
}

func (p *page) rows(w io.Writer, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row[:len(row)-1] { // nothing follows the last
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			b.WriteString(p.paint(cell))
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// paint colours the words for a status or a result on a terminal.
func (p *page) paint(cell string) string {
	if !p.colour {
		return cell
	}
	switch cell {
	case "finished", "ok":
		return "\x1b[32m" + cell + "\x1b[0m"
	case "failed", "FAIL":
		return "\x1b[31m" + cell + "\x1b[0m"
	case "in-progress":
		return "\x1b[36m" + cell + "\x1b[0m"
	case "cancelled", "warning":
		return "\x1b[33m" + cell + "\x1b[0m"
	}
	return cell
}
