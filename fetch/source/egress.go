package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Egress decides which addresses may be dialled. It is asked with the resolved address right before each
// connect, so that neither a redirect nor a name that changes its mind gets past it.
//
// A prefix in Deny refuses. Else a prefix in Allow permits. Else loopback, link-local, multicast and unspecified
// addresses, cloud metadata services and the box itself are refused, and all others, the LAN among them, permitted.
// An IPv6 address that stands for an IPv4 one is decided as that; Deny is asked about both.
type Egress struct {
	Allow, Deny []netip.Prefix
}

var (
	metadata = []netip.Addr{ // beside the link-local ones
		netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("192.0.0.192")}
	numeric = regexp.MustCompile(`^(0[xX][0-9a-fA-F]*|[0-9]+)$`)

	nat64      = netip.MustParsePrefix("64:ff9b::/96")    // RFC 6052
	localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48")  // RFC 8215: where the IPv4 address is, is known there only
	siit       = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 2765
	compatible = netip.MustParsePrefix("::/96")           // RFC 4291, deprecated
	sixToFour  = netip.MustParsePrefix("2002::/16")       // RFC 3056
)

// embedded is the IPv4 address that a stands for, or a.
func embedded(a netip.Addr) netip.Addr {
	b := a.As16()
	switch {
	case nat64.Contains(a), siit.Contains(a), compatible.Contains(a) && !a.IsUnspecified() && !a.IsLoopback():
		return netip.AddrFrom4([4]byte(b[12:]))
	case sixToFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:]))
	}
	return a
}

// plain is list with IPv4-mapped prefixes (::ffff:10.0.0.0/104) as what they mean.
func plain(list []netip.Prefix) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, p := range list {
		if p.Addr().Is4In6() {
			if p.Bits() < 96 {
				return nil, fmt.Errorf("the egress prefix %s is more than the mapped IPv4 addresses: write it as IPv4 or IPv6", p)
			}
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		out = append(out, p)
	}
	return out, nil
}

func egressError(a string) *Error {
	return NewError("egress", fmt.Sprintf("The address %s is not allowed by egress policy.", a), nil)
}

// deniedError is for what egress.deny has, where egress.allow does not help.
func deniedError(a string) *Error {
	return NewError("egress_deny", fmt.Sprintf("The address %s is forbidden by egress.deny in the agent's configuration.", a), nil)
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Check returns an [*Error] of class Human if a may not be dialled.
func (e Egress) Check(a netip.Addr) error {
	shown := a.String()
	raw := a.Unmap().WithZone("")
	a = embedded(raw)
	switch {
	case contains(e.Deny, raw), contains(e.Deny, a):
		return deniedError(shown)
	case contains(e.Allow, a):
		return nil
	case a.IsLoopback(), a.IsUnspecified(), a.IsMulticast(), a.IsLinkLocalUnicast(), slices.Contains(metadata, a), localNAT64.Contains(a),
		a.Is4() && (a.As4()[0] == 0 || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})):
		return egressError(shown)
	}
	return nil
}

// dialer dials by the policy, except where free says that an address (host:port, unresolved) is the configured proxy.
func (c *Client) dial(ctx context.Context, network, address string, free bool) (net.Conn, error) {
	d := net.Dialer{
		Timeout:         c.cfg.ConnectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 30 * time.Second},
	}
	if !free {
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			a, err := netip.ParseAddrPort(address)
			if err != nil {
				return egressError(address)
			}
			return c.cfg.Egress.Check(a.Addr())
		}
	}
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if !free {
		if err := c.notSelf(conn); err != nil {
			conn.Close()
			return nil, err
		}
	}
	r := &rolling{Conn: conn, idle: c.cfg.IdleTimeout}
	if at, ok := ctx.Value(dialledKey{}).(*atomic.Pointer[rolling]); ok {
		at.Store(r)
	}
	return r, nil
}

// notSelf refuses a connection to one of the box's own addresses. Listing those would need a netlink socket, which the
// agent's sandbox has not, and that also forbids to bind; the kernel's tables in /proc are open. Without them there is
// one sign left: a connection to a primary address has the same address at both ends.
func (c *Client) notSelf(conn net.Conn) error {
	local, err1 := netip.ParseAddrPort(conn.LocalAddr().String())
	remote, err2 := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err := errors.Join(err1, err2); err != nil {
		return egressError("of the peer")
	}
	a := remote.Addr().Unmap().WithZone("")
	if (local.Addr().Unmap().WithZone("") == a || ownAddress(a)) && !contains(c.cfg.Egress.Allow, a) {
		return egressError(a.String())
	}
	return nil
}

// ownAddress tells whether the kernel lists a, or a prefix around it, as its own.
func ownAddress(a netip.Addr) bool {
	table, own := "/proc/self/net/if_inet6", ownInet6
	if a.Is4() {
		table, own = "/proc/self/net/fib_trie", ownFibTrie
	}
	text, err := os.ReadFile(table)
	return err == nil && own(string(text), a)
}

// ownInet6 reads if_inet6: each line begins with an address of the box, in 32 hexadecimal digits.
func ownInet6(table string, a netip.Addr) bool {
	want := fmt.Sprintf("%x ", a.As16())
	for line := range strings.Lines(table) {
		if strings.HasPrefix(line, want) {
			return true
		}
	}
	return false
}

// ownFibTrie reads fib_trie: below an address (|-- 10.0.0.1) stand its routes, those to the box itself as /32 host LOCAL.
func ownFibTrie(table string, a netip.Addr) bool {
	var at netip.Addr
	for line := range strings.Lines(table) {
		line = strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(line, "|-- "); ok {
			at, _ = netip.ParseAddr(text)
			continue
		}
		bits, ok := strings.CutSuffix(line, " host LOCAL")
		if n, err := strconv.Atoi(strings.TrimPrefix(bits, "/")); ok && err == nil && at.IsValid() && netip.PrefixFrom(at, n).Contains(a) {
			return true
		}
	}
	return false
}

// checkLiteral applies the policy to a host that is an address: where a proxy connects for us, that is all we see.
func (c *Client) checkLiteral(host string) error {
	if a, err := netip.ParseAddr(host); err == nil {
		return c.cfg.Egress.Check(a)
	}
	// 127.1, 2130706433 or 0x7f000001 is no name, but may be an address to the proxy.
	host = strings.TrimSuffix(host, ".")
	if last := host[strings.LastIndexByte(host, '.')+1:]; numeric.MatchString(last) {
		return egressError(host)
	}
	return nil
}
