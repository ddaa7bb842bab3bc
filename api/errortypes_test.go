package api_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"slotfetch/api"
)

// TestErrorTypesAreUsed compares the table with the errors that the program makes, and with the description.
func TestErrorTypesAreUsed(t *testing.T) {
	status := map[string]int{}
	var types []string
	for _, e := range api.ErrorTypes() {
		status[e.Type] = e.Status
		types = append(types, e.Type)
		for _, says := range []string{e.Meaning, e.Remedy} {
			if !strings.HasSuffix(says, ".") {
				t.Errorf("%s: no sentence: %q", e.Type, says)
			}
		}
	}
	used := map[string]bool{}
	root := os.DirFS("..")
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.CompositeLit); ok {
				typ, name := errorFields(lit)
				if typ == "" || name == "" {
					return true
				}
				used[typ] = true
				if want := "Status" + strings.ReplaceAll(http.StatusText(status[typ]), " ", ""); name != want {
					t.Errorf("%s: %s with %s, the table has %s", path, typ, name, want)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for typ := range status {
		if !used[typ] {
			t.Errorf("nothing answers with %s", typ)
		}
	}
	var described []string
	for _, v := range descriptions["SPS"].load(t, "dev").Components.Schemas["ErrorBody"].Value.Properties["type"].Value.Enum {
		described = append(described, v.(string))
	}
	slices.Sort(types)
	slices.Sort(described)
	if !slices.Equal(types, described) {
		t.Errorf("the table has %v, the description %v", types, described)
	}
}

// errorFields are the fields Type and Status of an Error as they are written; empty if they are not both there.
func errorFields(lit *ast.CompositeLit) (typ, status string) {
	for _, e := range lit.Elts {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		key, _ := kv.Key.(*ast.Ident)
		switch v := kv.Value.(type) {
		case *ast.BasicLit:
			if key != nil && key.Name == "Type" {
				typ, _ = strconv.Unquote(v.Value)
			}
		case *ast.SelectorExpr:
			if key != nil && key.Name == "Status" {
				status = v.Sel.Name
			}
		}
	}
	return typ, status
}
