package store_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"slotfetch/store"
)

func login(t *testing.T, s *store.Store, user, token string, at time.Time, most int) {
	t.Helper()
	ok(t, s.AddSession(store.Session{TokenHash: []byte(token), User: user, CreatedAt: at, LastSeen: at, Address: "192.0.2.9", Agent: "curl"}, "h", most))
}

func alive(t *testing.T, s *store.Store, tokens ...string) []string {
	t.Helper()
	out := []string{}
	for _, token := range tokens {
		switch _, err := s.Session(t.Context(), []byte(token)); {
		case err == nil:
			out = append(out, token)
		case !errors.Is(err, store.ErrNotFound):
			t.Fatal(err)
		}
	}
	return out
}

func TestUsers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*store.Store) error
		want   error
		// user is what bob is afterwards, nil for gone; sessions are those of bob that go on.
		user     *store.User
		sessions []string
		action   string
		detail   string
	}{
		{"add again", func(s *store.Store) error {
			return s.AddUser(store.User{Name: "bob", PasswordHash: "x", Role: "admin"}, admin)
		}, store.ErrExists, &store.User{PasswordHash: "h", Role: "viewer"}, []string{"b1", "b2"}, "", ""},
		{"passwd", func(s *store.Store) error { return s.SetPassword("bob", "new", admin) },
			nil, &store.User{PasswordHash: "new", Role: "viewer"}, []string{}, "user.passwd", ""},
		{"role", func(s *store.Store) error { return s.SetRole("bob", "operator", admin) },
			nil, &store.User{PasswordHash: "h", Role: "operator"}, []string{"b1", "b2"}, "user.role", "operator"},
		{"disable", func(s *store.Store) error { return s.SetDisabled("bob", true, admin) },
			nil, &store.User{PasswordHash: "h", Role: "viewer", Disabled: true}, []string{}, "user.disable", ""},
		{"remove", func(s *store.Store) error { return s.RemoveUser("bob", admin) }, nil, nil, []string{}, "user.remove", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := fresh(t)
			for _, name := range []string{"cid", "bob"} {
				ok(t, s.AddUser(store.User{Name: name, PasswordHash: "h", Role: "viewer"}, admin))
			}
			login(t, s, "bob", "b1", t0, 9)
			login(t, s, "bob", "b2", t0, 9)
			login(t, s, "cid", "c1", t0, 9)
			before := must[[]store.Event](t)(s.Events(t.Context(), 100))
			equal(t, 5, len(before))
			if err := tt.change(s); !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			cid := store.User{Name: "cid", PasswordHash: "h", Role: "viewer", CreatedAt: t0}
			want := []store.User{cid}
			bob, err := s.User(t.Context(), "bob")
			if tt.user == nil {
				if !errors.Is(err, store.ErrNotFound) {
					t.Fatal(err)
				}
			} else {
				ok(t, err)
				u := *tt.user
				u.Name, u.CreatedAt = "bob", t0
				equal(t, u, bob)
				want = []store.User{u, cid}
			}
			equal(t, want, must[[]store.User](t)(s.Users(t.Context())))
			equal(t, append(tt.sessions, "c1"), alive(t, s, "b1", "b2", "c1"))
			for _, token := range tt.sessions {
				n := must[store.Session](t)(s.Session(t.Context(), []byte(token)))
				equal(t, store.Session{TokenHash: []byte(token), User: "bob", Role: bob.Role, CreatedAt: t0, LastSeen: t0, Address: "192.0.2.9", Agent: "curl"}, n)
			}
			events := must[[]store.Event](t)(s.Events(t.Context(), 100))
			if tt.action == "" {
				equal(t, before, events)
				return
			}
			equal(t, store.Event{At: t0, Actor: "ann", Address: "192.0.2.1", Action: tt.action, Object: "bob", Detail: tt.detail}, events[0])
			equal(t, before, events[1:])
		})
	}
}

func TestUserRefused(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	for name, err := range map[string]error{
		"passwd":  s.SetPassword("eve", "h", admin),
		"role":    s.SetRole("eve", "admin", admin),
		"disable": s.SetDisabled("eve", true, admin),
		"remove":  s.RemoveUser("eve", admin),
		"logout":  s.EndSession([]byte("none"), admin),
	} {
		if !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ok(t, s.AddUser(store.User{Name: "bob", PasswordHash: "h", Role: "viewer"}, admin))
	for name, err := range map[string]error{
		"add with an unknown role": s.AddUser(store.User{Name: "x", PasswordHash: "h", Role: "root"}, admin),
		"unknown role":             s.SetRole("bob", "root", admin),
	} {
		if err == nil || errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	equal(t, 1, len(must[[]store.Event](t)(s.Events(t.Context(), 100)))) // nothing of what was refused
}

func TestDisabledUserHasNoSession(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	ok(t, s.AddUser(store.User{Name: "bob", PasswordHash: "h", Role: "viewer"}, admin))
	login(t, s, "bob", "before", t0, 9)
	ok(t, s.SetDisabled("bob", true, admin))
	equal(t, []string{}, alive(t, s, "before"))
	ok(t, s.SetDisabled("bob", false, admin))
	equal(t, []string{}, alive(t, s, "before"))
	login(t, s, "bob", "after", t0, 9)
	equal(t, []string{"after"}, alive(t, s, "before", "after"))
}

func TestSessionCap(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	for _, name := range []string{"bob", "cid"} {
		ok(t, s.AddUser(store.User{Name: name, PasswordHash: "h", Role: "viewer"}, admin))
	}
	login(t, s, "cid", "c", t0.Add(-time.Hour), 3)
	for n := range 3 {
		login(t, s, "bob", fmt.Sprint("b", n), t0.Add(time.Duration(n)*time.Second), 3)
	}
	ok(t, s.TouchSessions(map[string]time.Time{"b0": t0.Add(time.Minute)})) // so b1 is the longest idle
	login(t, s, "bob", "b3", t0.Add(2*time.Minute), 3)
	equal(t, []string{"c", "b0", "b2", "b3"}, alive(t, s, "c", "b0", "b1", "b2", "b3"))
	login(t, s, "bob", "b4", t0.Add(2*time.Minute), 1) // the same moment as b3: the new one stays
	equal(t, []string{"c", "b4"}, alive(t, s, "c", "b0", "b1", "b2", "b3", "b4"))
}

func TestSessionTouchAndEnd(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	ok(t, s.AddUser(store.User{Name: "bob", PasswordHash: "h", Role: "viewer"}, admin))
	seen := func() time.Time { return must[store.Session](t)(s.Session(t.Context(), []byte("t"))).LastSeen }
	login(t, s, "bob", "t", t0, 9)
	ok(t, s.TouchSessions(map[string]time.Time{"t": t0.Add(time.Minute)}))
	equal(t, t0.Add(time.Minute), seen())
	ok(t, s.TouchSessions(map[string]time.Time{"t": t0})) // late, out of order
	equal(t, t0.Add(time.Minute), seen())
	ok(t, s.EndSession([]byte("t"), store.Actor{Name: "bob"}))
	ok(t, s.TouchSessions(map[string]time.Time{"t": t0.Add(time.Hour)}))
	equal(t, []string{}, alive(t, s, "t"))
	if err := s.EndSession([]byte("t"), admin); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("ending it again gives %v", err)
	}
	equal(t, "session.logout", must[[]store.Event](t)(s.Events(t.Context(), 1))[0].Action)
}

func TestSessionExpiry(t *testing.T) {
	t.Parallel()
	s, _ := fresh(t)
	ok(t, s.AddUser(store.User{Name: "bob", PasswordHash: "h", Role: "viewer"}, admin))
	for token, age := range map[string]time.Duration{"new": 0, "old": -10 * time.Hour, "idle": -2 * time.Hour, "used": -2 * time.Hour} {
		login(t, s, "bob", token, t0.Add(age), 9)
	}
	ok(t, s.TouchSessions(map[string]time.Time{"old": t0}))
	ok(t, s.TouchSessions(map[string]time.Time{"used": t0.Add(-time.Hour)}))
	ok(t, s.ExpireSessions(t0.Add(-time.Hour), t0.Add(-8*time.Hour)))
	equal(t, []string{"new", "used"}, alive(t, s, "new", "old", "idle", "used"))
}

// A login checks the password first and stores the session later: what happens to the user in between counts.
func TestLoginOvertaken(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*store.Store) error{
		"passwd":  func(s *store.Store) error { return s.SetPassword("bob", "new", admin) },
		"disable": func(s *store.Store) error { return s.SetDisabled("bob", true, admin) },
		"remove":  func(s *store.Store) error { return s.RemoveUser("bob", admin) },
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := fresh(t)
			ok(t, s.AddUser(store.User{Name: "bob", PasswordHash: "h", Role: "viewer"}, admin))
			ok(t, change(s))
			err := s.AddSession(store.Session{TokenHash: []byte("t"), User: "bob", CreatedAt: t0, LastSeen: t0}, "h", 5)
			if !errors.Is(err, store.ErrConflict) {
				t.Errorf("error %v, want a conflict", err)
			}
			equal(t, []string{}, alive(t, s, "t"))
			if e := must[[]store.Event](t)(s.Events(t.Context(), 1))[0]; e.Action == "session.login" {
				t.Errorf("the audit has %+v", e)
			}
		})
	}
}
