package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"
)

// Verify is the policy for a server whose certificate does not verify. A certificate that verifies is never refused.
type Verify int

const (
	// VerifyAuto goes on only if a digest is wanted and no credentials go to that server: integrity comes from
	// the digest, confidentiality from TLS.
	VerifyAuto Verify = iota
	// VerifyAlways fails the attempt.
	VerifyAlways
	// VerifyNever goes on, credentials or not.
	VerifyNever
)

// trust makes TLS configurations for one attempt and remembers how the servers did.
type trust struct {
	policy Verify
	roots  *x509.CertPool
	digest bool

	spoken, failed atomic.Bool
}

func newTrust(req Request) (*trust, error) {
	t := &trust{policy: req.Verify, digest: req.SHA256 != "" || req.assumed || req.Signed}
	if len(req.CA) > 0 {
		t.policy, t.roots = VerifyAlways, x509.NewCertPool()
		if !t.roots.AppendCertsFromPEM(req.CA) {
			return nil, NewError("ca", "tls.ca holds no PEM certificate.", nil)
		}
	}
	return t, nil
}

// verified is what the status document shows: nil if no TLS was spoken.
func (t *trust) verified() *bool {
	if !t.spoken.Load() {
		return nil
	}
	v := !t.failed.Load()
	return &v
}

// config is for one server, by host name. credentials tells whether any would be sent to it. serverName is left empty
// where net/http fills it in. hop, which may be nil, is told how the server did.
func (t *trust) config(serverName, host string, credentials bool, hop *tracer) *tls.Config {
	return &tls.Config{
		ServerName: serverName,
		MinVersion: tls.VersionTLS12,
		// Verification is ours, in VerifyConnection: the policy needs to see the failure and, sometimes, to go on.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection: func(cs tls.ConnectionState) error {
			err := verifyChain(cs, host, t.roots)
			t.spoken.Store(true)
			hop.certified(cs, err)
			if err == nil {
				return nil
			}
			t.failed.Store(true)
			if t.policy == VerifyNever || t.policy == VerifyAuto && t.digest && !credentials {
				return nil
			}
			says := unverified(host, err)
			if t.policy == VerifyAuto && credentials {
				says += " Credentials would be sent."
			}
			return NewError("certificate", says, err)
		},
	}
}

// dialProxyTLS connects to a proxy that itself speaks TLS. No exception is made for its certificate.
func (c *Client) dialProxyTLS(ctx context.Context, network, address, host string) (net.Conn, error) {
	raw, err := c.dial(ctx, network, address, true)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	ctx, cancel := context.WithTimeout(ctx, c.cfg.HandshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		if v := (*tls.CertificateVerificationError)(nil); errors.As(err, &v) {
			err = NewError("proxy_certificate", unverified(host, v.Err), v.Err)
		}
		return nil, err
	}
	return conn, nil
}

func verifyChain(cs tls.ConnectionState, host string, roots *x509.CertPool) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("no certificate")
	}
	inter := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		inter.AddCert(c)
	}
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, DNSName: host})
	return err
}

func unverified(host string, err error) string {
	return fmt.Sprintf("The certificate of %s could not be verified: %s", host, certReason(err))
}

func certReason(err error) string {
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		if c := invalid.Cert; c != nil && time.Now().Before(c.NotBefore) {
			return fmt.Sprintf("it is valid only from %s; the box's clock says %s.",
				c.NotBefore.UTC().Format(time.DateOnly), time.Now().UTC().Format(time.DateOnly))
		}
		return "it has expired."
	case errors.As(err, &host):
		return "it is for another host."
	case errors.As(err, &unknown):
		return "its issuer is not known (self-signed, or a private CA)."
	}
	return "it is not valid."
}
