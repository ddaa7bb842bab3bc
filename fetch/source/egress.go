package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Egress decides which addresses may be dialled. It is asked with the resolved address right before each
// connect, so that neither a redirect nor a name that changes its mind gets past it.
//
// A prefix in Deny refuses. Else a prefix in Allow permits. Else loopback, link-local, multicast and unspecified
// addresses, cloud metadata services and the box itself are refused, and all others, the LAN among them, permitted.
type Egress struct {
	Allow, Deny []netip.Prefix
}

var (
	metadata = netip.MustParseAddr("fd00:ec2::254")
	nat64    = netip.MustParsePrefix("64:ff9b::/96")
	numeric  = regexp.MustCompile(`^(0[xX][0-9a-fA-F]*|[0-9]+)$`)
)

func egressError(a string) *Error {
	return &Error{Code: "egress", Class: Human,
		Message: fmt.Sprintf("The address %s is not allowed by egress policy. Change egress.allow in the agent's configuration if it should be.", a)}
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Check returns an [*Error] of class Human if a may not be dialled.
func (e Egress) Check(a netip.Addr) error {
	shown := a.String()
	a = a.Unmap().WithZone("")
	if nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	switch {
	case contains(e.Deny, a):
		return egressError(shown)
	case contains(e.Allow, a):
		return nil
	case a.IsLoopback(), a.IsUnspecified(), a.IsMulticast(), a.IsLinkLocalUnicast(), a == metadata,
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
	return &rolling{conn, c.cfg.IdleTimeout}, nil
}

// notSelf refuses a connection to one of the box's own addresses. Listing those would need a netlink socket,
// which the agent's sandbox has not; a connection to oneself has the same address at both ends.
func (c *Client) notSelf(conn net.Conn) error {
	local, err1 := netip.ParseAddrPort(conn.LocalAddr().String())
	remote, err2 := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err := errors.Join(err1, err2); err != nil {
		return egressError("of the peer")
	}
	if a := remote.Addr().Unmap(); local.Addr().Unmap() == a && !contains(c.cfg.Egress.Allow, a.WithZone("")) {
		return egressError(a.String())
	}
	return nil
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
