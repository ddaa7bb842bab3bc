package auth_test

import (
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"slotfetch/api"
	"slotfetch/store"
)

// ask authenticates one request with HTTP Basic.
func ask(t *testing.T, a api.Authenticator, authorization string) (name string, ok bool) {
	t.Helper()
	r := httptest.NewRequest("GET", "/api/cluster", nil)
	r.Header.Set("Authorization", authorization)
	p, ok, err := a.Authenticate(r)
	if err != nil {
		t.Error(err)
	}
	return p.Name, ok
}

// TestPerRequest: a pair is checked once, for as long as it may be remembered.
func TestPerRequest(t *testing.T) {
	b := newBox(t)
	a := b.auth.PerRequest()
	good, bad := basic("ann", password), basic("ann", "wrong")
	if name, ok := ask(t, a, good); !ok || name != "ann" {
		t.Fatalf("%q, %v", name, ok)
	}
	// With the turn taken, no password can be checked: what passes was remembered.
	release := b.auth.TakeTurn()
	for range 100 {
		if _, ok := ask(t, a, good); !ok {
			t.Fatal("not remembered")
		}
	}
	release()
	for _, header := range []string{bad, "", "Basic !!!", "Bearer x", basic("nobody", password)} {
		if _, ok := ask(t, a, header); ok {
			t.Errorf("%q passed", header)
		}
	}
	failures := b.auth.CountFailures()
	b.clock.add(5 * time.Minute)
	if _, ok := ask(t, a, good); !ok || failures.Load() != 0 {
		t.Error("not checked again")
	}
	if err := b.store.SetPassword("ann", cheap("another one"), store.Actor{}); err != nil {
		t.Fatal(err)
	}
	if _, ok := ask(t, a, good); ok || failures.Load() != 1 {
		t.Error("the old password is remembered")
	}
	if _, ok := ask(t, a, basic("ann", "another one")); !ok {
		t.Error("the new password does not pass")
	}
	for _, disabled := range []bool{true, false} {
		if err := b.store.SetDisabled("ann", disabled, store.Actor{}); err != nil {
			t.Fatal(err)
		}
		if _, ok := ask(t, a, basic("ann", "another one")); ok == disabled {
			t.Errorf("disabled %v, passes %v", disabled, ok)
		}
	}
}

// TestPerRequestThrottle: guesses count like those of a login, and a session is worth more than what comes with it.
func TestPerRequestThrottle(t *testing.T) {
	b := newBox(t)
	a := b.auth.PerRequest()
	cookie := b.login("ann")
	for range 20 {
		ask(t, a, basic("ann", "wrong"))
	}
	if _, ok := ask(t, a, basic("ann", password)); ok {
		t.Error("not blocked")
	}
	r := httptest.NewRequest("GET", "/api/cluster", nil)
	r.Header.Set("Authorization", basic("ann", "wrong"))
	r.Header.Set("Cookie", "session_id="+cookie)
	if p, ok, err := a.Authenticate(r); err != nil || !ok || p.Session == nil {
		t.Errorf("%+v, %v, %v", p, ok, err)
	}
}

// TestPerRequestTogether: many that come at once with one pair pay for one check, and none is turned away.
func TestPerRequestTogether(t *testing.T) {
	b := newBox(t)
	a := b.auth.PerRequest()
	release := b.auth.TakeTurn()
	var group sync.WaitGroup
	for range 1000 {
		group.Go(func() {
			if _, ok := ask(t, a, basic("ann", password)); !ok {
				t.Error("refused")
			}
		})
	}
	release()
	group.Wait()
}

// TestPerRequestPolls: who keeps asking is not shut out by guesses at the name, but the password is checked again at last.
func TestPerRequestPolls(t *testing.T) {
	b := newBox(t)
	a := b.auth.PerRequest()
	good := basic("ann", password)
	asks := func(want bool) {
		t.Helper()
		if _, ok := ask(t, a, good); ok != want {
			t.Fatalf("passes %v", ok)
		}
	}
	asks(true)
	for passed := time.Duration(0); passed < 12*time.Hour-4*time.Minute; passed += 4 * time.Minute {
		if passed%(8*time.Minute) == 0 {
			for range 10 {
				ask(t, a, basic("ann", "wrong"))
			}
		}
		asks(true)
		b.clock.add(4 * time.Minute)
	}
	asks(true)
	for range 20 {
		ask(t, a, basic("ann", "wrong"))
	}
	b.clock.add(4 * time.Minute)
	asks(false) // after 12 hours it is a password like any other
}
