package ontap

import (
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

// collection answers with the records that q asks for, which come oldest first. It streams: of ten thousand jobs the text is
// never in memory as a whole.
func collection[T any](q query, all []T, f fields[T]) api.Reply {
	page := make([]T, 0, len(all))
	for _, r := range all {
		if !slices.ContainsFunc(q.filters, func(want filter) bool { return !want.match(f[want.field](r)) }) {
			page = append(page, r)
		}
	}
	if len(q.order) > 0 {
		slices.SortStableFunc(page, func(a, b T) int {
			for _, o := range q.order {
				if c := compare(f[o.field](a), f[o.field](b)); c != 0 && o.descending {
					return -c
				} else if c != 0 {
					return c
				}
			}
			return 0
		})
	}
	page = page[min(q.offset, len(page)):]
	next := ""
	if len(page) > q.most {
		page = page[:q.most]
		next = q.next(len(page))
	}
	reply := api.Reply{Stream: func(w io.Writer) error { return writePage(w, q, page, next) }}
	if next != "" {
		reply.Header = http.Header{"Link": {"<" + next + `>; rel="next"`}}
	}
	return reply
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
