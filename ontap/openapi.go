package ontap

import (
	_ "embed"

	"slotfetch/api"
)

// openAPI describes the routes of [Server.Routes]. Tests hold it against them, the shapes in message.go, the filters, the codes
// and what the agent answers.
//
//go:embed openapi.yaml
var openAPI []byte

// OpenAPIRoute serves the description of the dialect. It is no part of the dialect, so that tools find it beside that of SPS.
func OpenAPIRoute(version string) api.Route {
	return api.DescriptionRoute("/api/openapi-ontap.yaml", openAPI, version)
}
