// Package auth knows who may call: users with roles, sessions behind the session_id cookie, and the throttle
// against guessing. Its handlers are /api/authentication and what belongs to it.
//
// Guarantees: a token exists in clear only in the reply that makes it and in the client's hands; passwords are
// stored as argon2id; a session outlives a restart of the agent and ends 20 minutes after its last request or 12
// hours after the login, whichever is first, also when the clock is set back, and is refused, not ended, while the clock
// is behind it after a boot; unknown users, wrong passwords,
// disabled users and blocks are answered alike.
package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"slotfetch/api"
	"slotfetch/store"
)

const (
	// CookieName is the session cookie of the SPS dialect.
	CookieName = "session_id"
	// IdleLimit and Lifetime end a session (contract section 4).
	IdleLimit = 20 * time.Minute
	Lifetime  = 12 * time.Hour

	sessionsPerUser = 100
	tokenSize       = 20
	// flushAfter is how stale the last use of a session may be on disk: a write for every request would cost a
	// flush of the disk each.
	flushAfter = 30 * time.Second
	// maxLogins may wait for the turn to have their password checked, 80 ms each; more are told to come back.
	maxLogins = 32
)

// Config is what [Open] needs.
type Config struct {
	Store *store.Store
	Log   *slog.Logger
	// Now is the system's clock, which may be set; nil means time.Now.
	Now func() time.Time
	// Uptime is the time since Open by a clock that nobody sets; nil means Go's monotonic one.
	Uptime func() time.Duration
	// OnLogin is called with the user's name after each login; nil is fine.
	OnLogin func(user string)
}

// Auth authenticates requests. It is safe for concurrent use.
type Auth struct {
	cfg      Config
	now      func() time.Time
	throttle *throttle
	queue    chan struct{} // logins that wait for the turn, or have it
	turn     chan struct{} // the one whose password is checked

	mu       sync.Mutex
	seen     map[string]*use // by token hash
	due      map[string]bool // sessions whose use is to be written down
	flushing bool            // by a goroutine, which ends when none is due
	closed   bool
	group    sync.WaitGroup
}

// use is when a session was last used, in memory and on disk.
type use struct{ last, flushed time.Time }

// Open expires old sessions and returns the authenticator. Close it before the store.
func Open(cfg Config) (*Auth, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Uptime == nil {
		start := time.Now()
		cfg.Uptime = func() time.Duration { return time.Since(start) }
	}
	now := (&clock{wall: cfg.Now, uptime: cfg.Uptime}).now
	a := &Auth{cfg: cfg, now: now, throttle: newThrottle(now), seen: map[string]*use{}, due: map[string]bool{},
		queue: make(chan struct{}, maxLogins), turn: make(chan struct{}, 1)}
	err := cfg.Store.ExpireSessions(now().Add(-IdleLimit), now().Add(-Lifetime))
	switch {
	case store.Full(err) || store.Busy(err):
		cfg.Log.Warn("cannot remove old sessions; they end when they are used", "err", err)
	case err != nil:
		return nil, err
	}
	return a, nil
}

// Close writes down when sessions were last used.
func (a *Auth) Close() error {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.group.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	last := map[string]time.Time{}
	for hash, u := range a.seen {
		if u.last.After(u.flushed) {
			last[hash] = u.last
		}
	}
	a.seen = map[string]*use{}
	return a.cfg.Store.TouchSessions(last)
}

type localKey struct{}

// WithLocal marks a connection's context as coming from the unix socket, whose file mode admits only root and the
// socket's group. name is the peer's, for the audit.
func WithLocal(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, localKey{}, name)
}

// Authenticate finds the caller by the connection (unix socket) or the cookie. Authorization is not looked at:
// some clients send it with every request, and hashing for each poll would be slow.
func (a *Auth) Authenticate(r *http.Request) (api.Principal, bool, error) {
	if name, ok := r.Context().Value(localKey{}).(string); ok {
		return api.Principal{Name: name, Role: api.Admin, Address: "local"}, true, nil
	}
	hash, ok := tokenHash(r)
	if !ok {
		return api.Principal{}, false, nil
	}
	s, err := a.cfg.Store.Session(r.Context(), hash)
	if errors.Is(err, store.ErrNotFound) {
		a.forget(hash)
		return api.Principal{}, false, nil
	}
	if err != nil {
		return api.Principal{}, false, err
	}
	left, ok := a.use(s)
	if !ok {
		return api.Principal{}, false, nil
	}
	return api.Principal{Name: s.User, Role: roles[s.Role], Address: address(r), Session: hash, RemainingSeconds: int64(left.Seconds())}, true, nil
}

// use slides the session if it is alive and tells how long it lives if it stays idle.
func (a *Auth) use(s store.Session) (left time.Duration, ok bool) {
	now := a.now()
	a.mu.Lock()
	u := a.seen[string(s.TokenHash)]
	dead := false
	if u == nil {
		u = &use{last: s.LastSeen, flushed: s.LastSeen}
		// It is from an earlier run, and was not used in this one.
		dead = a.cfg.Uptime() >= IdleLimit
	}
	dead = dead || now.Sub(u.last) >= IdleLimit || now.Sub(s.CreatedAt) >= Lifetime
	// A moment in the future means that the clock is wrong, as on a box without a real-time clock that has just
	// booted. How long ago it was is not known: the session does not count, but stays until the clock is set.
	early := s.CreatedAt.After(now.Add(time.Second)) || u.last.After(now.Add(time.Second))
	alive := !dead && !early
	if alive {
		a.seen[string(s.TokenHash)] = u
		u.last = now
		if now.Sub(u.flushed) >= flushAfter {
			a.flushLocked(string(s.TokenHash))
		}
	} else {
		delete(a.seen, string(s.TokenHash))
	}
	a.mu.Unlock()
	if dead {
		if err := a.cfg.Store.EndSession(s.TokenHash, store.Actor{Name: s.User, Address: "expired"}); err != nil && !errors.Is(err, store.ErrNotFound) {
			a.cfg.Log.Warn("cannot end expired session", "err", err)
		}
	}
	if !alive {
		return 0, false
	}
	return min(IdleLimit, Lifetime-now.Sub(s.CreatedAt)), true
}

// flushLocked has the use of a session written down, by a goroutine of which there is one at a time: no request waits for a
// database that somebody else has locked.
func (a *Auth) flushLocked(hash string) {
	if a.closed {
		return // Close writes it
	}
	a.due[hash] = true
	if !a.flushing {
		a.flushing = true
		a.group.Go(a.flush)
	}
}

// flush writes down what is due until nothing is.
func (a *Auth) flush() {
	for {
		last := a.nextDue()
		if len(last) == 0 {
			return
		}
		if err := a.cfg.Store.TouchSessions(last); err != nil {
			a.cfg.Log.Warn("cannot note the use of sessions", "sessions", len(last), "err", err)
		}
	}
}

// nextDue takes the sessions that are due, and when they were last used. If there is none, or Close will write them all, the
// flushing is over.
func (a *Auth) nextDue() map[string]time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	last := map[string]time.Time{}
	if !a.closed {
		for hash := range a.due {
			if u := a.seen[hash]; u != nil {
				u.flushed = u.last
				last[hash] = u.last
			}
		}
		clear(a.due)
	}
	a.flushing = len(last) > 0
	return last
}

// remember notes a new session, and lets go of those that are over by now: of many nobody asks again.
func (a *Auth) remember(hash []byte, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for hash, u := range a.seen {
		if now.Sub(u.last) >= IdleLimit {
			delete(a.seen, hash)
		}
	}
	a.seen[string(hash)] = &use{last: now, flushed: now}
}

func (a *Auth) forget(hash []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.seen, string(hash))
}

// login checks name and password and makes a session. ok is false for every reason alike.
func (a *Auth) login(r *http.Request, name, password string) (token string, ok bool, err error) {
	u, ok, err := a.verify(r, name, password)
	if err != nil || !ok {
		return "", false, err
	}
	raw := make([]byte, tokenSize)
	rand.Read(raw)
	token = hex.EncodeToString(raw)
	sum := sha256.Sum256([]byte(token))
	now := a.now()
	err = a.cfg.Store.AddSession(store.Session{TokenHash: sum[:], User: u.Name, CreatedAt: now, LastSeen: now,
		Address: address(r), Agent: truncate(r.UserAgent(), 200)}, u.PasswordHash, sessionsPerUser)
	if errors.Is(err, store.ErrConflict) {
		return "", false, nil // the password was right a moment ago
	}
	if err != nil {
		return "", false, err
	}
	a.remember(sum[:], now)
	if a.cfg.OnLogin != nil {
		a.cfg.OnLogin(u.Name)
	}
	return token, true, nil
}

// verify finds the user whose password it is; ok is false for every reason alike. One password is checked at a time:
// guesses sent at once must not all pass the throttle before the first of them counts, and a check takes much memory.
func (a *Auth) verify(r *http.Request, name, password string) (u store.User, ok bool, err error) {
	from := address(r)
	if a.throttle.blocked(name, from) {
		return u, false, nil
	}
	busy := api.Unavailable("Too many logins at once. Try again in a few seconds.")
	select {
	case a.queue <- struct{}{}:
		defer func() { <-a.queue }()
	default:
		return u, false, busy
	}
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-r.Context().Done():
		return u, false, busy
	}
	if a.throttle.blocked(name, from) { // by one that had its turn before
		return u, false, nil
	}
	u, err = a.cfg.Store.User(r.Context(), name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return u, false, err
	}
	known := err == nil
	hash := dummy
	if known {
		hash = u.PasswordHash
	}
	if !CheckPassword(hash, password) || !known || u.Disabled {
		// Without the name, for which some type their password.
		a.cfg.Log.Warn("login failed", "remote", from)
		if a.throttle.failed(name, from) {
			a.cfg.Log.Warn("too many failed logins: this user, or this address, is refused for a while", "remote", from, "duration", window.String())
		}
		return u, false, nil
	}
	return u, true, nil
}

var roles = map[string]api.Access{"admin": api.Admin, "operator": api.Operator, "viewer": api.Viewer}

// ValidRole tells whether role is one that a user can have.
func ValidRole(role string) bool {
	_, ok := roles[role]
	return ok
}

// tokenHash is the hash of the one well-formed session cookie of r. Two of them are as good as none: which one
// counts is nothing to guess at.
func tokenHash(r *http.Request) ([]byte, bool) {
	cookies := r.CookiesNamed(CookieName)
	if len(cookies) != 1 || len(cookies[0].Value) != 2*tokenSize || strings.Trim(cookies[0].Value, "0123456789abcdef") != "" {
		return nil, false
	}
	sum := sha256.Sum256([]byte(cookies[0].Value))
	return sum[:], true
}

func address(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

func truncate(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "?")
}
