package ontap

import (
	"net"
	"net/http"

	"slotfetch/api"
)

// This file answers the first probe of every client. It waits for neither downloads nor the database.

// box is the cluster, or its node, which has the same to say of itself.
func (s *Server) box(r *http.Request, href string) (Cluster, error) {
	name, err := s.name()
	if err != nil {
		return Cluster{}, err
	}
	c := Cluster{Name: name, UUID: s.cfg.UUID, Version: s.cfg.Version, ManagementInterfaces: []Interface{}, Links: link(href)}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok { // under which the caller reached us
		c.ManagementInterfaces = append(c.ManagementInterfaces, Interface{IP{local.IP.String()}})
	}
	return c, nil
}

func (s *Server) getCluster(r *http.Request) (api.Reply, error) {
	if _, err := readQuery(r, nil, nil); err != nil {
		return api.Reply{}, err
	}
	c, err := s.box(r, prefix)
	return api.Reply{Body: c}, err
}

var nodeFields = fields[Cluster]{
	"name":               func(c Cluster) value { return text(c.Name) },
	"uuid":               func(c Cluster) value { return text(c.UUID) },
	"version.full":       func(c Cluster) value { return text(c.Version.Full) },
	"version.generation": func(c Cluster) value { return number(int64(c.Version.Generation)) },
	"version.major":      func(c Cluster) value { return number(int64(c.Version.Major)) },
	"version.minor":      func(c Cluster) value { return number(int64(c.Version.Minor)) },
}

// getNodes has exactly one record (rule 20).
func (s *Server) getNodes(r *http.Request) (api.Reply, error) {
	q, err := readQuery(r, nodeFields.names(), nil)
	if err != nil {
		return api.Reply{}, err
	}
	c, err := s.box(r, nodesPath)
	if err != nil {
		return api.Reply{}, err
	}
	return collection(q, []Cluster{c}, nodeFields), nil
}
