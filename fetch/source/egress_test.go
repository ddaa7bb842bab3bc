package source_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

func egressFailure(shown string) outcome {
	return failure(source.Human, "egress",
		"The address "+shown+" is not allowed by egress policy. If it should be, add it to egress.allow in the agent's configuration and restart the agent.")
}

func deniedFailure(shown string) outcome {
	return failure(source.Human, "egress_deny", "The address "+shown+" is forbidden by egress.deny in the agent's configuration. "+
		"Take it out of egress.deny and restart the agent if it should be allowed.")
}

func TestEgressCheck(t *testing.T) {
	prefixes := func(all ...string) (list []netip.Prefix) {
		for _, p := range all {
			list = append(list, netip.MustParsePrefix(p))
		}
		return list
	}
	open, lan, closed := source.Egress{}, source.Egress{Allow: prefixes("10.0.0.0/8", "127.0.0.0/8")}, source.Egress{Allow: prefixes("10.0.0.0/8"), Deny: prefixes("10.1.0.0/16", "0.0.0.0/0", "::/0")}
	for _, tc := range []struct {
		egress  source.Egress
		address string
		ok      bool
	}{
		{open, "93.184.216.34", true},
		{open, "10.0.0.1", true},
		{open, "192.168.1.1", true},
		{open, "172.16.0.1", true},
		{open, "100.64.0.1", true},
		{open, "2606:2800:220:1::1", true},
		{open, "fd12:3456::1", true},
		{open, "127.0.0.1", false},
		{open, "127.255.255.254", false},
		{open, "0.0.0.0", false},
		{open, "0.1.2.3", false},
		{open, "255.255.255.255", false},
		{open, "169.254.169.254", false},
		{open, "169.254.0.1", false},
		{open, "224.0.0.1", false},
		{open, "239.255.255.250", false},
		{open, "::1", false},
		{open, "::", false},
		{open, "fe80::1", false},
		{open, "fe80::1%eth0", false},
		{open, "febf::1", false},
		{open, "ff02::1", false},
		{open, "fd00:ec2::254", false},
		{open, "::ffff:127.0.0.1", false},
		{open, "::ffff:169.254.169.254", false},
		{open, "::ffff:0.0.0.0", false},
		{open, "::ffff:10.0.0.1", true},
		{open, "64:ff9b::7f00:1", false},
		{open, "64:ff9b::a9fe:a9fe", false},
		{open, "64:ff9b::5db8:d822", true},
		{open, "64:ff9b:1::5db8:d822", false},
		{open, "64:ff9b:1:7f00:0:100::", false},
		{open, "2002:7f00:1::1", false},
		{open, "2002:a9fe:a9fe::1", false},
		{open, "2002:5db8:d822::1", true},
		{open, "::ffff:0:7f00:1", false},
		{open, "::ffff:0:5db8:d822", true},
		{open, "::7f00:1", false},
		{open, "100.100.100.200", false},
		{open, "192.0.0.192", false},
		{open, "64:ff9b::6464:64c8", false},
		{source.Egress{Allow: prefixes("64:ff9b:1::/48")}, "64:ff9b:1::1", true},
		{source.Egress{Allow: prefixes("100.100.100.200/32")}, "100.100.100.200", true},
		{source.Egress{Allow: prefixes("64:ff9b::/96")}, "64:ff9b::7f00:1", false},
		{source.Egress{Deny: prefixes("64:ff9b::/96")}, "64:ff9b::5db8:d822", false},
		{source.Egress{Deny: prefixes("64:ff9b::/96"), Allow: prefixes("0.0.0.0/0")}, "64:ff9b::5db8:d822", false},
		{source.Egress{Deny: prefixes("::ffff:10.0.0.0/104")}, "10.1.2.3", false},
		{source.Egress{Deny: prefixes("::ffff:10.0.0.0/104")}, "11.1.2.3", true},
		{source.Egress{Allow: prefixes("::ffff:127.0.0.0/104")}, "127.0.0.1", true},
		{source.Egress{Deny: prefixes("2002::/16")}, "2002:5db8:d822::1", false},
		{lan, "127.0.0.1", true},
		{lan, "::ffff:127.0.0.1", true},
		{lan, "::1", false},
		{closed, "10.0.0.1", false},
		{closed, "93.184.216.34", false},
		{closed, "2606:2800:220:1::1", false},
		{source.Egress{Deny: prefixes("10.1.0.0/16")}, "::ffff:10.1.2.3", false},
		{source.Egress{Deny: prefixes("10.1.0.0/16")}, "64:ff9b::a01:203", false},
		{source.Egress{Deny: prefixes("10.1.0.0/16"), Allow: prefixes("10.0.0.0/8")}, "10.1.2.3", false},
	} {
		egress, err := source.Plain(tc.egress)
		if err != nil {
			t.Fatal(err)
		}
		err = egress.Check(netip.MustParseAddr(tc.address))
		if (err == nil) != tc.ok {
			t.Errorf("%+v, %s: got %v", tc.egress, tc.address, err)
		}
		want := egressFailure(tc.address)
		if tc.egress.Deny != nil {
			want = deniedFailure(tc.address)
		}
		if e, ok := err.(*source.Error); err != nil && (!ok || e.Class != source.Human || e.Error() != want.Message) {
			t.Errorf("%s: got %#v", tc.address, err)
		}
	}
}

// spellings of this box and its neighbours that nobody may reach by default. The port is that of a server that
// listens on 127.0.0.1.
var spellings = []struct{ host, shown string }{
	{"127.0.0.1", "127.0.0.1"},
	{"127.1.2.3", "127.1.2.3"},
	{"localhost", ""}, // whatever it resolves to
	{"LOCALHOST", ""},
	{"0.0.0.0", "0.0.0.0"},
	{"[::]", "::"},
	{"[::1]", "::1"},
	{"[::ffff:127.0.0.1]", "127.0.0.1"},
	{"[::ffff:7f00:1]", "127.0.0.1"},
	{"[::ffff:0.0.0.0]", ""},
	{"169.254.169.254", "169.254.169.254"},
	{"[::ffff:169.254.169.254]", "169.254.169.254"},
	{"[fe80::1%25lo]", "fe80::1%lo"},
	{"[fd00:ec2::254]", "fd00:ec2::254"},
	{"[64:ff9b::7f00:1]", "64:ff9b::7f00:1"},
	{"224.0.0.1", "224.0.0.1"},
	{"255.255.255.255", "255.255.255.255"},
}

func TestEgressSpellings(t *testing.T) {
	h := fetchtest.NewHTTP(t, nil)
	h.Handle("/x.iso", fetchtest.Whole(image).Serve)
	f := fetchtest.NewFTP(t, fetchtest.Script{Files: files})
	for scheme, addr := range map[string]string{"http": h.Addr, "https": h.Addr, "ftp": f.Addr, "ftps": f.Addr} {
		_, port, _ := strings.Cut(addr, ":")
		for _, tc := range spellings {
			t.Run(scheme+" "+tc.host, func(t *testing.T) {
				cfg := patient()
				cfg.Egress = source.Egress{}
				_, err := client(t, cfg).Open(t.Context(), source.Request{URL: parse(t, scheme+"://"+tc.host+":"+port+"/x.iso"), Verify: source.VerifyNever}, 0, source.Validator{})
				e, ok := err.(*source.Error)
				if !ok || e.Code != "egress" || e.Class != source.Human {
					t.Fatalf("got %#v", err)
				}
				if want := egressFailure(tc.shown).Message; tc.shown != "" && e.Error() != want {
					t.Errorf("got %q, want %q", e.Error(), want)
				}
			})
		}
	}
	// Spellings that only the C library knows are names, and do not resolve.
	for _, host := range []string{"2130706433", "0x7f000001", "127.1", "0177.0.0.1"} {
		t.Run(host, func(t *testing.T) {
			cfg := patient()
			cfg.Egress = source.Egress{}
			_, err := client(t, cfg).Open(t.Context(), source.Request{URL: parse(t, h.URL[:7]+host+":"+h.Addr[10:]+"/x.iso")}, 0, source.Validator{})
			if e, ok := err.(*source.Error); !ok || e.Code != "dns" && e.Code != "egress" {
				t.Errorf("got %#v", err)
			}
		})
	}
	if h, f := len(h.Requests()), len(f.Sessions()); h+f > 0 {
		t.Errorf("%d requests and %d sessions got through", h, f)
	}
}

// TestEgressRedirect: a server that may be reached cannot lead to one that may not.
func TestEgressRedirect(t *testing.T) {
	forbidden := fetchtest.NewHTTPAt(t, "127.0.0.3:0", nil)
	forbidden.Handle("/x.iso", fetchtest.Whole(image).Serve)
	for _, host := range []string{"127.0.0.3", "localhost", "[::1]", "[::ffff:127.0.0.3]", "0.0.0.0", "169.254.169.254"} {
		t.Run(host, func(t *testing.T) {
			s := fetchtest.NewHTTP(t, nil)
			_, port, _ := strings.Cut(forbidden.Addr, ":")
			url := s.Handle("/x.iso", fetchtest.Redirect("http://"+host+":"+port+"/x.iso"))
			cfg := patient()
			cfg.Egress = source.Egress{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.3/32")}}
			got, _ := attempt(t, cfg, source.Request{URL: parse(t, url)}, image, 0, source.Validator{})
			if host == "localhost" && got.Code == "refused" {
				return // 127.0.0.1 is allowed here, and nobody listens on that port of it
			}
			if !strings.HasPrefix(got.Code, "egress") || got.Class != source.Human {
				t.Errorf("got %+v", got)
			}
		})
	}
	if n := len(forbidden.Requests()); n > 0 {
		t.Errorf("%d requests got through", n)
	}
}

// TestEgressProxy: the configured proxy is let through although it is on loopback; what is asked of it is still
// checked where it is an address.
func TestEgressProxy(t *testing.T) {
	for _, tc := range []struct {
		name, url string
		want      outcome
		asked     string // the request line's target that the proxy must see
	}{
		{"name", "http://images.example/x.iso", good(image), "http://images.example/x.iso"},
		{"name, https", "https://images.example/x.iso", good(image), "images.example:443"},
		{"name of other letters", "http://Bücher.example/x.iso", good(image), "http://xn--bcher-kva.example/x.iso"},
		{"name of other letters, https", "https://bücher.example/x.iso", good(image), "xn--bcher-kva.example:443"},
		{"loopback in other digits", "http://１２７.0.0.1/x.iso", egressFailure("HOST"), ""},
		{"LAN address", "http://10.1.2.3/x.iso", good(image), "http://10.1.2.3/x.iso"},
		{"metadata", "http://169.254.169.254/x.iso", egressFailure("HOST"), ""},
		{"metadata, https", "https://169.254.169.254/x.iso", egressFailure("HOST"), ""},
		{"metadata as IPv6", "http://[fd00:ec2::254]/x.iso", egressFailure("NAME"), ""},
		{"mapped", "http://[::ffff:169.254.169.254]/x.iso", egressFailure("NAME"), ""},
		{"unspecified", "http://0.0.0.0/x.iso", egressFailure("HOST"), ""},
		{"link-local", "http://[fe80::1%25lo]/x.iso", egressFailure("NAME"), ""},
		{"spelling of C", "http://2130706433/x.iso", egressFailure("HOST"), ""},
		{"short spelling", "http://127.1/x.iso", egressFailure("HOST"), ""},
		{"hexadecimal", "http://0x7f.1/x.iso", egressFailure("HOST"), ""},
		{"octal, with a dot", "http://0177.0.0.01./x.iso", egressFailure("0177.0.0.01"), ""},
		// Never through a proxy, as everywhere.
		{"loopback", "http://127.0.0.1/x.iso", egressFailure("HOST"), ""},
		{"localhost", "http://localhost:1/x.iso", outcome{Class: source.Human, Code: "egress"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			proxy := fetchtest.NewHTTP(t, nil)
			target := fetchtest.NewHTTP(t, ca.TLS(fetchtest.Good, "images.example", "xn--bcher-kva.example"))
			target.Handle("/x.iso", fetchtest.Whole(image).Serve)
			proxy.Handle("/x.iso", fetchtest.Whole(image).Serve)
			proxy.Handle("", fetchtest.Tunnel(target.Addr))
			cfg := patient()
			cfg.Egress = source.Egress{}
			cfg.Proxy = &httpproxy.Config{HTTPProxy: proxy.URL, HTTPSProxy: proxy.URL}
			got, _ := attempt(t, cfg, source.Request{URL: parse(t, tc.url), CA: ca.PEM, Credentials: credentials()}, image, 0, source.Validator{})
			if tc.want.Message == "" {
				got.Message = ""
			}
			wantOutcome(t, tc.want, got)
			asked := ""
			for _, x := range proxy.Requests() {
				asked = x.URL.String()
				if x.Method == "CONNECT" {
					asked = x.Host
					if _, _, ok := x.Auth(); ok {
						t.Error("the proxy got the credentials of the target")
					}
				}
			}
			if asked != tc.asked {
				t.Errorf("the proxy was asked for %q, want %q", asked, tc.asked)
			}
		})
	}
}

// TestProxyRefuses: what a proxy says to CONNECT.
func TestProxyRefuses(t *testing.T) {
	for code, want := range map[int]outcome{
		407: failure(source.Human, "http_407", "The proxy wants credentials. Set them in the agent's configuration."),
		403: failure(source.Human, "proxy", "The proxy answered 403 Forbidden. Check the proxy in the agent's configuration, and whether it allows this server."),
		502: failure(source.Temporary, "proxy_busy", "The proxy answered 502 Bad Gateway."),
	} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			proxy := fetchtest.NewHTTP(t, nil)
			proxy.Handle("", fetchtest.Status(code))
			cfg := patient()
			cfg.Proxy = &httpproxy.Config{HTTPSProxy: proxy.URL}
			got, _ := attempt(t, cfg, source.Request{URL: parse(t, "https://images.example/x.iso")}, image, 0, source.Validator{})
			wantOutcome(t, want, got)
		})
	}
}

// TestProxyTLS: no exception is made for the certificate of a proxy, whatever the policy for the target.
func TestProxyTLS(t *testing.T) {
	for _, kind := range []fetchtest.Cert{fetchtest.Good, fetchtest.SelfSigned} {
		for _, host := range []string{"localhost", "127.0.0.1"} {
			for _, target := range []string{"http", "https"} {
				t.Run(fmt.Sprint(kind, " ", host, " ", target), func(t *testing.T) {
					proxy := fetchtest.NewHTTP(t, ca.TLS(kind))
					behind := fetchtest.NewHTTP(t, ca.TLS(fetchtest.SelfSigned))
					behind.Handle("/x.iso", fetchtest.Whole(image).Serve)
					proxy.Handle("", fetchtest.Tunnel(behind.Addr))
					proxy.Handle("/x.iso", fetchtest.Whole(image).Serve)
					cfg := patient()
					url := strings.Replace(proxy.URL, "127.0.0.1", host, 1)
					cfg.Proxy = &httpproxy.Config{HTTPProxy: url, HTTPSProxy: url}
					req := source.Request{URL: parse(t, target+"://images.example/x.iso"), SHA256: image.SHA256(), Verify: source.VerifyNever}
					s, err := client(t, cfg).Open(t.Context(), req, 0, source.Validator{})
					if kind != fetchtest.Good {
						want := "The certificate of " + host + " could not be verified: " + reasons[kind] +
							" Add the proxy's CA to the certificates of the box; tls of the request is not for proxies."
						if e, ok := err.(*source.Error); !ok || e.Code != "proxy_certificate" || e.Error() != want {
							t.Errorf("got %#v", err)
						}
						if n := len(proxy.Requests()); n > 0 {
							t.Errorf("the proxy got %d requests", n)
						}
						return
					}
					if err != nil {
						t.Fatalf("%v (%v)", err, err.(*source.Error).Err)
					}
					defer s.Close()
					if n, err := io.Copy(io.Discard, s); n != image.Size() || err != nil {
						t.Errorf("got %d bytes, %v", n, err)
					}
					if s.TLSVerified != nil && (target == "http" || *s.TLSVerified) {
						t.Errorf("TLSVerified is %v for %s", *s.TLSVerified, target)
					}
				})
			}
		}
	}
}

func TestEgressPrefix(t *testing.T) {
	for _, e := range []source.Egress{{Allow: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/80")}}, {Deny: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/8")}}} {
		if _, err := source.New(source.Config{Egress: e}); err == nil || !strings.Contains(err.Error(), "write it as IPv4 or IPv6") {
			t.Errorf("%+v: %v", e, err)
		}
	}
}

// TestOwnAddresses runs in a network of its own, where the box has several addresses on one device: a connection to
// another than the first has different addresses at both ends.
func TestOwnAddresses(t *testing.T) {
	const inside = "SLOTFETCH_TEST_INSIDE"
	if os.Getenv(inside) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestOwnAddresses$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		switch {
		case errors.Is(err, syscall.EPERM):
			t.Skip("SKIPPED TestOwnAddresses: a network namespace needs root")
		case err != nil:
			t.Errorf("%v\n%s", err, out)
		case strings.Contains(string(out), "SKIP"):
			t.Skipf("%s", out)
		}
		return
	}
	for _, args := range []string{"link set lo up", "addr add 10.99.0.1/24 dev lo", "addr add 10.99.0.2/24 dev lo", "addr add fd99::1/64 dev lo",
		"addr add fd99::2/64 dev lo", "route add local 10.98.0.0/24 dev lo"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Skipf("SKIPPED TestOwnAddresses: ip %s: %v %s", args, err, out)
		}
	}
	for _, host := range []string{"10.99.0.1", "10.99.0.2", "10.98.0.7", "fd99::1", "fd99::2"} {
		var l net.Listener
		var err error
		for end := time.Now().Add(fetchtest.Patience); ; { // IPv6 has to find out first that nobody else has it
			if l, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err == nil || time.Now().After(end) {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		raw := "http://" + l.Addr().String() + "/x.iso"
		got, _ := attempt(t, source.Config{}, source.Request{URL: parse(t, raw)}, image, 0, source.Validator{})
		want := egressFailure("HOST")
		want.Message = strings.ReplaceAll(want.Message, "HOST", "NAME")
		wantOutcome(t, want, got)
	}
	s := fetchtest.NewHTTPAt(t, "10.99.0.2:0", nil)
	raw := s.Handle("/x.iso", fetchtest.Whole(image).Serve)
	got, _ := attempt(t, source.Config{Egress: source.Egress{Allow: []netip.Prefix{netip.MustParsePrefix("10.99.0.2/32")}}}, source.Request{URL: parse(t, raw)}, image, 0, source.Validator{})
	wantOutcome(t, good(image), got)
}
