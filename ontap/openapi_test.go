package ontap

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

func loadDescription(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	check(t, err)
	return doc
}

// TestFiltersAreDescribed: each collection can be filtered by what the description says, and by nothing else.
func TestFiltersAreDescribed(t *testing.T) {
	doc := loadDescription(t)
	for path, names := range map[string][]string{nodesPath: nodeFields.names(), jobsPath: jobFields.names(), packagesPath: packageFields.names(),
		historyPath: historyFields.names()} {
		var described []string
		for _, p := range doc.Paths.Value(path).Get.Parameters {
			described = append(described, p.Value.Name)
		}
		slices.Sort(names)
		slices.Sort(described)
		if !slices.Equal(names, described) {
			t.Errorf("%s: the code has %v, the description %v", path, names, described)
		}
	}
	var generally []string
	for _, p := range doc.Paths.Value(prefix).Parameters {
		generally = append(generally, p.Value.Name)
	}
	if !slices.Equal(generally, generic) {
		t.Errorf("the code has %v, the description %v", generic, generally)
	}
}

// reserved are codes that an error in the words of SPS would get, but none of those is sent here.
var reserved = []int{codeField, codeTooMany}

// TestCodesAreDescribed: the codes of errors.go are those of the description, and of the table in docs/ontap-compat.md.
func TestCodesAreDescribed(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "errors.go", nil, parser.SkipObjectResolution)
	check(t, err)
	codes := map[int]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(v.Names[0].Name, "code") {
			n, err := strconv.Atoi(v.Values[0].(*ast.BasicLit).Value)
			check(t, err)
			codes[n] = true
		}
		return true
	})
	for _, n := range reserved {
		delete(codes, n)
	}

	doc, described := loadDescription(t), map[int]bool{}
	list := func(r *openapi3.ResponseRef) {
		all, _ := r.Value.Extensions["x-error-codes"].([]any)
		for _, code := range all {
			n, err := strconv.Atoi(code.(string))
			check(t, err)
			described[n] = true
		}
	}
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			for _, r := range op.Responses.Map() {
				list(r)
			}
		}
	}
	for _, r := range doc.Components.Responses {
		list(r)
	}
	for _, schema := range []string{"Job", "Download"} {
		for _, code := range doc.Components.Schemas[schema].Value.Properties["code"].Value.Enum {
			if n := int(code.(float64)); n != 0 {
				described[n] = true
			}
		}
	}
	compare := func(what string, got map[int]bool) {
		if !maps.Equal(codes, got) {
			t.Errorf("the code has %v, %s %v", slices.Sorted(maps.Keys(codes)), what, slices.Sorted(maps.Keys(got)))
		}
	}
	compare("the description", described)

	text, err := os.ReadFile("../docs/ontap-compat.md")
	check(t, err)
	table := map[int]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([0-9]+)` \\|").FindAllSubmatch(text, -1) {
		n, err := strconv.Atoi(string(m[1]))
		check(t, err)
		table[n] = true
	}
	compare("the table", table)
}
