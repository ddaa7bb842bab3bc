package fetchtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Cert is a kind of server certificate.
type Cert int

const (
	// Good is issued by the CA, for the hosts asked for, and valid now.
	Good Cert = iota
	// Expired was valid until yesterday.
	Expired
	// NotYet is valid from tomorrow.
	NotYet
	// WrongHost is for other.example.
	WrongHost
	// SelfSigned has no issuer but itself.
	SelfSigned
	// Lasting is a good one that is valid for a quarter; the others end within days.
	Lasting
)

// String names the kind.
func (c Cert) String() string {
	return [...]string{"good", "expired", "not yet valid", "wrong host", "self-signed", "lasting"}[c]
}

// CA issues certificates for test servers.
type CA struct {
	// PEM is the CA's own certificate, as [source.Request] wants it.
	PEM []byte

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a CA. It takes no testing.TB, so that TestMain can put PEM into SSL_CERT_FILE.
func NewCA() *CA {
	now := time.Now()
	der, key := issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "fetchtest CA"}, NotBefore: now.Add(-96 * time.Hour), NotAfter: now.Add(96 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil)
	cert, err := x509.ParseCertificate(der)
	must(err)
	return &CA{PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), cert: cert, key: key}
}

// issue signs template by ca, or by itself.
func issue(template *x509.Certificate, ca *CA) ([]byte, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	must(err)
	parent, signer := template, key
	if ca != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	must(err)
	return der, key
}

// must is for what fails only without random numbers.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("fetchtest: %v", err))
	}
}

// Certificate issues one of a kind, for localhost, 127.0.0.1, ::1 and the given hosts.
func (ca *CA) Certificate(kind Cert, hosts ...string) tls.Certificate {
	now := time.Now()
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: kind.String()}, NotBefore: now.Add(-72 * time.Hour), NotAfter: now.Add(72 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	signer := ca
	hosts = append(hosts, "localhost", "127.0.0.1", "::1")
	switch kind {
	case Expired:
		c.NotAfter = now.Add(-24 * time.Hour)
	case NotYet:
		c.NotBefore = now.Add(24 * time.Hour)
	case WrongHost:
		hosts = []string{"other.example"}
	case SelfSigned:
		signer = nil
	case Lasting:
		c.NotAfter = now.Add(90 * 24 * time.Hour)
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, h)
		}
	}
	der, key := issue(c, signer)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TLS is a server configuration with a certificate of a kind.
func (ca *CA) TLS(kind Cert, hosts ...string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{ca.Certificate(kind, hosts...)}, MinVersion: tls.VersionTLS12}
}

// WriteFile writes certificate and key as one PEM file, for servers that are programs, and gives its path.
func (ca *CA) WriteFile(t testing.TB, kind Cert, hosts ...string) string {
	t.Helper()
	c := ca.Certificate(kind, hosts...)
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})...)
	path := filepath.Join(t.TempDir(), "server.pem")
	if err := os.WriteFile(path, out, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
