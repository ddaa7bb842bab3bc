package auth

import (
	"crypto/sha256"
	"net/netip"
	"sync"
	"time"
)

// Brute force: this many failures within the window block the source address, or the user, for as long as the
// window (contract section 4).
const (
	maxFailures = 20
	window      = 10 * time.Minute
	// maxTracked bounds the memory: beyond it, the entry that was quiet longest is forgotten.
	maxTracked = 10_000
)

// throttle counts failed logins by address and by user. It is safe for concurrent use.
type throttle struct {
	now func() time.Time

	mu      sync.Mutex
	entries map[throttleKey]*failures
}

type failures struct {
	at      []time.Time
	blocked time.Time // until
}

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, entries: map[throttleKey]*failures{}}
}

// throttleKey is a hash, because strangers send names of any length.
type throttleKey [sha256.Size]byte

// throttleKeys are those by which a login is counted. An IPv6 host owns its whole /64.
func throttleKeys(user, address string) [2]throttleKey {
	if a, err := netip.ParseAddr(address); err == nil {
		if a = a.Unmap().WithZone(""); a.Is6() {
			if p, err := a.Prefix(64); err == nil {
				address = p.String()
			}
		}
	}
	return [2]throttleKey{sha256.Sum256([]byte("user " + user)), sha256.Sum256([]byte("address " + address))}
}

// blocked tells whether the login may not even be tried. Asking does not prolong a block.
func (t *throttle) blocked(user, address string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for _, key := range throttleKeys(user, address) {
		if e := t.entries[key]; e != nil && now.Before(e.blocked) {
			return true
		}
	}
	return false
}

// failed counts a failure and tells whether it is one too many.
func (t *throttle) failed(user, address string) (blocks bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for _, key := range throttleKeys(user, address) {
		e := t.entries[key]
		if e == nil {
			t.evictLocked(now)
			e = &failures{}
			t.entries[key] = e
		}
		kept := e.at[:0]
		for _, at := range e.at {
			if now.Sub(at) < window {
				kept = append(kept, at)
			}
		}
		e.at = append(kept, now)
		if len(e.at) >= maxFailures {
			e.at, e.blocked = nil, now.Add(window)
			blocks = true
		}
	}
	return blocks
}

// evictLocked makes room for one more entry: those that no longer matter first, else the quietest.
func (t *throttle) evictLocked(now time.Time) {
	if len(t.entries) < maxTracked {
		return
	}
	var oldest throttleKey
	var when time.Time
	for key, e := range t.entries {
		last := e.blocked
		if n := len(e.at); n > 0 {
			last = e.at[n-1].Add(window)
		}
		if !now.Before(last) {
			delete(t.entries, key)
		} else if when.IsZero() || last.Before(when) {
			oldest, when = key, last
		}
	}
	if len(t.entries) >= maxTracked {
		delete(t.entries, oldest)
	}
}
