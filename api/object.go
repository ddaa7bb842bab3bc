package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxBody is the longest JSON body accepted, in bytes.
const MaxBody = 1 << 20

// maxDepth bounds the nesting of a request; ours need three levels.
const maxDepth = 32

// Object is a decoded JSON object whose keys match exactly: encoding/json would fill "url" from "URL" too.
type Object struct {
	prefix string
	fields map[string]json.RawMessage
}

// ReadObject reads the body of r as one JSON object. An absent or empty body is {}. Content-Type does not matter.
func ReadObject(r *http.Request) (Object, error) {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, MaxBody))
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return Object{}, &Error{Status: http.StatusRequestEntityTooLarge, Type: "RequestTooLarge",
			Message: fmt.Sprintf("The request body is longer than %d bytes.", MaxBody), Details: map[string]any{"limit": MaxBody},
			Header: http.Header{"Connection": {"close"}}}
	}
	if err != nil {
		return Object{}, Syntactic("it ended early")
	}
	return ParseObject(body)
}

// ParseObject reads body as one JSON object; empty means {}.
func ParseObject(body []byte) (Object, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return Object{fields: map[string]json.RawMessage{}}, nil
	}
	if !utf8.Valid(body) {
		return Object{}, Syntactic("it is not UTF-8")
	}
	if err := checkKeys(body); err != nil {
		return Object{}, err
	}
	return object(body, "")
}

func object(raw json.RawMessage, prefix string) (Object, error) {
	o := Object{prefix: prefix}
	if err := json.Unmarshal(raw, &o.fields); err != nil {
		return Object{}, Syntactic("it is not valid JSON")
	}
	return o, nil
}

// checkKeys walks the tokens: one object, nothing after it, no key twice, no deep nesting.
func checkKeys(body []byte) error {
	d := json.NewDecoder(bytes.NewReader(body))
	var open []map[string]bool // nil for an array
	var key bool
	for first := true; first || len(open) > 0; first = false {
		tok, err := d.Token()
		if err != nil {
			return Syntactic("it is not valid JSON")
		}
		if first && tok != json.Delim('{') {
			return Syntactic("it is something else")
		}
		if s, ok := tok.(string); ok && key {
			top := open[len(open)-1]
			if top[s] {
				return Syntactic(fmt.Sprintf("the key %q is there twice", s))
			}
			top[s], key = true, false
			continue
		}
		switch tok {
		case json.Delim('{'):
			open = append(open, map[string]bool{})
		case json.Delim('['):
			open = append(open, nil)
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
		}
		if len(open) > maxDepth {
			return Syntactic("it is nested too deeply")
		}
		key = len(open) > 0 && open[len(open)-1] != nil
	}
	if _, err := d.Token(); err != io.EOF {
		return Syntactic("there is text after it")
	}
	return nil
}

// Has tells whether name is there and not null, which for an optional field is the same as absent.
func (o Object) Has(name string) bool {
	raw, ok := o.fields[name]
	return ok && string(raw) != "null"
}

// Keys are the names of all fields, sorted.
func (o Object) Keys() []string { return slices.Sorted(maps.Keys(o.fields)) }

// Required returns the error for a field that is missing, null or empty; nil if it is there.
func (o Object) Required(name string) error {
	if o.Has(name) && string(o.fields[name]) != `""` {
		return nil
	}
	found := ""
	for key := range o.fields {
		if key != name && looksLike(key, name) && (found == "" || key < found) {
			found = key
		}
	}
	return Missing(o.prefix+name, found)
}

// String reads name as a string; empty if absent. Control characters and lone surrogates are refused.
func (o Object) String(name, expected string) (string, error) {
	if !o.Has(name) {
		return "", nil
	}
	return stringValue(o.fields[name], o.prefix+name, expected)
}

func stringValue(raw json.RawMessage, field, expected string) (string, error) {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return "", Semantic(field, expected)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return (r < ' ' && r != '\n' && r != '\r' && r != '\t') || r == 0x7f }) ||
		strings.ContainsRune(s, utf8.RuneError) && !bytes.ContainsRune(raw, utf8.RuneError) {
		return "", Semantic(field, expected+", without control characters and lone surrogates")
	}
	return s, nil
}

// Bool reads name as a boolean; nil if absent.
func (o Object) Bool(name string) (*bool, error) {
	if !o.Has(name) {
		return nil, nil
	}
	var b bool
	if json.Unmarshal(o.fields[name], &b) != nil {
		return nil, Semantic(o.prefix+name, "true or false")
	}
	return &b, nil
}

// Int reads name as a whole number, also from a string of digits; nil if absent.
func (o Object) Int(name, expected string) (*int, error) {
	if !o.Has(name) {
		return nil, nil
	}
	raw := bytes.Trim(o.fields[name], `"`)
	var n int
	if len(raw) > 9 || string(raw) == "null" || json.Unmarshal(raw, &n) != nil {
		return nil, Semantic(o.prefix+name, expected)
	}
	return &n, nil
}

// Object reads name as an object; ok is false if absent.
func (o Object) Object(name string) (sub Object, ok bool, err error) {
	if !o.Has(name) {
		return Object{}, false, nil
	}
	if o.fields[name][0] != '{' {
		return Object{}, false, Semantic(o.prefix+name, "an object")
	}
	sub, err = object(o.fields[name], o.prefix+name+".")
	return sub, true, err
}

// Strings reads name as an array of at most most strings.
func (o Object) Strings(name string, most int) ([]string, error) {
	if !o.Has(name) {
		return nil, nil
	}
	expected := fmt.Sprintf("an array of at most %d strings", most)
	var raw []json.RawMessage
	if json.Unmarshal(o.fields[name], &raw) != nil || len(raw) > most {
		return nil, Semantic(o.prefix+name, expected)
	}
	out := make([]string, len(raw))
	for i, r := range raw {
		var err error
		if out[i], err = stringValue(r, fmt.Sprintf("%s%s[%d]", o.prefix, name, i), "a string"); err != nil || string(r) == "null" {
			return nil, Semantic(o.prefix+name, expected)
		}
	}
	return out, nil
}

// looksLike tells whether key is want without case, "-" and "_", or within edit distance 2.
func looksLike(key, want string) bool {
	fold := func(s string) string { return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(s)) }
	return fold(key) == fold(want) || len(key) < 64 && distance(key, want) <= 2
}

// distance is the Levenshtein distance of two short strings.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = slices.Min([]int{cost, row[j] + 1, diagonal + 1})
		}
	}
	return row[len(b)]
}
