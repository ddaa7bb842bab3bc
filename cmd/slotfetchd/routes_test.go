package main

import (
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// TestRoutesAreDescribed holds the real table against the OpenAPI documents: the same methods and paths, the same roles. Each
// document has the paths of its dialect and no other.
func TestRoutesAreDescribed(t *testing.T) {
	dir, err := os.MkdirTemp("", "sf") // short, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := defaults()
	cfg.StateDir, cfg.Slots.Dir = filepath.Join(dir, "state"), filepath.Join(dir, "slots")
	cfg.API.Listen, cfg.Local.Socket = "127.0.0.1:0", filepath.Join(dir, "s")
	d, err := openDaemon(cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	})

	routes, described := map[string]string{}, map[string]string{}
	for _, r := range d.routes() {
		routes[r.Method+" "+r.Path] = r.Access.String()
		if strings.HasSuffix(r.Path, ".yaml") {
			reply, err := r.Handler(nil)
			if err != nil {
				t.Fatal(err)
			}
			doc, err := openapi3.NewLoader().LoadFromData(reply.Body.([]byte))
			if err != nil {
				t.Fatal(err)
			}
			for path, item := range doc.Paths.Map() {
				if strings.HasPrefix(path, "/api/cluster") != (r.Path == "/api/openapi-ontap.yaml") {
					t.Errorf("%s has %s", r.Path, path)
				}
				for method, op := range item.Operations() {
					described[method+" "+path], _ = op.Extensions["x-role"].(string)
				}
			}
		}
	}
	for _, what := range slices.Sorted(maps.Keys(routes)) {
		if role, ok := described[what]; !ok {
			t.Errorf("%s is not described", what)
		} else if role != routes[what] {
			t.Errorf("%s needs %s, the description says %q", what, routes[what], role)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(described)) {
		if _, ok := routes[what]; !ok {
			t.Errorf("%s is described, but there is no such route", what)
		}
	}
}
