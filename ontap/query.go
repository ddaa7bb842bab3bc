package ontap

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"slotfetch/api"
)

// This file reads the parameters that ONTAP's clients put into URLs (contract section 2.2).

const (
	// maxTimeout is the most that return_timeout may be, in seconds.
	maxTimeout = 120
	// maxRecords is how long a page is, and may be at most.
	maxRecords = 10_000
)

// query is what a request asks for beside its body.
type query struct {
	url    *url.URL
	values url.Values

	offset, most int
	records      bool
	order        []ordering
	filters      []filter
	// timeout is how long the answer may wait for the end of a job.
	timeout time.Duration
}

type ordering struct {
	field      string
	descending bool
}

type filter struct {
	field string
	match func(value) bool
}

// generic are the parameters that every route takes.
var generic = []string{"fields", "max_records", "offset", "return_records", "order_by", "return_timeout", "ignore_unknown_fields", "pretty"}

// readQuery reads the query of r. Beside what is generic there may be filters on fields, and extra parameters, which the
// handler reads itself.
func readQuery(r *http.Request, fields, extra []string) (query, error) {
	q := query{url: r.URL, most: maxRecords, records: true}
	var err error
	if q.values, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		return q, failed(codeInvalid, "", "The query of the URL is malformed.")
	}
	for _, secret := range []string{"password", "username"} {
		if q.values.Has(secret) {
			return q, failedf(codeSecretInURL, secret, "Field %q must be in the body, not in the URL.", secret)
		}
	}
	lenient, err := q.boolean("ignore_unknown_fields", false)
	if err != nil {
		return q, err
	}
	for _, name := range slices.Sorted(maps.Keys(q.values)) {
		switch {
		case slices.Contains(generic, name), slices.Contains(extra, name):
		case slices.Contains(fields, name):
			for _, text := range q.values[name] {
				q.filters = append(q.filters, filter{name, matcher(text)})
			}
		case !lenient:
			return q, failedf(codeUnexpected, name, "Unexpected argument %q.", shorten(name))
		}
	}
	if q.records, err = q.boolean("return_records", true); err != nil {
		return q, err
	}
	if q.offset, err = q.number("offset", 0, 0, 1<<30); err != nil {
		return q, err
	}
	if q.most, err = q.number("max_records", maxRecords, 1, 1<<30); err != nil {
		return q, err
	}
	q.most = min(q.most, maxRecords)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		seconds, err := q.number("return_timeout", 0, 0, maxTimeout)
		if err != nil {
			return q, err
		}
		q.timeout = time.Duration(seconds) * time.Second
	}
	return q, q.readOrder(fields)
}

// readOrder reads order_by: names with asc or desc behind them. Where nothing can be ordered, it means nothing.
func (q *query) readOrder(fields []string) error {
	text := q.values.Get("order_by")
	if text == "" || len(fields) == 0 {
		return nil
	}
	for part := range strings.SplitSeq(text, ",") {
		words := strings.Fields(part)
		if len(words) == 0 || len(words) > 2 || !slices.Contains(fields, words[0]) || len(words) == 2 && words[1] != "asc" && words[1] != "desc" {
			return failed(codeInvalid, "order_by", "order_by must be a list of fields, each with asc or desc behind it or nothing.")
		}
		q.order = append(q.order, ordering{words[0], len(words) == 2 && words[1] == "desc"})
	}
	return nil
}

// boolean reads true or false in any case: Ansible sends True (rule 11).
func (q *query) boolean(name string, otherwise bool) (bool, error) {
	if !q.values.Has(name) || q.values.Get(name) == "" {
		return otherwise, nil
	}
	switch strings.ToLower(q.values.Get(name)) {
	case "true", "1", "yes":
		return true, nil
	case "false", "0", "no":
		return false, nil
	}
	return false, failedf(codeInvalid, name, "%s must be true or false.", name)
}

func (q *query) number(name string, otherwise, least, most int) (int, error) {
	text := q.values.Get(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, failedf(codeInvalid, name, "The value %q of %s is out of range: it must be a whole number from %d to %d.", shorten(text), name, least, most)
	}
	return n, nil
}

func shorten(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

// readTimeout is how long a request may have to be held, for the deadlines of its connection. What is wrong with it comes
// out later.
func readTimeout(r *http.Request) time.Duration {
	n, err := strconv.Atoi(r.URL.Query().Get("return_timeout"))
	if err != nil {
		return 0
	}
	return time.Duration(min(max(n, 0), maxTimeout)) * time.Second
}

// value is what a field of a record has: a number, a text (moments are texts too), or nothing.
type value struct {
	text   string
	number int64
	isText bool
	isNull bool
}

func number(n int64) value { return value{number: n, text: strconv.FormatInt(n, 10)} }
func text(s string) value  { return value{text: s, isText: true} }

func optional(s *string) value {
	if s == nil {
		return value{isNull: true}
	}
	return text(*s)
}

// compare is below, equal to or above 0. A text that should be a number is beyond all of them.
func (v value) compare(other string) int {
	if v.isText {
		a, err1 := time.Parse(time.RFC3339, v.text)
		b, err2 := time.Parse(time.RFC3339, other)
		if err1 == nil && err2 == nil {
			return a.Compare(b)
		}
		return strings.Compare(v.text, other)
	}
	n, err := strconv.ParseInt(other, 10, 64)
	switch {
	case err != nil:
		return -1
	case v.number < n:
		return -1
	case v.number > n:
		return 1
	}
	return 0
}

// matcher understands a query: alternatives by |, ! for not, < > <= >=, a..b, null, and * for anything; what is in "…" or {…}
// means itself.
func matcher(query string) func(value) bool {
	var any []func(value) bool
	for _, part := range alternatives(query) {
		any = append(any, single(part))
	}
	return func(v value) bool {
		return slices.ContainsFunc(any, func(match func(value) bool) bool { return match(v) })
	}
}

// alternatives splits at each | that is not quoted.
func alternatives(query string) (out []string) {
	closing := map[byte]byte{'"': '"', '{': '}'}
	begin, end := 0, byte(0)
	for i := range len(query) {
		switch c := query[i]; {
		case end != 0:
			if c == end {
				end = 0
			}
		case c == '|':
			out = append(out, query[begin:i])
			begin = i + 1
		case i == begin || query[i-1] == '!':
			end = closing[c]
		}
	}
	return append(out, query[begin:])
}

func single(part string) func(value) bool {
	if rest, not := strings.CutPrefix(part, "!"); not {
		match := single(rest)
		return func(v value) bool { return !match(v) }
	}
	if n := len(part); n >= 2 && (part[0] == '"' && part[n-1] == '"' || part[0] == '{' && part[n-1] == '}') {
		return func(v value) bool { return !v.isNull && v.text == part[1:n-1] }
	}
	if part == "null" {
		return func(v value) bool { return v.isNull }
	}
	for _, op := range []struct {
		sign string
		ok   func(order int) bool
	}{ // the longer signs first
		{"<=", func(o int) bool { return o <= 0 }}, {">=", func(o int) bool { return o >= 0 }},
		{"<", func(o int) bool { return o < 0 }}, {">", func(o int) bool { return o > 0 }},
	} {
		if rest, found := strings.CutPrefix(part, op.sign); found {
			return func(v value) bool { return !v.isNull && op.ok(v.compare(rest)) }
		}
	}
	if low, high, found := strings.Cut(part, ".."); found {
		return func(v value) bool {
			return !v.isNull && (low == "" || v.compare(low) >= 0) && (high == "" || v.compare(high) <= 0)
		}
	}
	if !strings.Contains(part, "*") {
		return func(v value) bool { return !v.isNull && v.text == part }
	}
	pieces := strings.Split(part, "*")
	return func(v value) bool { return !v.isNull && wild(v.text, pieces) }
}

// wild tells whether s begins with the first piece, ends with the last, and has the others in order between them.
func wild(s string, pieces []string) bool {
	first, last := pieces[0], pieces[len(pieces)-1]
	if len(s) < len(first)+len(last) || !strings.HasPrefix(s, first) || !strings.HasSuffix(s, last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, piece := range pieces[1 : len(pieces)-1] {
		_, rest, found := strings.Cut(s, piece)
		if !found {
			return false
		}
		s = rest
	}
	return true
}

// exact refuses fields of a body that nobody knows: a digest in "checksums" must not be overlooked.
func exact(o api.Object, prefix string, known ...string) error {
	for _, key := range o.Keys() {
		if !slices.Contains(known, key) {
			return failed(codeUnexpected, prefix+shorten(key), fmt.Sprintf("Unexpected argument %q.", prefix+shorten(key)))
		}
	}
	return nil
}
