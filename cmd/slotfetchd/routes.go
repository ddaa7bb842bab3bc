package main

import (
	"fmt"
	"net/http"
	"os"
	"strings"

	"slotfetch/api"
	"slotfetch/fetch"
	"slotfetch/ontap"
	"slotfetch/store"
)

// routes is the whole table: each feature's own, and those that speak of the box.
func (d *daemon) routes() []api.Route {
	source := d.fetch.Source()
	table := d.auth.Routes()
	table = append(table, d.fetch.Routes(fetch.Policy{
		InRoots:   source.InRoots,
		Signed:    d.cfg.Trust.Require,
		ValidSlot: d.slots.Known,
		Slots:     fmt.Sprintf("the number of a slot, %d to %d", d.cfg.Slots.First, d.cfg.Slots.First+d.cfg.Slots.Count-1),
	})...)
	audit := func(p api.Principal, action, object string) error {
		return d.store.Audit(store.Actor{Name: p.Name, Address: p.Address}, action, object, "")
	}
	table = append(table, d.slots.Routes(audit)...)
	table = append(table, d.scrubber.Routes(audit)...)
	table = append(table, d.tester.Route())
	table = append(table, d.upgradeRoutes()...)
	table = append(table,
		api.Route{Method: http.MethodGet, Path: "/api/info", Access: api.Public, Handler: d.handleInfo},
		api.Route{Method: http.MethodGet, Path: "/api/setup", Access: api.Public, Handler: d.handleSetup},
		api.Route{Method: http.MethodGet, Path: "/healthz", Access: api.Public, Handler: d.handleHealth},
		api.Route{Method: http.MethodGet, Path: "/api/metrics", Access: api.Viewer, Handler: d.handleMetrics},
		api.OpenAPIRoute(version),
	)
	if d.ontap != nil {
		table = append(table, append(d.ontap.Routes(), ontap.OpenAPIRoute(version))...)
	}
	return api.IndexRoutes(table)
}

// dialects are those that are spoken beside that of SPS.
func (d *daemon) dialects() []api.Dialect {
	if d.ontap == nil {
		return nil
	}
	return []api.Dialect{ontap.Dialect(d.auth.PerRequest())}
}

// explain tells callers of what the database could not do, whatever they wanted of it.
func explain(err error) *api.Error {
	var e *api.Error
	switch {
	case store.Full(err):
		e = &api.Error{Status: http.StatusInsufficientStorage, Type: "InsufficientStorage", Message: "The disk is full. Make room and try again."}
	case store.Busy(err):
		e = api.Unavailable("The database is busy. Look what has become of the request before trying again.")
	default:
		return nil
	}
	e.Err = err
	return e
}

func (d *daemon) handleInfo(r *http.Request) (api.Reply, error) {
	name, err := os.Hostname()
	if err != nil {
		return api.Reply{}, err
	}
	reply := api.Info{Key: "about_info", Meta: api.InfoMeta{Href: "/api/info", Parent: "/api"},
		Body: api.InfoBody{Nickname: d.cfg.Info.Nickname, SupportLink: d.cfg.Info.SupportLink}}
	reply.Body.Hostname, reply.Body.Domainname, _ = strings.Cut(name, ".")
	if p, ok := api.PrincipalFrom(r.Context()); ok {
		reply.Meta.RemainingSeconds = p.RemainingSeconds
		reply.Body.InfoSession = &api.InfoSession{AgentVersion: version}
		list, err := d.slots.List()
		if err != nil {
			return api.Reply{}, err
		}
		for _, slot := range list {
			if slot.Current && slot.Manifest != nil {
				reply.Body.Version, reply.Body.FirmwareVersion = &slot.Manifest.Version, &slot.Manifest.Version
			}
		}
	}
	return api.Reply{Body: reply}, nil
}

// handleSetup never says "booting", as SPS does: nobody is answered before the agent is ready.
func (d *daemon) handleSetup(*http.Request) (api.Reply, error) {
	return api.Reply{Body: api.Setup{Status: "completed", Meta: api.InfoMeta{Href: "/api/setup", Parent: "/api"}}}, nil
}

// handleHealth tells strangers only whether, and the journal why not.
func (d *daemon) handleHealth(r *http.Request) (api.Reply, error) {
	if err := d.health(r.Context()); err != nil {
		e := api.Unavailable("The agent cannot do its work; its journal has the details.")
		e.Err = err
		return api.Reply{}, e
	}
	return api.Reply{Body: d.alarm()}, nil
}
