package source_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"slotfetch/fetch/source"
)

var numbered = regexp.MustCompile(`^(http|ftp)_(\dxx|xxx|\d{3})$`)

// TestFaultsAreUsed looks for the codes in the program: each is in the table, and all of the table is in use.
func TestFaultsAreUsed(t *testing.T) {
	rows := map[string]bool{}
	for _, f := range source.Faults() {
		rows[f.Code] = true
	}
	used, calls := map[string]bool{}, 0
	root := os.DirFS("../..")
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
			if lit, ok := n.(*ast.CompositeLit); ok && path != "fetch/source/error.go" && isError(file, lit.Type) {
				t.Errorf("%s: an Error that is not made by NewError has no class", path)
			}
			call, ok := n.(*ast.CallExpr)
			if !ok || name(call.Fun) != "NewError" {
				return true
			}
			calls++
			code := call.Args[0]
			if s, ok := code.(*ast.SelectorExpr); ok && s.Sel.Name == "Code" {
				return true // that of another Error
			}
			if sprintf, ok := code.(*ast.CallExpr); ok && name(sprintf.Fun) == "Sprintf" {
				code = sprintf.Args[0]
			}
			lit, ok := code.(*ast.BasicLit)
			if !ok {
				t.Errorf("%s: the code of an error must be there to be read", path)
				return true
			}
			text, _ := strconv.Unquote(lit.Value)
			if proto, ok := strings.CutSuffix(text, "_%d"); ok {
				used[proto] = true
				return true
			}
			used[text] = true
			if !rows[text] {
				t.Errorf("%s: the code %s is not in the table", path, text)
			}
			return true
		})
		return nil
	})
	if err != nil || calls < len(rows)/2 {
		t.Fatalf("%d calls, %v", calls, err)
	}
	for code := range rows {
		if m := numbered.FindStringSubmatch(code); !used[code] && (m == nil || !used[m[1]]) {
			t.Errorf("nothing fails with %s", code)
		}
	}
}

// isError tells whether typ is this package's Error, as file calls it.
func isError(file *ast.File, typ ast.Expr) bool {
	if s, ok := typ.(*ast.SelectorExpr); ok {
		x, _ := s.X.(*ast.Ident)
		return x != nil && x.Name == "source" && s.Sel.Name == "Error"
	}
	return file.Name.Name == "source" && name(typ) == "Error"
}

// name is the last part of a name.
func name(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// TestFaultsReadWell: each row says what it has to.
func TestFaultsReadWell(t *testing.T) {
	code := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	sentence := regexp.MustCompile(`^([A-Z]|tls\.ca )[^\n]*\.$`)
	seen := map[string]bool{}
	for _, f := range source.Faults() {
		if !code.MatchString(f.Code) || seen[f.Code] || f.Doc() != "errors.md#"+f.Code {
			t.Errorf("%s: not a code, or there twice", f.Code)
		}
		seen[f.Code] = true
		if !sentence.MatchString(f.Meaning) || f.Remedy != "" && !sentence.MatchString(f.Remedy) {
			t.Errorf("%s: no sentence: %q %q", f.Code, f.Meaning, f.Remedy)
		}
		if strings.HasPrefix(f.Class.String(), "class") || f.Class != source.Temporary && f.Remedy == "" {
			t.Errorf("%s: %v without a remedy", f.Code, f.Class)
		}
	}
}

// TestFaultOf: a number has its own row, else that of its hundred, else that of its protocol.
func TestFaultOf(t *testing.T) {
	for code, want := range map[string]struct {
		row   string
		class source.Class
	}{
		"digest": {"digest", source.Permanent}, "http_404": {"http_404", source.Permanent}, "http_418": {"http_4xx", source.Permanent},
		"http_503": {"http_5xx", source.Temporary}, "http_999": {"http_5xx", source.Temporary}, "http_304": {"http_xxx", source.Permanent},
		"http_101": {"http_xxx", source.Permanent}, "http_206": {"http_2xx", source.Permanent}, "ftp_421": {"ftp_4xx", source.Temporary},
		"ftp_530": {"ftp_530", source.Human}, "ftp_599": {"ftp_5xx", source.Permanent}, "ftp_125": {"ftp_xxx", source.Permanent},
		"": {"internal", source.Human}, "http_": {"internal", source.Human}, "http_abc": {"internal", source.Human}, "odd": {"internal", source.Human},
	} {
		if f := source.FaultOf(code); f.Code != want.row || f.Class != want.class {
			t.Errorf("%q: %+v", code, f)
		}
	}
	e := source.NewError("no_slot", "None.", nil)
	if e.Error() != "None. "+e.Remedy() || e.Class != source.Human {
		t.Errorf("%#v: %v", e, e)
	}
	if e := source.NewError("http_404", "None.", nil); e.Error() != "None." || e.Remedy() != "Check the URL." {
		t.Errorf("%#v: %v", e, e)
	}
}
