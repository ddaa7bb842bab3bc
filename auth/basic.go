package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net/http"
	"sync"
	"time"

	"slotfetch/api"
	"slotfetch/store"
)

// This file takes a name and a password with each request, for clients that know no session. A password is expensive to
// check, so a pair that was right is remembered: as a keyed hash, while it is in use, and until the user is changed. Whoever
// polls with it is then not shut out by the guesses of others.

const (
	// pairIdle and pairLife are how long a pair is remembered after its last use, and after it was checked.
	pairIdle, pairLife = 5 * time.Minute, 12 * time.Hour
	// maxPairs bounds the memory.
	maxPairs = 1000
)

// perRequest authenticates by session or by HTTP Basic. It is safe for concurrent use.
type perRequest struct {
	a   *Auth
	key []byte

	mu    sync.Mutex
	known map[pair]knownPair
	tried map[pair]chan struct{} // being checked; closed after
}

// pair is the keyed hash of a name and its password.
type pair [sha256.Size]byte

// knownPair is a pair that was right for as long as the user's password hash stays the same.
type knownPair struct {
	user, passwordHash string
	checked, until     time.Time
}

// PerRequest takes HTTP Basic beside sessions (ONTAP contract section 2.1). A live session wins; a login makes none.
func (a *Auth) PerRequest() api.Authenticator {
	p := &perRequest{a: a, key: make([]byte, sha256.Size), known: map[pair]knownPair{}, tried: map[pair]chan struct{}{}}
	rand.Read(p.key)
	return p
}

// Authenticate implements [api.Authenticator].
func (b *perRequest) Authenticate(r *http.Request) (api.Principal, bool, error) {
	if p, ok, err := b.a.Authenticate(r); ok || err != nil {
		return p, ok, err
	}
	name, password, ok := basic(r)
	if !ok {
		return api.Principal{}, false, nil
	}
	u, ok, err := b.check(r, name, password)
	if err != nil || !ok {
		return api.Principal{}, false, err
	}
	return api.Principal{Name: u.Name, Role: roles[u.Role], Address: address(r)}, true, nil
}

// check finds the user of a pair. Of many requests with one pair, one pays for the check of the password.
func (b *perRequest) check(r *http.Request, name, password string) (u store.User, ok bool, err error) {
	mac := hmac.New(sha256.New, b.key)
	mac.Write([]byte(name + ":" + password)) // a name has no colon
	p := pair(mac.Sum(nil))
	for {
		if u, ok, err := b.remembered(r, p); ok || err != nil {
			return u, ok, err
		}
		b.mu.Lock()
		busy := b.tried[p]
		if busy == nil {
			b.tried[p] = make(chan struct{})
		}
		b.mu.Unlock()
		if busy == nil {
			return b.verify(r, p, name, password)
		}
		select {
		case <-busy:
		case <-r.Context().Done():
			return u, false, api.Unavailable("Too many logins at once. Try again in a few seconds.")
		}
	}
}

// remembered is the user of a pair that was right, as the user is now.
func (b *perRequest) remembered(r *http.Request, p pair) (u store.User, ok bool, err error) {
	b.mu.Lock()
	k, known := b.known[p]
	b.mu.Unlock()
	if !known {
		return u, false, nil
	}
	u, err = b.a.cfg.Store.User(r.Context(), k.user)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return u, false, err
	}
	now := b.a.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil && !u.Disabled && u.PasswordHash == k.passwordHash && now.Before(k.until) {
		if _, there := b.known[p]; there {
			k.until = earlier(now.Add(pairIdle), k.checked.Add(pairLife))
			b.known[p] = k
		}
		return u, true, nil
	}
	delete(b.known, p)
	return u, false, nil
}

// verify checks the password, and lets those who wait for it look again.
func (b *perRequest) verify(r *http.Request, p pair, name, password string) (u store.User, ok bool, err error) {
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		close(b.tried[p])
		delete(b.tried, p)
	}()
	if u, ok, err = b.a.verify(r, name, password); err != nil || !ok {
		return u, false, err
	}
	if b.a.cfg.OnLogin != nil {
		b.a.cfg.OnLogin(u.Name)
	}
	now := b.a.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	for p, k := range b.known {
		if !now.Before(k.until) {
			delete(b.known, p)
		}
	}
	if len(b.known) < maxPairs {
		b.known[p] = knownPair{user: u.Name, passwordHash: u.PasswordHash, checked: now, until: now.Add(pairIdle)}
	}
	return u, true, nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
