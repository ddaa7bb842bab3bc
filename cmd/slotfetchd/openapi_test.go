package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
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
)

// description is the OpenAPI document of the agent, with a router over it.
var description = sync.OnceValue(func() (d struct {
	doc    *openapi3.T
	router routers.Router
}) {
	reply, err := api.OpenAPIRoute("dev").Handler(nil)
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
})

// conforms tells whether an answer of the agent, and the request if it was accepted, are as described. So all traffic
// of the black-box tests checks the description, and the other way round.
func conforms(r *http.Request, sent string, status int, header http.Header, body string) error {
	r = r.Clone(context.Background())
	r.URL.Path = "/" + strings.Join(strings.FieldsFunc(r.URL.Path, func(c rune) bool { return c == '/' }), "/")
	options := &openapi3filter.Options{IncludeResponseStatus: true, AuthenticationFunc: openapi3filter.NoopAuthenticationFunc,
		ExcludeResponseBody: r.Method == http.MethodHead}
	if r.Method == http.MethodHead {
		r.Method = http.MethodGet
	}
	route, vars, err := find(r)
	if err != nil {
		return err
	}
	in := &openapi3filter.RequestValidationInput{Request: r, PathParams: vars, Route: route, Options: options}
	if status < 300 && r.Method != http.MethodOptions && r.URL.Path != uploadPath { // whose bodies are no JSON
		sent, err := strict(sent)
		if err != nil {
			return err
		}
		if status == http.StatusAccepted && r.Method == http.MethodPost && !strings.Contains(sent, `"checksum":`) && !strings.Contains(sent, `"signature":`) {
			return errors.New("accepted without what only a dry run may lack")
		}
		r.Header.Set("Content-Type", "application/json") // the agent reads nothing else, whatever it says
		r.Body, r.GetBody = io.NopCloser(strings.NewReader(sent)), nil
		if err := openapi3filter.ValidateRequest(r.Context(), in); err != nil {
			return fmt.Errorf("accepted, but not described: %w", err)
		}
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: status, Header: header, Options: options}
	if err := openapi3filter.ValidateResponse(r.Context(), out.SetBodyBytes([]byte(body))); err != nil {
		return err
	}
	described := route.Operation.Responses.Status(status).Value
	for _, name := range []string{"Allow", "Location", "Retry-After", "Set-Cookie", "Www-Authenticate"} {
		if _, ok := header[name]; ok && !slices.ContainsFunc(slices.Collect(maps.Keys(described.Headers)), func(s string) bool { return strings.EqualFold(s, name) }) {
			return fmt.Errorf("header %s is not described", name)
		}
	}
	if status >= 400 && !options.ExcludeResponseBody {
		var e api.ErrorReply
		if err := json.Unmarshal([]byte(body), &e); err != nil {
			return err
		}
		if types, _ := described.Extensions["x-error-types"].([]any); !slices.Contains(types, any(e.Error.Type)) {
			return fmt.Errorf("error.type %s is not one of %v", e.Error.Type, types)
		}
	}
	return nil
}

// find is the described operation for r. For what has none, it is one with the response that the rules for all routes
// name.
func find(r *http.Request) (*routers.Route, map[string]string, error) {
	d := description()
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
	for path, item := range description().doc.Paths.Map() {
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
	served := stranger.do(t, "GET", "/api/openapi.yaml", "").want(t, 200)
	if got := served.header.Get("Content-Type"); got != "application/yaml" || !bytes.Contains([]byte(served.raw), []byte("\n  version: \"dev\"\n")) {
		t.Errorf("%s: %.200s", got, served.raw)
	}
}

// TestConformsSeesDrift makes sure that conforms refuses: a check that takes everything would look the same.
func TestConformsSeesDrift(t *testing.T) {
	const (
		good     = `{"error":{"type":"Unauthenticated","message":"m","details":{"path":"/x"}}}`
		key      = "3b0a6a52-6c1e-4f0e-9d57-1f6f3f0f8a11"
		accepted = `{"key":"` + key + `","meta":{"href":"/a","parent":"/api/firmware","slots":"/b","test":"/c","upgrade":"/d"}}`
	)
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
