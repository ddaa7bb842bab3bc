package fetch

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/gorilla/mux"

	"slotfetch/api"
	"slotfetch/store"
)

// attemptRoutes show what the attempts of a fetch did.
func (m *Manager) attemptRoutes() []api.Route {
	return []api.Route{
		{Method: http.MethodGet, Path: path + "/{key}/attempts", Access: api.Viewer, Handler: m.handleAttempts},
		{Method: http.MethodGet, Path: path + "/{key}/attempts/{number}", Access: api.Viewer, Handler: m.handleAttempt},
	}
}

// attemptItems gives the attempts on the wire, without parents, and the path of their list.
func (m *Manager) attemptItems(r *http.Request) (items []api.Attempt, href string, err error) {
	key, err := keyOf(r)
	if err != nil {
		return nil, "", err
	}
	list, rate, err := m.Attempts(r.Context(), key)
	if errors.Is(err, store.ErrNotFound) {
		err = api.NotFound(path, key)
	}
	href = path + "/" + key + "/attempts"
	items = []api.Attempt{}
	for _, a := range list {
		number := strconv.Itoa(a.Number)
		items = append(items, api.Attempt{Key: number, Body: attemptBody(a, rate), Meta: api.Meta{Href: href + "/" + number}})
	}
	return items, href, err
}

func (m *Manager) handleAttempts(r *http.Request) (api.Reply, error) {
	items, href, err := m.attemptItems(r)
	if err != nil {
		return api.Reply{}, err
	}
	return api.Reply{Body: api.AttemptList{Items: items, Meta: api.Meta{Href: href, Parent: href[:len(href)-len("/attempts")]}}}, nil
}

func (m *Manager) handleAttempt(r *http.Request) (api.Reply, error) {
	items, href, err := m.attemptItems(r)
	if err != nil {
		return api.Reply{}, err
	}
	number := mux.Vars(r)["number"]
	for _, a := range items {
		if a.Key == number {
			a.Meta.Parent = href
			return api.Reply{Body: a}, nil
		}
	}
	return api.Reply{}, api.NotFound(href, truncate(number))
}

// attemptBody is a on the wire. rate is for one that runs.
func attemptBody(a store.Attempt, rate *int64) api.AttemptBody {
	b := api.AttemptBody{
		URL: a.URL, RedirectedTo: known(a.RedirectedTo), Proxy: known(a.Proxy), Address: known(a.Address),
		StartTime: api.FormatTime(a.Started), EndTime: api.FormatTime(a.Ended),
		DNSMS: a.DNS, ConnectMS: a.Connect, TLSMS: a.TLS, FirstByteMS: a.FirstByte,
		ResumedFrom: a.ResumedFrom, BytesReceived: a.BytesReceived, Connections: a.Connections, HTTPStatus: known(a.HTTPStatus),
		Error: known(a.Error), ErrorCode: known(a.ErrorCode), ErrorClass: known(a.ErrorClass), Bottleneck: known(a.Bottleneck),
		NetworkMS: a.Network, HashMS: a.Hash, DiskMS: a.Disk, LimitMS: a.Limit,
	}
	switch took := a.Ended.Sub(a.Started); {
	case a.Ended.IsZero():
		b.BytesPerSecond = rate
	case took > 0 && a.BytesReceived > 0:
		average := int64(float64(a.BytesReceived) / took.Seconds())
		b.BytesPerSecond = &average
	}
	return b
}

// known is nil for a zero value, which is null on the wire.
func known[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
