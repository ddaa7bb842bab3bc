package ontap

import (
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

func TestMatcher(t *testing.T) {
	null := value{isNull: true}
	for query, tests := range map[string]map[value]bool{
		"a":                          {text("a"): true, text("A"): false, text("ab"): false, null: false},
		"":                           {text(""): true, text("a"): false},
		"a|b":                        {text("a"): true, text("b"): true, text("c"): false},
		"!a":                         {text("a"): false, text("b"): true},
		"!a|b":                       {text("a"): false, text("b"): true, text("c"): true},
		"a*":                         {text("abc"): true, text("a"): true, text("ba"): false},
		"*a*b":                       {text("xaxb"): true, text("ab"): true, text("ba"): false, text("aab"): true},
		"*":                          {text(""): true, text("x"): true, null: false},
		"a*a":                        {text("a"): false, text("aa"): true, text("aba"): true},
		`"a*|b"`:                     {text("a*|b"): true, text("ab"): false},
		"{a|b}":                      {text("a|b"): true, text("a"): false},
		`!{a}`:                       {text("a"): false, text("b"): true},
		`"a"|{b}|c`:                  {text("a"): true, text("b"): true, text("c"): true, text("d"): false},
		"null":                       {null: true, text("null"): false},
		"!null":                      {null: false, text(""): true},
		">5":                         {number(6): true, number(5): false, number(10): true, null: false},
		">=5":                        {number(5): true, number(4): false},
		"<5":                         {number(4): true, number(5): false, null: false},
		"<=5":                        {number(5): true, number(6): false},
		"5..7":                       {number(5): true, number(7): true, number(8): false, null: false},
		"5..":                        {number(6): true, number(4): false},
		"..5":                        {number(6): false, number(4): true},
		">2026-05-04T10:00:00+02:00": {text("2026-05-04T08:00:01+00:00"): true, text("2026-05-04T07:59:59+00:00"): false},
		"7":                          {number(7): true, number(70): false},
		">2026-01":                   {text("2026-05-04T08:00:01+00:00"): true, text("2025"): false},
		">x":                         {number(5): false},
	} {
		match := matcher(query)
		for v, want := range tests {
			if got := match(v); got != want {
				t.Errorf("%q of %+v: %v", query, v, got)
			}
		}
	}
}

// FuzzMatcher: no query does harm, and a quoted text is found again.
func FuzzMatcher(f *testing.F) {
	for _, s := range []string{"a|b", `"x"|{y}`, "!{", "!", "..", "**", `"`, "!!a", "{}"} {
		f.Add(s, "a")
	}
	f.Fuzz(func(t *testing.T, query, field string) {
		matcher(query)(text(field))
		if !strings.ContainsAny(field, `"`) && !matcher(`"`+field+`"`)(text(field)) {
			t.Errorf("%q is not found", field)
		}
		q, err := readQuery(httptest.NewRequest("GET", "/api/cluster/jobs?"+url.PathEscape(query), nil), []string{"a"}, nil)
		if err == nil && q.most > maxRecords {
			t.Error(q.most)
		}
	})
}
