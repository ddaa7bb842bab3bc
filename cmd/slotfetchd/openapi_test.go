package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"slotfetch/api"
	"slotfetch/ontap"
)

// description is the OpenAPI document of one dialect, with a router over it.
type description struct {
	doc    *openapi3.T
	router routers.Router
	ontap  bool
}

var (
	spsDescription   = sync.OnceValue(func() description { return describe(api.OpenAPIRoute("dev"), false) })
	ontapDescription = sync.OnceValue(func() description { return describe(ontap.OpenAPIRoute("dev"), true) })
)

func describe(route api.Route, ontap bool) description {
	d := description{ontap: ontap}
	reply, err := route.Handler(nil)
	if err == nil {
		d.doc, err = openapi3.NewLoader().LoadFromData(reply.Body.([]byte))
	}
	if err == nil {
		d.router, err = gorillamux.NewRouter(d.doc)
	}
	if err != nil {
		panic(err)
	}
	return d
}

// descriptionOf is the one that a path is in. An agent whose ONTAP dialect is switched off has its paths in neither.
func descriptionOf(path string, status int, header http.Header) description {
	off := status == http.StatusNotFound && header.Get("Content-Type") == "application/json"
	if !off && (path == clusterPath || strings.HasPrefix(path, clusterPath+"/")) {
		return ontapDescription()
	}
	return spsDescription()
}

// conforms tells whether an answer of the agent, and the request if it was accepted, are as described. So all traffic
// of the black-box tests checks the descriptions, and the other way round.
func conforms(r *http.Request, sent string, status int, header http.Header, body string) error {
	r = r.Clone(context.Background())
	r.URL.Path = "/" + strings.Join(strings.FieldsFunc(r.URL.Path, func(c rune) bool { return c == '/' }), "/")
	options := &openapi3filter.Options{IncludeResponseStatus: true, AuthenticationFunc: openapi3filter.NoopAuthenticationFunc,
		ExcludeResponseBody: r.Method == http.MethodHead}
	if r.Method == http.MethodHead {
		r.Method = http.MethodGet
	}
	d := descriptionOf(r.URL.Path, status, header)
	route, vars, err := d.find(r)
	if err != nil {
		return err
	}
	in := &openapi3filter.RequestValidationInput{Request: r, PathParams: vars, Route: route, Options: options}
	if status < 300 && r.Method != http.MethodOptions {
		if err := d.accepted(in, sent, status); err != nil {
			return fmt.Errorf("accepted, but not described: %w", err)
		}
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: status, Header: header, Options: options}
	if err := openapi3filter.ValidateResponse(r.Context(), out.SetBodyBytes([]byte(body))); err != nil {
		return err
	}
	described := route.Operation.Responses.Status(status).Value
	for _, name := range []string{"Allow", "Link", "Location", "Retry-After", "Set-Cookie", "Www-Authenticate"} {
		if _, ok := header[name]; ok && !slices.ContainsFunc(slices.Collect(maps.Keys(described.Headers)), func(s string) bool { return strings.EqualFold(s, name) }) {
			return fmt.Errorf("header %s is not described", name)
		}
	}
	if status < 400 || options.ExcludeResponseBody {
		return nil
	}
	var e struct{ Error struct{ Type, Code string } }
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		return err
	}
	list, got := "x-error-types", e.Error.Type
	if d.ontap {
		list, got = "x-error-codes", e.Error.Code
	}
	if all, _ := described.Extensions[list].([]any); !slices.Contains(all, any(got)) {
		return fmt.Errorf("%s is not one of the %s %v", got, list, all)
	}
	return nil
}

// accepted tells what a request that the agent took has that the description lacks.
func (d description) accepted(in *openapi3filter.RequestValidationInput, sent string, status int) error {
	r := in.Request
	query := r.URL.Query()
	for name := range query { // SPS ignores what it does not know
		if d.ontap && !strings.EqualFold(query.Get("ignore_unknown_fields"), "true") &&
			in.Route.PathItem.Parameters.GetByInAndName("query", name) == nil && in.Route.Operation.Parameters.GetByInAndName("query", name) == nil {
			return fmt.Errorf("the parameter %q", name)
		}
	}
	switch {
	case r.URL.Path == uploadPath, r.URL.Path == softwarePath+"/upload": // whose bodies are no JSON
		return nil
	case d.ontap && r.Method == http.MethodDelete: // whose body means nothing
		sent = ""
	}
	sent, err := strict(sent)
	if err != nil {
		return err
	}
	if status == http.StatusAccepted && !d.ontap && r.Method == http.MethodPost && !strings.Contains(sent, `"checksum":`) && !strings.Contains(sent, `"signature":`) {
		return errors.New("the lack of what only a dry run may lack")
	}
	r.Header.Set("Content-Type", "application/json") // the agent reads nothing else, whatever it says
	r.Body, r.GetBody = io.NopCloser(strings.NewReader(sent)), nil
	return openapi3filter.ValidateRequest(r.Context(), in)
}

// find is the described operation for r. For what has none, it is one with the response that the rules for all routes
// name.
func (d description) find(r *http.Request) (*routers.Route, map[string]string, error) {
	if r.Method != http.MethodOptions {
		route, vars, err := d.router.FindRoute(r)
		if err == nil || !errors.Is(err, routers.ErrPathNotFound) && !errors.Is(err, routers.ErrMethodNotAllowed) {
			return route, vars, err
		}
	}
	get := r.Clone(r.Context())
	get.Method = http.MethodGet
	_, _, err := d.router.FindRoute(get)
	general, status := "MethodNotAllowed", http.StatusMethodNotAllowed
	switch {
	case errors.Is(err, routers.ErrPathNotFound):
		general, status = "UnknownPath", http.StatusNotFound
	case r.Method == http.MethodOptions:
		general, status = "Options", http.StatusOK
	}
	responses := openapi3.NewResponses(openapi3.WithStatus(status, d.doc.Components.Responses[general]))
	return &routers.Route{Spec: d.doc, Path: r.URL.Path, Method: r.Method, Operation: &openapi3.Operation{Responses: responses}}, nil, nil
}

// strict is a request as the description wants it: without the nulls and the digits in strings that the agent takes too.
func strict(sent string) (string, error) {
	if sent == "" {
		return "", nil
	}
	var m map[string]any
	d := json.NewDecoder(strings.NewReader(sent))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		return "", err
	}
	maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
	if s, ok := m["slot_id"].(string); ok {
		n, err := strconv.Atoi(s)
		if err != nil {
			return "", err
		}
		m["slot_id"] = n
	}
	text, err := json.Marshal(m)
	return string(text), err
}

// TestDescribed calls what the acceptance tests do not, so that every route is checked.
func TestDescribed(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	stranger, viewer, c := a.stranger(t), a.user(t, "viewer"), a.loginAdmin(t)
	paths := spsDescription().doc.Paths.Map()
	maps.Copy(paths, ontapDescription().doc.Paths.Map())
	for path, item := range paths {
		if strings.Contains(path, "{") {
			continue
		}
		if item.Get == nil {
			stranger.do(t, "POST", path, "").want(t, 401)
			viewer.do(t, "POST", path, "").want(t, 403)
			c.do(t, "OPTIONS", path, "").want(t, 200)
			c.do(t, "GET", path, "").want(t, 405)
			continue
		}
		public := 401
		if item.Get.Extensions["x-role"] == "public" && path != "/api/authentication" {
			public = 200
		}
		for _, method := range []string{"GET", "HEAD"} {
			stranger.do(t, method, path, "").want(t, public)
			viewer.do(t, method, path, "").want(t, 200)
		}
		viewer.do(t, "OPTIONS", path, "").want(t, 200)
		c.do(t, "PUT", path, "").want(t, 405)
		c.do(t, "GET", path+"/nope/nope", "").want(t, 404)
	}
	none := fetches + "/00000000-0000-0000-0000-000000000000"
	for _, path := range []string{none, slotsPath + "/1", "/api/authentication"} {
		stranger.do(t, "DELETE", path, "").want(t, 401)
		c.do(t, "DELETE", path, "", "Sec-Fetch-Site", "cross-site").want(t, 403)
	}
	c.do(t, "POST", "/api/authentication", "", "Sec-Fetch-Site", "cross-site").want(t, 403)
	for _, query := range []string{"?login_method=x509", "?type=x509"} {
		c.do(t, "GET", "/api/authentication"+query, "").want(t, 400)
	}
	c.do(t, "GET", "/api/authentication?login_method=local&type=basic&odd=1", "").want(t, 200)
	for _, path := range []string{none + "/attempts", none + "/attempts/1", fetches + "/nope/attempts"} {
		stranger.do(t, "GET", path, "").want(t, 401)
		viewer.do(t, "GET", path, "").fails(t, 404, "ResourceNotFound", "")
	}
	done := c.do(t, "POST", fetches, order("http://127.0.0.1:1/x.iso", small.SHA256())).want(t, 202).str("meta.href")
	c.await(t, done, "the end of an attempt", func(r reply) bool { return r.get("body.phase") == "waiting" })
	list := viewer.do(t, "GET", done+"/attempts", "").want(t, 200).is(t, "meta", map[string]any{"href": done + "/attempts", "parent": done})
	one := viewer.do(t, "GET", done+"/attempts/1", "").want(t, 200).is(t, "key", "1", "meta", map[string]any{"href": done + "/attempts/1", "parent": done + "/attempts"})
	if items := list.get("items").([]any); len(items) == 0 || len(one.keys("body")) != 23 {
		t.Errorf("%s, %s", list.raw, one.raw)
	}
	viewer.do(t, "GET", done+"/attempts/01", "").fails(t, 404, "ResourceNotFound", "")
	for _, path := range []string{none, slotsPath + "/99"} {
		c.do(t, "GET", path, "").want(t, 404)
		c.do(t, "DELETE", path, "").want(t, 404)
	}
	c.do(t, "GET", slotsPath+"/1", "").want(t, 200).is(t, "body", map[string]any{})
	links := viewer.do(t, "GET", "/api", "").want(t, 200).keys("meta")
	for _, name := range []string{"openapi.yaml", "openapi-ontap.yaml"} {
		served := stranger.do(t, "GET", "/api/"+name, "").want(t, 200)
		if got := served.header.Get("Content-Type"); got != "application/yaml" || !strings.Contains(served.raw, "\n  version: \"dev\"\n") || links[name] != "/api/"+name {
			t.Errorf("%s, linked as %v: %.200s", got, links[name], served.raw)
		}
	}
	describedCluster(t, stranger, viewer, c)
}

// describedCluster calls each operation of the ONTAP dialect with all its parameters, and has each kind of record.
func describedCluster(t *testing.T, stranger, viewer, c *client) {
	t.Helper()
	const none = jobsPath + "/00000000-0000-0000-0000-000000000000"
	for _, x := range []struct{ method, path string }{{"POST", downloadPath}, {"POST", softwarePath + "/upload"}, {"PATCH", none}, {"DELETE", packagesPath + "/none"}} {
		stranger.do(t, x.method, x.path, "").want(t, 401).is(t, "error.code", "6691623")
		viewer.do(t, x.method, x.path, "").want(t, 403).is(t, "error.code", "6")
		c.do(t, x.method, x.path, "", "Sec-Fetch-Site", "cross-site").want(t, 403).is(t, "error.code", "6")
	}
	viewer.do(t, "GET", clusterPath+"/nope", "").want(t, 404).is(t, "error.code", "3")
	c.do(t, "PUT", downloadPath, "").want(t, 405).is(t, "error.code", "3")

	image := serveSmall(t)
	body := order(image, small.SHA256(), "username", "u", "state", "running", "code", nil)
	job := c.do(t, "POST", downloadPath, body).want(t, 202).str("job._links.self.href")
	c.do(t, "POST", downloadPath+"?return_timeout=120", body).want(t, 201)
	viewer.do(t, "GET", job, "").want(t, 200).is(t, "state", "success")
	c.do(t, "POST", downloadPath+"?return_timeout=120", order(image, strings.Repeat("0", 64))).want(t, 409).is(t, "error.code", "10551327")
	c.do(t, "POST", downloadPath+"?return_timeout=120", order(image+"x", strings.Repeat("0", 64))).want(t, 400).is(t, "error.code", "10551885")
	for _, x := range []struct {
		body, code, target string
	}{{`{}`, "262177", "url"}, {`{"url":"http://"}`, "39387137", "url"}, {`{"url":"gopher://h/x"}`, "39387138", "url"}, {`{"checksums":1}`, "262179", "checksums"},
		{`{"url":"http://h/x","checksum":{"sha256":"0"}}`, "262197", "checksum.sha256"}} {
		c.do(t, "POST", downloadPath, x.body).want(t, 400).is(t, "error.code", x.code, "error.target", x.target)
	}
	c.do(t, "POST", downloadPath, "[").want(t, 400).is(t, "error.code", "262199")

	version := viewer.do(t, "GET", packagesPath, "").want(t, 200).str("records.0.version")
	for _, path := range []string{packagesPath + "/" + version, job} {
		viewer.do(t, "GET", path+"?"+parametersOf(t, path), "").want(t, 200)
	}
	for path, item := range ontapDescription().doc.Paths.Map() {
		if item.Get != nil && !strings.Contains(path, "{") {
			viewer.do(t, "GET", path+"?"+parametersOf(t, path), "").want(t, 200)
			viewer.do(t, "GET", path+"?colour=red", "").want(t, 400).is(t, "error.code", "262179", "error.target", "colour")
			viewer.do(t, "GET", path+"?colour=red&ignore_unknown_fields=True", "").want(t, 200)
			viewer.do(t, "GET", path+"?max_records=none", "").want(t, 400).is(t, "error.code", "262197")
			viewer.do(t, "GET", path+"?password=x", "").want(t, 400).is(t, "error.code", "262202")
		}
	}
	viewer.do(t, "GET", jobsPath+"?max_records=1", "").want(t, 200).is(t, "num_records", 1)
	viewer.do(t, "GET", jobsPath+"?return_records=false", "").want(t, 200).is(t, "records", nil)
	viewer.do(t, "GET", none, "").want(t, 404).is(t, "error.code", "4")
	c.do(t, "PATCH", job+"?action=cancel", "{}").want(t, 409).is(t, "error.code", "458762")
	c.do(t, "PATCH", job+"?action=stop", "").want(t, 400).is(t, "error.target", "action")

	for _, x := range []struct {
		body, code string
		status     int
	}{{`{}`, "10551872", 400}, {`{"version":"none"}`, "10551325", 404}, {`{"version":"none","action":"cancel"}`, "10551306", 409}} {
		c.do(t, "PATCH", softwarePath, x.body).want(t, x.status).is(t, "error.code", x.code)
	}
	viewer.do(t, "PATCH", softwarePath+"?validate_only=true", "{}").want(t, 403)
	c.do(t, "PATCH", softwarePath+"?validate_only=true&skip_warnings=True&return_timeout=120", `{"version":"`+version+`","stabilize_minutes":1}`).want(t, 200)
	viewer.do(t, "GET", softwarePath, "").want(t, 200)
	c.do(t, "POST", softwarePath+"/upload", "{}").want(t, 400).is(t, "error.code", "10551808")
	c.do(t, "DELETE", packagesPath+"/none", "{}").want(t, 404).is(t, "error.code", "10551325")
	c.do(t, "DELETE", packagesPath+"/"+version+"?return_timeout=30", "{}").want(t, 200)
	viewer.do(t, "GET", packagesPath+"/"+version, "").want(t, 404).is(t, "error.code", "4")
	viewer.do(t, "GET", jobsPath, "").want(t, 200)
}

// parametersOf is a query with all parameters of a GET, which do no harm.
func parametersOf(t *testing.T, path string) string {
	t.Helper()
	r, err := http.NewRequest("GET", path, nil)
	check(t, err)
	route, _, err := ontapDescription().find(r)
	check(t, err)
	query := url.Values{}
	for _, p := range slices.Concat(route.PathItem.Parameters, route.Operation.Parameters) {
		switch schema := p.Value.Schema; {
		case p.Value.In != "query":
		case strings.HasSuffix(schema.Ref, "/Query"):
			query.Set(p.Value.Name, "!none")
			query.Set("order_by", p.Value.Name+" desc")
		case strings.HasSuffix(schema.Ref, "/Boolean"):
			query.Set(p.Value.Name, "True")
		case schema.Value.Type.Is("integer"):
			query.Set(p.Value.Name, "1")
		case !query.Has(p.Value.Name):
			query.Set(p.Value.Name, "")
		}
	}
	return query.Encode()
}

// TestOntapSwitchedOff leaves nothing of the dialect.
func TestOntapSwitchedOff(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "[ontap]\nenabled = false\n")
	c := a.loginAdmin(t)
	for _, path := range []string{clusterPath, downloadPath, "/api/openapi-ontap.yaml"} {
		c.do(t, "GET", path, "", "Authorization", basic("admin", a.admin)).fails(t, 404, "ResourceNotFound", "").is(t, "error.code", "3")
	}
	if links := c.do(t, "GET", "/api", "").want(t, 200); strings.Contains(links.raw, "ontap") || !strings.Contains(links.raw, "/api/openapi.yaml") {
		t.Error(links.raw)
	}
}

// TestConformsSeesDrift makes sure that conforms refuses: a check that takes everything would look the same.
func TestConformsSeesDrift(t *testing.T) {
	const (
		good     = `{"error":{"type":"Unauthenticated","message":"m","details":{"path":"/x"}}}`
		key      = "3b0a6a52-6c1e-4f0e-9d57-1f6f3f0f8a11"
		accepted = `{"key":"` + key + `","meta":{"href":"/a","parent":"/api/firmware","slots":"/b","test":"/c","upgrade":"/d"}}`
	)
	const (
		unauthorized = `{"error":{"message":"m","code":"6691623"}}`
		job          = `{"uuid":"` + key + `","description":"POST /api/cluster/software/download","state":"success","message":"success","code":0,"node":{"name":"n"},` +
			`"_links":{"self":{"href":"/api/cluster/jobs/` + key + `"}}}`
	)
	hal := []string{"Content-Type", "application/hal+json"}
	challenge := append(slices.Clip(hal), "Www-Authenticate", `Basic realm="slotfetch"`)
	location, post := []string{"Location", fetches + "/" + key, "Retry-After", "2"}, order("https://x/y", small.SHA256(), "slot_id", "5", "tls", nil, "odd", 1)
	for _, c := range []struct {
		name, method, path, sent string
		status                   int
		header                   []string
		body                     string
		ok                       bool
	}{
		{name: "good", method: "GET", path: fetches, status: 401, body: good, ok: true},
		{name: "good //", method: "GET", path: "/api//firmware/fetch/", status: 401, body: good, ok: true},
		{name: "good 404", method: "GET", path: "/api/nope", status: 404, ok: true,
			body: `{"error":{"type":"ResourceNotFound","message":"m","code":"3","details":{"mount_point":"/api","resource":"/api/nope"}}}`},
		{name: "good POST", method: "POST", path: fetches, sent: post, status: 202, header: location, body: accepted, ok: true},
		{name: "POST without Location", method: "POST", path: fetches, sent: post, status: 202, header: location[2:], body: accepted},
		{name: "POST of less", method: "POST", path: fetches, sent: `{"url":"https://x/y"}`, status: 202, header: location, body: accepted},
		{name: "POST of nothing", method: "POST", path: fetches, status: 202, header: location, body: accepted},
		{name: "status", method: "GET", path: fetches, status: 418, body: good},
		{name: "status of another method", method: "GET", path: fetches, status: 413, body: good},
		{name: "unknown path", method: "GET", path: "/api/nope", status: 401, body: good},
		{name: "unknown method", method: "PUT", path: fetches, status: 401, body: good},
		{name: "key at the top", method: "GET", path: fetches, status: 401, body: strings.Replace(good, `{"error"`, `{"odd":1,"error"`, 1)},
		{name: "key below", method: "GET", path: fetches, status: 401, body: strings.Replace(good, `{"path"`, `{"odd":1,"path"`, 1)},
		{name: "missing key", method: "GET", path: fetches, status: 401, body: strings.Replace(good, `"message":"m",`, ``, 1)},
		{name: "wrong type", method: "GET", path: fetches, status: 401, body: strings.Replace(good, `"m"`, `1`, 1)},
		{name: "error type of another status", method: "GET", path: fetches, status: 401, body: strings.Replace(good, "Unauthenticated", "Conflict", 1)},
		{name: "header", method: "GET", path: fetches, status: 401, header: []string{"Www-Authenticate", `Basic realm="slotfetch"`}, body: good},
		{name: "bad header", method: "GET", path: fetches, status: 401, header: []string{"X-Request-Id", "a b"}, body: good},
		{name: "missing header", method: "GET", path: fetches, status: 503, body: strings.Replace(good, "Unauthenticated", "ServiceUnavailable", 1)},
		{name: "missing header of HEAD", method: "HEAD", path: fetches, status: 503},
		{name: "content type", method: "GET", path: fetches, status: 401, header: []string{"Content-Type", "text/plain"}, body: good},
		{name: "good cluster", method: "GET", path: clusterPath, status: 401, header: challenge, body: unauthorized, ok: true},
		{name: "good //cluster", method: "GET", path: "/api//cluster/jobs/", status: 401, header: challenge, body: unauthorized, ok: true},
		{name: "good 404 of the cluster", method: "GET", path: clusterPath + "/nope", status: 404, header: hal, body: `{"error":{"message":"m","code":"3"}}`, ok: true},
		{name: "good 405 of the cluster", method: "PUT", path: clusterPath, status: 405, header: append(hal, "Allow", "GET"), body: `{"error":{"message":"m","code":"3"}}`, ok: true},
		{name: "good job", method: "GET", path: jobsPath + "/" + key, status: 200, header: hal, body: job, ok: true},
		{name: "a cluster that speaks SPS", method: "GET", path: clusterPath, status: 401, body: good},
		{name: "content type of the cluster", method: "GET", path: clusterPath, status: 401, header: challenge[2:], body: unauthorized},
		{name: "cluster without a challenge", method: "GET", path: clusterPath, status: 401, header: hal, body: unauthorized},
		{name: "code of another status", method: "GET", path: clusterPath, status: 401, header: challenge, body: strings.Replace(unauthorized, "6691623", "6", 1)},
		{name: "code as a number", method: "GET", path: clusterPath, status: 401, header: challenge, body: strings.Replace(unauthorized, `"6691623"`, "6691623", 1)},
		{name: "another code of a 404", method: "GET", path: clusterPath + "/nope", status: 404, header: hal, body: `{"error":{"message":"m","code":"4"}}`},
		{name: "unknown parameter", method: "GET", path: jobsPath + "/" + key + "?colour=red", status: 200, header: hal, body: job},
		{name: "failure without a code", method: "GET", path: jobsPath + "/" + key, status: 200, header: hal, body: strings.Replace(job, "success", "failure", 1)},
		{name: "success with an error", method: "GET", path: jobsPath + "/" + key, status: 200, header: hal,
			body: strings.Replace(job, `"code":0`, `"code":0,"error":{"message":"m","code":"10551381"}`, 1)},
		{name: "state of a job", method: "GET", path: jobsPath + "/" + key, status: 200, header: hal, body: strings.Replace(job, "success", "paused", 1)},
		{name: "half a slot", method: "GET", path: slotsPath + "/1", status: 200,
			body: `{"key":"1","body":{"version":"1"},"meta":{"href":"/x","parent":"/y"}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := http.NewRequest(c.method, "https://127.0.0.1:1"+c.path, strings.NewReader(c.sent))
			check(t, err)
			header := http.Header{"Content-Type": {"application/json"}, "X-Request-Id": {"a"}}
			for i := 0; i < len(c.header); i += 2 {
				header.Set(c.header[i], c.header[i+1])
			}
			if err := conforms(r, c.sent, c.status, header, c.body); (err == nil) != c.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}
