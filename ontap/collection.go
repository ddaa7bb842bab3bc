package ontap

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"slotfetch/api"
)

// fields are what records can be filtered and ordered by, under the names that the JSON has.
type fields[T any] map[string]func(T) value

func (f fields[T]) names() []string {
	var out []string
	for name := range f {
		out = append(out, name)
	}
	return out
}

// errFull means that a page needs no more records.
var errFull = errors.New("the page is full")

// pager makes a page of records that come one by one, oldest first.
type pager[T any] struct {
	q       query
	f       fields[T]
	skipped int
	page    []T
	more    bool // there are records behind the page
}

// add puts a record onto the page, if it belongs there; errFull if no more is needed. To put them in another order takes all that
// match.
func (p *pager[T]) add(r T) error {
	if slices.ContainsFunc(p.q.filters, func(want filter) bool { return !want.match(p.f[want.field](r)) }) {
		return nil
	}
	switch {
	case len(p.q.order) > 0:
		p.page = append(p.page, r)
	case p.skipped < p.q.offset:
		p.skipped++
	case len(p.page) == p.q.most:
		p.more = true
		return errFull
	default:
		p.page = append(p.page, r)
	}
	return nil
}

func (p *pager[T]) reply() api.Reply {
	if len(p.q.order) > 0 {
		slices.SortStableFunc(p.page, func(a, b T) int {
			for _, o := range p.q.order {
				if c := compare(p.f[o.field](a), p.f[o.field](b)); c != 0 && o.descending {
					return -c
				} else if c != 0 {
					return c
				}
			}
			return 0
		})
		p.page = p.page[min(p.q.offset, len(p.page)):]
		if p.more = len(p.page) > p.q.most; p.more {
			p.page = p.page[:p.q.most]
		}
	}
	next := ""
	if p.more {
		next = p.q.next(len(p.page))
	}
	reply := api.Reply{Stream: func(w io.Writer) error { return writePage(w, p.q, p.page, next) }}
	if next != "" {
		reply.Header = http.Header{"Link": {"<" + next + `>; rel="next"`}}
	}
	return reply
}

// collection answers with the records that q asks for, which come oldest first. It streams: of ten thousand the text is never in
// memory as a whole.
func collection[T any](q query, all []T, f fields[T]) api.Reply {
	p := pager[T]{q: q, f: f}
	for _, r := range all {
		if p.add(r) != nil {
			break
		}
	}
	return p.reply()
}

func compare(a, b value) int {
	switch {
	case a.isNull && b.isNull:
		return 0
	case a.isNull:
		return -1
	case b.isNull:
		return 1
	}
	return a.compare(b.text)
}

// next is where the records behind a page are. It has all parameters, because clients drop theirs.
func (q query) next(n int) string {
	values := maps.Clone(q.values)
	values.Set("offset", strconv.Itoa(q.offset+n))
	return q.url.Path + "?" + values.Encode()
}

// links are those of a page.
type links struct {
	Self Href  `json:"self"`
	Next *Href `json:"next,omitempty"`
}

// writePage writes the envelope of a collection, piece by piece. num_records counts this page.
func writePage[T any](w io.Writer, q query, page []T, next string) error {
	var err error
	write := func(text string, v any) {
		if err == nil {
			_, err = io.WriteString(w, text)
		}
		if err == nil && v != nil {
			err = api.EncodeTo(w, v)
		}
	}
	if q.records {
		write(`{"records":[`, nil)
		comma := ""
		for _, r := range page {
			write(comma, r)
			comma = ","
		}
		write(`],"num_records":`, len(page))
	} else {
		write(`{"num_records":`, len(page))
		write("}\n", nil)
		return err
	}
	l := links{Self: Href{q.url.RequestURI()}}
	if next != "" {
		l.Next = &Href{next}
	}
	write(`,"_links":`, l)
	write("}\n", nil)
	return err
}
