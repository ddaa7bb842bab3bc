// Package fetchtest has servers that misbehave on demand, and one conformance suite.
//
// The servers listen on real sockets of the loopback interface: [HTTP] and [FTP] are our own and follow a script,
// [StartVsftpd], [StartPyftpdlib] and [StartPureFTPd] run real servers where they are installed. Each records what
// it saw and offers channels for the moments a test has to wait for, so that no test needs to sleep. All of them
// take a [testing.TB] and are gone, goroutines included, when the test is over.
//
// [TestSource] is the suite: whatever the scheme, a source delivers, resumes, fails and is cancelled alike.
//
// The package is for tests of ours only.
package fetchtest

import (
	"net/netip"
	"testing"
	"time"

	"slotfetch/fetch/source"
)

// Patience is how long helpers wait for an event before they fail the test. No passing test waits that long.
const Patience = 20 * time.Second

// Loopback is the egress policy that tests need: loopback, where all servers of this package listen, is allowed.
func Loopback() source.Egress {
	return source.Egress{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}
}

// Await waits until done is closed or received from, and fails the test if that takes too long.
func Await[T any](t testing.TB, what string, done <-chan T) T {
	t.Helper()
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	select {
	case v := <-done:
		return v
	case <-timer.C:
		t.Fatalf("waited %s in vain: %s", Patience, what)
		panic("unreachable")
	}
}
