package api_test

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"slotfetch/api"
	"slotfetch/ontap"
)

// description is a document that the agent serves, and what it is held against.
type description struct {
	route func(version string) api.Route
	// files have the shapes in Go.
	files []string
	// shapes says by which schemas a shape is described. A struct of which some keys depend on the place has one for each.
	shapes map[reflect.Type][]string
	// requests are the schemas of what clients send in which unknown keys are ignored.
	requests []string
	// errors is the extension that lists what an error may be; logins are the ways to show who calls.
	errors string
	logins []string
}

// descriptions are here together, with that of a package which imports this one, because the checks are the same.
var descriptions = map[string]description{
	"SPS": {route: api.OpenAPIRoute, files: []string{"message.go", "attempt.go", "probe.go", "upgrade.go", "upload.go", "care.go"},
		shapes: shapes, requests: requests, errors: "x-error-types", logins: []string{"session"}},
	"ONTAP": {route: ontap.OpenAPIRoute, files: []string{"../ontap/message.go"}, shapes: ontapShapes, errors: "x-error-codes", logins: []string{"basic", "session"}},
}

// each runs a test for each document.
func each(t *testing.T, test func(t *testing.T, d description)) {
	t.Helper()
	for name, d := range descriptions {
		t.Run(name, func(t *testing.T) { test(t, d) })
	}
}

// load reads what the agent serves.
func (d description) load(t *testing.T, version string) *openapi3.T {
	t.Helper()
	reply, err := d.route(version).Handler(nil)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := openapi3.NewLoader().LoadFromData(reply.Body.([]byte))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestDescriptionIsValid(t *testing.T) {
	each(t, func(t *testing.T, d description) {
		for _, version := range []string{"dev", "1.10", `1.2~rc1+"x"`} {
			doc := d.load(t, version)
			if err := doc.Validate(context.Background()); err != nil { // examples too
				t.Error(err)
			}
			if doc.Info.Version != version {
				t.Errorf("version %q, want %q", doc.Info.Version, version)
			}
		}
	})
}

// TestDescriptionIsComplete is about what validators leave to taste: texts, roles, closed objects.
func TestDescriptionIsComplete(t *testing.T) { each(t, isComplete) }

func isComplete(t *testing.T, d description) {
	doc := d.load(t, "dev")
	responses := maps.Clone(doc.Components.Responses)
	ids := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			what := method + " " + path
			if op.Summary == "" || op.Description == "" || op.OperationID == "" || ids[op.OperationID] || len(op.Tags) != 1 || op.Security == nil {
				t.Errorf("%s: summary, description, operationId of its own, one tag and security are wanted", what)
			}
			ids[op.OperationID] = true
			for status, r := range op.Responses.Map() {
				responses[what+" "+status] = r
				if _, ok := r.Value.Extensions[d.errors]; ok != (status >= "400") {
					t.Errorf("%s %s: %s: %v", what, status, d.errors, ok)
				}
			}
			for _, status := range []string{"500", "503"} { // these any route may give
				if op.Responses.Value(status) == nil {
					t.Errorf("%s: no %s", what, status)
				}
			}
			var logins []string
			if op.Security != nil {
				for _, one := range *op.Security {
					logins = slices.AppendSeq(logins, maps.Keys(one))
				}
			}
			if public := op.Extensions["x-role"] == "public"; !public && (!slices.Equal(logins, d.logins) || op.Responses.Value("401") == nil) {
				t.Errorf("%s needs a login, so security and a 401", what)
			}
		}
	}
	for what, r := range responses {
		if r.Value.Headers["X-Request-ID"] == nil || len(r.Value.Content) != 1 && !strings.HasSuffix(what, " 304") {
			t.Errorf("%s: X-Request-ID and one content type are wanted", what)
		}
		for _, content := range r.Value.Content {
			if content.Schema == nil {
				t.Errorf("%s: no schema", what)
			}
		}
	}
	for name := range doc.Components.Parameters { // generators make one type of each
		if doc.Components.Schemas[name] != nil || doc.Components.Responses[name] != nil {
			t.Errorf("the parameter %s has the name of a schema or a response", name)
		}
	}
	for name, s := range doc.Components.Schemas {
		if doc.Components.Responses[name] != nil {
			t.Errorf("the schema %s has the name of a response", name)
		}
		closed := s.Value.AdditionalProperties.Has != nil && !*s.Value.AdditionalProperties.Has
		if s.Value.Type.Is("object") && closed == slices.Contains(d.requests, name) {
			t.Errorf("%s: additionalProperties false is %v", name, closed)
		}
		if s.Value.Description == "" {
			t.Errorf("%s: no description", name)
		}
	}
}

// requests are those of SPS.
var requests = []string{"FetchRequest", "Checksum", "Credentials", "TLS", "FetchChange", "SlotTestRequest", "UpgradeRequest", "RollbackRequest", "SlotChange", "Signature"}

// shapes are those of SPS.
var shapes = map[reflect.Type][]string{
	reflect.TypeFor[api.Meta]():          {"Meta", "HrefOnly", "FirmwareMeta", "FetchMeta", "FetchItemMeta", "SlotTestMeta"},
	reflect.TypeFor[api.MetaOnly]():      {"MetaOnly"},
	reflect.TypeFor[api.Accepted]():      {"Accepted"},
	reflect.TypeFor[api.Fetch]():         {"Fetch", "FetchItem"},
	reflect.TypeFor[api.FetchBody]():     {"FetchBody"},
	reflect.TypeFor[api.FetchList]():     {"FetchList"},
	reflect.TypeFor[api.FetchRequest]():  {"FetchRequest"},
	reflect.TypeFor[api.FetchSchedule](): nil, // in the two that embed it
	reflect.TypeFor[api.FetchChange]():   {"FetchChange"},
	reflect.TypeFor[api.Checksum]():      {"Checksum"},
	reflect.TypeFor[api.Credentials]():   {"Credentials"},
	reflect.TypeFor[api.TLS]():           {"TLS"},
	reflect.TypeFor[api.Slot]():          {"Slot", "SlotItem"},
	reflect.TypeFor[api.SlotBody]():      {"SlotBody"},
	reflect.TypeFor[api.SlotList]():      {"SlotList"},
	reflect.TypeFor[api.SlotsSummary]():  {"SlotsSummary"},
	reflect.TypeFor[api.SlotsMeta]():     {"SlotsMeta"},
	reflect.TypeFor[api.Index]():         {"ApiIndex", "FirmwareIndex"},
	reflect.TypeFor[api.IndexItem]():     {"IndexItem"},
	reflect.TypeFor[api.Info]():          {"Info"},
	reflect.TypeFor[api.InfoBody]():      {"InfoBody"},
	reflect.TypeFor[api.InfoSession]():   nil, // a part of InfoBody
	reflect.TypeFor[api.InfoMeta]():      {"InfoMeta"},
	reflect.TypeFor[api.Setup]():         {"Setup"},
	reflect.TypeFor[api.UserInfo]():      {"UserInfo"},
	reflect.TypeFor[api.UserName]():      {"UserName"},
	reflect.TypeFor[api.Endpoint]():      {"Endpoint"},
	reflect.TypeFor[api.LoginMethods]():  {"LoginMethods"},
	reflect.TypeFor[api.LoginMethod]():   {"LoginMethod"},
	reflect.TypeFor[api.ErrorReply]():    {"ErrorReply"},
	reflect.TypeFor[api.ErrorBody]():     {"ErrorBody"},
	reflect.TypeFor[api.Fault]():         {"Fault"},
	reflect.TypeFor[api.Attempt]():       {"Attempt", "AttemptItem"},
	reflect.TypeFor[api.AttemptBody]():   {"AttemptBody"},
	reflect.TypeFor[api.AttemptList]():   {"AttemptList"},
	reflect.TypeFor[api.Probe]():         {"Probe"},
	reflect.TypeFor[api.ProbeBody]():     {"ProbeBody"},
	reflect.TypeFor[api.ProbeCheck]():    {"ProbeCheck"},
	reflect.TypeFor[api.SlotChange]():    {"SlotChange"},
	reflect.TypeFor[api.SlotPlan]():      {"SlotPlan"},
	reflect.TypeFor[api.SlotPlanBody]():  {"SlotPlanBody"},
	reflect.TypeFor[api.Health]():        {"Health"},
	reflect.TypeFor[api.Signature]():     {"Signature"},
	reflect.TypeFor[api.Upload]():        {"Upload"},
	reflect.TypeFor[api.UploadMeta]():    {"UploadMeta"},

	reflect.TypeFor[api.SlotTest]():        {"SlotTest"},
	reflect.TypeFor[api.SlotTestBody]():    {"SlotTestBody"},
	reflect.TypeFor[api.SlotTestRequest](): {"SlotTestRequest"},
	reflect.TypeFor[api.UpgradeRequest]():  {"UpgradeRequest"},
	reflect.TypeFor[api.RollbackRequest](): {"RollbackRequest"},
	reflect.TypeFor[api.Upgrade]():         {"Upgrade", "UpgradeItem"},
	reflect.TypeFor[api.UpgradeBody]():     {"UpgradeBody"},
	reflect.TypeFor[api.UpgradeList]():     {"UpgradeList"},
}

var ontapShapes = map[reflect.Type][]string{
	reflect.TypeFor[ontap.Links]():        {"Links"},
	reflect.TypeFor[ontap.Href]():         {"Href"},
	reflect.TypeFor[ontap.ErrorReply]():   {"ErrorReply"},
	reflect.TypeFor[ontap.Error]():        {"Error"},
	reflect.TypeFor[ontap.JobReply]():     {"JobReply"},
	reflect.TypeFor[ontap.JobLink]():      {"JobLink"},
	reflect.TypeFor[ontap.Job]():          {"Job"},
	reflect.TypeFor[ontap.Named]():        {"Named"},
	reflect.TypeFor[ontap.Download]():     {"Download"},
	reflect.TypeFor[ontap.Progress]():     {"Progress"},
	reflect.TypeFor[ontap.Version]():      {"Version"},
	reflect.TypeFor[ontap.Cluster]():      {"Cluster"},
	reflect.TypeFor[ontap.Interface]():    {"Interface"},
	reflect.TypeFor[ontap.IP]():           {"IP"},
	reflect.TypeFor[ontap.Software]():     {"Software"},
	reflect.TypeFor[ontap.SoftwareNode](): {"SoftwareNode"},
	reflect.TypeFor[ontap.Validation]():   {"Validation"},
	reflect.TypeFor[ontap.Text]():         {"Text"},
	reflect.TypeFor[ontap.Package]():      {"Package"},
	reflect.TypeFor[ontap.History]():      {"History"},
	reflect.TypeFor[ontap.NodeRef]():      {"NodeRef"},
}

// TestShapesAreDescribed holds the shapes and the schemas against each other, key by key.
func TestShapesAreDescribed(t *testing.T) { each(t, shapesAreDescribed) }

func shapesAreDescribed(t *testing.T, d description) {
	known := map[string]bool{}
	for shape := range d.shapes {
		known[shape.Name()] = true
	}
	for _, name := range d.files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.TypeSpec); ok && s.Name.IsExported() && !known[s.Name.Name] {
				t.Errorf("%s has no schema", s.Name.Name)
			}
			return true
		})
	}

	schemas := d.load(t, "dev").Components.Schemas
	for shape, names := range d.shapes {
		described := map[string]bool{}
		for _, name := range names {
			s := schemas[name]
			if s == nil {
				t.Fatalf("there is no schema %s", name)
			}
			keys := map[string]bool{}
			for _, f := range reflect.VisibleFields(shape) {
				if f.Anonymous {
					continue
				}
				key, option, _ := strings.Cut(f.Tag.Get("json"), ",")
				keys[key] = true
				p := s.Value.Properties[key]
				if p == nil {
					if option == "" {
						t.Errorf("%s has no %s of %v", name, key, shape)
					}
					continue
				}
				described[key] = true
				// An optional pointer is absent rather than null.
				if why := d.differs(f.Type, p, option == ""); why != "" {
					t.Errorf("%s.%s: %s, but %v.%s is a %v", name, key, why, shape, f.Name, f.Type)
				}
				optional := len(f.Index) > 1 || slices.Contains(d.requests, name) || name == "SlotBody"
				if option == "" && !optional && !slices.Contains(s.Value.Required, key) {
					t.Errorf("%s.%s is always there, so required", name, key)
				}
				if all := s.Value.DependentRequired; option == "" && optional && all != nil && all[key] == nil {
					t.Errorf("%s.%s comes with others, so in dependentRequired", name, key)
				}
			}
			for key := range s.Value.Properties {
				if !keys[key] {
					t.Errorf("%s.%s is not in %v", name, key, shape)
				}
			}
		}
		for _, f := range reflect.VisibleFields(shape) {
			if key, _, _ := strings.Cut(f.Tag.Get("json"), ","); !f.Anonymous && names != nil && !described[key] {
				t.Errorf("%s of %v is in none of %v", key, shape, names)
			}
		}
	}
}

// differs says why a value of typ is not what s describes; empty if it is.
func (d description) differs(typ reflect.Type, s *openapi3.SchemaRef, nullable bool) string {
	null := false
	if typ.Kind() == reflect.Pointer {
		typ, null = typ.Elem(), nullable
	}
	want := ""
	switch typ.Kind() {
	case reflect.String:
		want = "string"
	case reflect.Bool:
		want = "boolean"
	case reflect.Int, reflect.Int64:
		want = "integer"
	case reflect.Slice:
		want = "array"
		if s.Value.Items != nil {
			if why := d.differs(typ.Elem(), s.Value.Items, false); why != "" {
				return "items: " + why
			}
		}
	case reflect.Map:
		want = "object"
	case reflect.Struct:
		want = "object"
		name := s.Ref[strings.LastIndex(s.Ref, "/")+1:]
		if typ.NumField() > 0 && !slices.Contains(d.shapes[typ], name) {
			return fmt.Sprintf("refers to %q", s.Ref)
		}
	}
	if !s.Value.Type.Includes(want) || s.Value.Type.Includes("null") != null || (typ.Kind() == reflect.Int64) != (s.Value.Format == "int64") {
		return fmt.Sprintf("%v %s", *s.Value.Type, s.Value.Format)
	}
	return ""
}
