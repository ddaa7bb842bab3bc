package api

import (
	"net/http"
	"slices"
	"strings"
)

// IndexRoutes adds to a table the routes that describe it: /api, /api/firmware and /api/user_info in its three
// spellings.
func IndexRoutes(table []Route) []Route {
	top := []string{"authentication", "firmware", "info", "metrics", "setup", "user_info"}
	for _, r := range table { // descriptions, one for each dialect
		if name, ok := strings.CutPrefix(r.Path, "/api/"); ok && strings.HasSuffix(name, ".yaml") {
			top = append(top, name)
		}
	}
	slices.Sort(top)
	routes := []Route{
		{Method: http.MethodGet, Path: "/api", Access: Viewer, Handler: index("/api", "", top...)},
		{Method: http.MethodGet, Path: "/api/firmware", Access: Viewer, Handler: index("/api/firmware", "/api", "fetch", "slots", "test", "upgrade")},
	}
	for _, path := range []string{"/api/user_info", "/api/user/info", "/api/userinfo"} {
		routes = append(routes, Route{Method: http.MethodGet, Path: path, Access: Viewer, Handler: userInfo(path, table)})
	}
	return append(table, routes...)
}

// index lists what lies below path.
func index(path, parent string, names ...string) Handler {
	reply := Index{Meta: map[string]string{"href": path}}
	if parent != "" {
		reply.Meta["parent"] = parent
	}
	for _, name := range names {
		reply.Items = append(reply.Items, IndexItem{Key: name, Meta: Meta{Href: path + "/" + name}})
		reply.Meta[name] = path + "/" + name
	}
	return func(*http.Request) (Reply, error) { return Reply{Body: reply}, nil }
}

// userInfo says who calls and what the caller may call.
func userInfo(path string, table []Route) Handler {
	return func(r *http.Request) (Reply, error) {
		p, _ := PrincipalFrom(r.Context())
		reply := UserInfo{User: UserName{Name: p.Name, Role: p.Role.String()}, Endpoints: []Endpoint{}, Meta: Meta{Href: path}}
		for _, route := range table {
			if !p.May(route.Access) || !strings.HasPrefix(route.Path, "/api/") {
				continue
			}
			i := slices.IndexFunc(reply.Endpoints, func(e Endpoint) bool { return e.URL == route.Path })
			if i < 0 {
				i = len(reply.Endpoints)
				reply.Endpoints = append(reply.Endpoints, Endpoint{URL: route.Path})
			}
			reply.Endpoints[i].Methods = append(reply.Endpoints[i].Methods, route.Method)
		}
		return Reply{Body: reply}, nil
	}
}
