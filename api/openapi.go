package api

import (
	"bytes"
	_ "embed"
	"net/http"
	"strconv"
)

// openAPI describes every route of the agent, but those of other dialects. Tests hold it against the table of routes, the shapes in message.go and
// what the agent answers.
//
//go:embed openapi.yaml
var openAPI []byte

// OpenAPIRoute serves the description of the API.
func OpenAPIRoute(version string) Route {
	return DescriptionRoute("/api/openapi.yaml", openAPI, version)
}

// DescriptionRoute serves an OpenAPI 3.1 document as YAML (RFC 9512), with version as its info.version. It is public: it
// holds no secret, and tools that read it cannot log in.
func DescriptionRoute(path string, text []byte, version string) Route {
	text = bytes.Replace(text, []byte("\n  version: dev\n"), []byte("\n  version: "+strconv.Quote(version)+"\n"), 1)
	return Route{Method: http.MethodGet, Path: path, Access: Public, Handler: func(*http.Request) (Reply, error) {
		return Reply{Body: text, ContentType: "application/yaml"}, nil
	}}
}
