package source

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"
)

// This file judges the way to a file by the trace of the attempt that opened it.

// wayChecks are the checks before the file itself, by scheme and in the order of the work.
var wayChecks = map[string][]string{
	"http":  {"proxy", "dns", "egress", "connect", "redirects", "credentials", "answer", "clock"},
	"https": {"proxy", "dns", "egress", "connect", "tls", "redirects", "credentials", "answer", "clock"},
	"ftp":   {"dns", "egress", "connect", "credentials", "answer"},
	"ftps":  {"dns", "egress", "connect", "tls", "credentials", "answer"},
	"file":  {"answer"},
}

func isHTTP(u *url.URL) bool { return u.Scheme == "http" || u.Scheme == "https" }

// stage names the check that e belongs to.
func (p *probe) stage(e *Error) string {
	name := "answer"
	switch e.Code {
	case "dns", "digest":
		name = e.Code
	case "egress", "egress_deny":
		name = "egress"
	case "proxy", "proxy_busy", "proxy_certificate", "http_407":
		name = "proxy"
	case "refused", "unreachable", "connect", "descriptors":
		name = "connect"
	case "no_tls", "only_http2", "tls_version", "tls", "tls_timeout", "certificate", "ca", "ftp_tls", "ftp_prot", "ftp_data_tls":
		name = "tls"
	case "http_401", "http_403", "ftp_login", "ftp_530":
		name = "credentials"
	case "redirect", "redirects", "redirect_scheme", "redirect_downgrade":
		name = "redirects"
	case "too_large":
		name = "size"
	case "stalled", "broken", "connection":
		hops := p.req.Trace.Hops()
		if n := len(hops); n > 0 && hops[n-1].Connect == 0 {
			name = "connect"
			if hops[n-1].Address == "" {
				name = "dns"
			}
		} else if n > 0 && hops[n-1].State == nil && p.has("tls") && hops[n-1].Status == 0 && parsed(hops[n-1]).Scheme == "https" {
			name = "tls"
		}
	}
	if !p.has(name) {
		name = "answer"
	}
	return name
}

func (p *probe) has(name string) bool {
	return slices.ContainsFunc(p.report.Checks, func(c Check) bool { return c.Name == name })
}

// parsed is the URL of a hop, whose query is gone.
func parsed(h Hop) *url.URL {
	u, err := url.Parse(h.URL)
	if err != nil {
		return &url.URL{} // it was one before
	}
	return u
}

// way writes the checks up to clock as far as the attempt got; opened tells that there is a file to read.
func (p *probe) way(opened bool) {
	if hops := p.req.Trace.Hops(); len(hops) > 0 {
		last := hops[len(hops)-1]
		p.wayThere(last)
		p.wayTLS(hops)
		p.wayRedirects(hops)
		p.wayClock(hops)
		if last.Header.SHA256 != "" {
			p.digest(last.Header.SHA256)
		}
	}
	if opened {
		p.wayAnswer()
	}
}

func (p *probe) ok(name, format string, args ...any) {
	p.report.Set(Check{Name: name, Result: OK, Message: fmt.Sprintf(format, args...)})
}

func (p *probe) skip(name, message string) {
	p.report.Set(Check{Name: name, Result: Skipped, Message: message})
}

// wayThere is about the connection to h, the last server.
func (p *probe) wayThere(h Hop) {
	host := parsed(h).Hostname()
	_, literal := netip.ParseAddr(host)
	if h.Proxy != "" {
		p.ok("proxy", "The way goes through the proxy %s.", h.Proxy)
		p.skip("dns", "The proxy resolves the name.")
		p.skip("egress", "The proxy decides where a name leads; the policy is only asked about addresses in URLs.")
	} else {
		p.skip("proxy", "No proxy is set for this URL.")
		if literal == nil {
			p.skip("dns", "The host is an address.")
		} else if h.Address != "" {
			p.ok("dns", "%s is %s.", host, addressOf(h))
		}
	}
	if h.Connect > 0 {
		if h.Proxy == "" {
			p.ok("egress", "The egress policy allows %s.", addressOf(h))
		}
		p.ok("connect", "Connected to %s in %s.", h.Address, round(h.Connect))
	}
}

// addressOf is the address of a hop without its port.
func addressOf(h Hop) string {
	a, err := netip.ParseAddrPort(h.Address)
	if err != nil {
		return h.Address
	}
	return a.Addr().String()
}

// round leaves of d what people want to read.
func round(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

// wayTLS judges the certificates of all servers on the way; the first that gives reason to warn is told of.
func (p *probe) wayTLS(hops []Hop) {
	const soon = 30 * 24 * time.Hour
	if !p.has("tls") { // http that leads to https
		at := slices.IndexFunc(hops, func(h Hop) bool { return h.State != nil })
		i := slices.IndexFunc(p.report.Checks, func(c Check) bool { return c.Name == "connect" })
		if at < 0 || i < 0 || p.req.URL.Scheme != "http" {
			return
		}
		p.report.Checks = slices.Insert(p.report.Checks, i+1, Check{Name: "tls", Result: Skipped})
	}
	for i := len(hops) - 1; i >= 0; i-- {
		h := hops[i]
		if h.State == nil || len(h.State.PeerCertificates) == 0 {
			continue
		}
		host, cert := parsed(h).Hostname(), h.State.PeerCertificates[0]
		until := cert.NotAfter.UTC().Format(time.DateOnly)
		c := Check{Name: "tls", Result: Warning, Code: "certificate"}
		switch left := time.Until(cert.NotAfter); {
		case !h.Verified && p.req.Verify == VerifyNever:
			c.Message = fmt.Sprintf("The certificate of %s could not be verified: %s It is accepted because tls.verify is false.", host, h.Reason)
			c.Remedy = "Give tls.ca, and leave out tls.verify."
		case !h.Verified:
			c.Message = fmt.Sprintf("The certificate of %s could not be verified: %s It is accepted because the digest protects the image.", host, h.Reason)
			c.Remedy = "Give tls.ca if the server is to be known for certain."
		case left < soon:
			c.Code, c.Message = "certificate_expires", fmt.Sprintf("The certificate of %s is valid only until %s.", host, until)
			c.Remedy = "Have it renewed."
		default:
			c = Check{Name: "tls", Result: OK, Message: fmt.Sprintf("The certificate of %s verifies and is valid until %s.", host, until)}
		}
		if now := p.check("tls"); now.Result != Warning || c.Result == Warning {
			p.report.Set(c)
		}
	}
}

func (p *probe) check(name string) Check {
	for _, c := range p.report.Checks {
		if c.Name == name {
			return c
		}
	}
	return Check{}
}

func (p *probe) wayRedirects(hops []Hop) {
	last := hops[len(hops)-1]
	if last.Status == 0 {
		return
	}
	if len(hops) == 1 {
		p.ok("redirects", "There is no redirect.")
		return
	}
	note := ""
	if p.req.Credentials != nil && Origin(parsed(last)) != Origin(p.req.URL) {
		note = " The credentials do not go there."
	}
	p.ok("redirects", "%d on the way to %s.%s", len(hops)-1, last.URL, note)
}

// wayClock compares the last date that a server said with the box's.
func (p *probe) wayClock(hops []Hop) {
	i := len(hops) - 1
	for i > 0 && hops[i].Status == 0 {
		i--
	}
	h := hops[i]
	if h.Status == 0 {
		return
	}
	theirs, err := http.ParseTime(h.Header.Date)
	if err != nil {
		p.skip("clock", "The server says no date.")
		return
	}
	ours := h.Began.Add(h.DNS + h.Connect + h.TLS + h.FirstByte).UTC()
	skew := theirs.Sub(ours)
	c := Check{Name: "clock", Result: Warning, Code: "clock", Remedy: "Find out which clock is wrong and set it, by NTP if possible: certificates are judged by the box's."}
	switch far := skew.Abs(); {
	case far <= time.Minute:
		c = Check{Name: "clock", Result: OK, Message: "The clocks of the box and of the server agree."}
	case far > 24*time.Hour:
		c.Message = fmt.Sprintf("The box's clock says %s, the server's %s.", ours.Format(time.RFC3339), theirs.UTC().Format(time.RFC3339))
	default:
		word := "behind"
		if skew > 0 {
			word = "ahead of"
		}
		c.Message = fmt.Sprintf("The server's clock is %s %s the box's.", far.Round(time.Second), word)
	}
	p.report.Set(c)
}

// wayAnswer is about a file that could be opened.
func (p *probe) wayAnswer() {
	switch cred := p.req.Credentials; {
	case cred != nil && (p.req.URL.Scheme == "http" || p.req.URL.Scheme == "ftp"):
		p.report.Set(Check{Name: "credentials", Result: Warning, Code: "clear_text", Message: "The credentials go over the network in clear text.",
			Remedy: "Use https or ftps."})
	case cred != nil:
		p.ok("credentials", "The server does not refuse the credentials.")
	case p.req.URL.Scheme == "ftp" || p.req.URL.Scheme == "ftps":
		p.ok("credentials", "The server accepts an anonymous login.")
	default:
		p.ok("credentials", "The server asks for none.")
	}
	switch hops := p.req.Trace.Hops(); {
	case len(hops) == 0:
		p.ok("answer", "The file is there and can be read.")
	case isHTTP(p.req.URL):
		p.ok("answer", "The server answers %s.", statusText(hops[len(hops)-1].Status))
	default:
		p.ok("answer", "The server sends the file.")
	}
	if p.check("digest").Message == notReached {
		p.skip("digest", "The server announces none.")
	}
}

// digest is about the SHA-256 that a server announces. One that contradicts is an error before this.
func (p *probe) digest(announced string) {
	if p.req.SHA256 == "" {
		p.ok("digest", "The server announces the SHA-256 %s.", announced)
	} else if p.req.SHA256 == announced {
		p.ok("digest", "The server announces the right SHA-256.")
	}
}

// length is about the size of the file.
func (p *probe) length() {
	p.report.Size = p.v.Size
	if p.v.Size >= 0 {
		p.ok("size", "%d bytes.", p.v.Size)
		return
	}
	p.report.Set(Check{Name: "size", Result: Warning, Code: "size_unknown", Message: "The server does not say how large the file is.",
		Remedy: "See for yourself that there is space: it runs out only when the file comes."})
}
