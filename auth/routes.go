package auth

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"

	"slotfetch/api"
	"slotfetch/store"
)

const path = "/api/authentication"

var meta = api.MetaOnly{Meta: api.Meta{Href: path, Parent: "/api"}}

// Routes are login, logout and the ways to log in.
func (a *Auth) Routes() []api.Route {
	return []api.Route{
		{Method: http.MethodGet, Path: path, Access: api.Public, Handler: a.handleLogin},
		{Method: http.MethodPost, Path: path, Access: api.Public, Handler: a.handleLogin},
		{Method: http.MethodDelete, Path: path, Access: api.Public, Handler: a.handleLogout},
		{Method: http.MethodGet, Path: path + "/login_methods", Access: api.Public, Handler: a.handleMethods},
	}
}

// challenge makes Java's client, which asks without credentials first, repeat with them (contract section 9).
func challenge(e *api.Error) *api.Error {
	e.Header = http.Header{"Www-Authenticate": {`Basic realm="slotfetch"`}}
	return e
}

func (a *Auth) handleLogin(r *http.Request) (api.Reply, error) {
	q := r.URL.Query()
	if m := q.Get("login_method"); m != "" && m != "local" {
		return api.Reply{}, api.Semantic("login_method", `"local", the only way to log in`)
	}
	if t := q.Get("type"); t != "" && t != "basic" {
		return api.Reply{}, api.Semantic("type", `"basic", the only type of login`)
	}
	if _, ok := api.PrincipalFrom(r.Context()); ok && r.Header.Get("Authorization") == "" {
		return api.Reply{Body: meta}, nil
	}
	name, password, ok := basic(r)
	if !ok {
		return api.Reply{}, challenge(api.Unauthenticated(path))
	}
	token, ok, err := a.login(r, name, password)
	if err != nil {
		return api.Reply{}, err
	}
	if !ok {
		return api.Reply{}, challenge(&api.Error{Status: http.StatusUnauthorized, Type: "AuthenticationFailure", Message: "Unable to authenticate."})
	}
	// Written by hand: clients parse it by hand too, and depend on this order and spelling.
	cookie := fmt.Sprintf("%s=%s; Path=/; Max-Age=%d; HttpOnly; Secure; SameSite=Strict", CookieName, token, int(Lifetime.Seconds()))
	return api.Reply{Body: meta, Header: http.Header{"Set-Cookie": {cookie}}}, nil
}

// handleLogout is public in the table only because its 401 carries the challenge, as every 401 of this path does.
func (a *Auth) handleLogout(r *http.Request) (api.Reply, error) {
	p, ok := api.PrincipalFrom(r.Context())
	if !ok {
		return api.Reply{}, challenge(api.Unauthenticated(path))
	}
	if p.Session != nil {
		a.forget(p.Session)
		if err := a.cfg.Store.EndSession(p.Session, store.Actor{Name: p.Name, Address: p.Address}); err != nil && !errors.Is(err, store.ErrNotFound) {
			return api.Reply{}, err
		}
	}
	return api.Reply{Body: meta, Header: http.Header{"Set-Cookie": {CookieName + "=; Path=/; Max-Age=0"}}}, nil
}

func (a *Auth) handleMethods(*http.Request) (api.Reply, error) {
	return api.Reply{Body: api.LoginMethods{
		LoginMethods: []api.LoginMethod{{Name: "local", Type: "basic"}},
		Meta:         api.Meta{Href: path + "/login_methods", Parent: path},
	}}, nil
}

// basic reads the Authorization header. Bytes that are no UTF-8 are read as Latin-1 (contract section 4).
func basic(r *http.Request) (name, password string, ok bool) {
	scheme, encoded, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", "", false
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		return "", "", false
	}
	text := string(raw)
	if !utf8.ValidString(text) {
		runes := make([]rune, len(raw))
		for i, b := range raw {
			runes[i] = rune(b)
		}
		text = string(runes)
	}
	return strings.Cut(text, ":")
}
