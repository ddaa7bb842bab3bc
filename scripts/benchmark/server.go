package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// image is a file of random bytes in memory, in a directory of its own.
type image struct {
	path, sha256 string
	size         int64
}

const memory = "/dev/shm"

// makeImage makes an image of size bytes.
func makeImage(size int64) (*image, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(memory, &fs); err != nil {
		return nil, fmt.Errorf("cannot look at %s: %w", memory, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < size {
		return nil, fmt.Errorf("%s has only %d MiB free: give a smaller --size", memory, free>>20)
	}
	dir, err := os.MkdirTemp(memory, "slotfetch-bench")
	if err != nil {
		return nil, err
	}
	img := &image{path: filepath.Join(dir, "image.iso"), size: size}
	if err := img.fill(); err != nil {
		return nil, errors.Join(err, img.remove())
	}
	return img, nil
}

func (i *image) fill() error {
	if err := os.Chmod(i.dir(), 0o755); err != nil { // for the FTP server
		return err
	}
	f, err := os.Create(i.path)
	if err != nil {
		return err
	}
	defer f.Close()
	var seed [32]byte
	_, _ = rand.Read(seed[:]) // never fails
	digest := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, digest), mathrand.NewChaCha8(seed), i.size); err != nil {
		return err
	}
	i.sha256 = fmt.Sprintf("%x", digest.Sum(nil))
	return nil
}

func (i *image) dir() string { return filepath.Dir(i.path) }

func (i *image) remove() error { return os.RemoveAll(i.dir()) }

// serve sends a file to whoever asks, and prints its URL first. A path below /mute is never answered. With neither TLS nor
// limits it is the kernel that copies (sendfile).
func serve(args []string) error {
	set := flag.NewFlagSet("serve", flag.ContinueOnError)
	address := set.String("address", "127.0.0.1", "where to listen")
	pair := set.String("pem", "", "file with certificate and key: speak TLS")
	trip := set.Duration("trip", 0, "round trip")
	each := set.Float64("each", 0, "bytes a second for each connection")
	all := set.Float64("all", 0, "bytes a second for all connections")
	if err := set.Parse(args); err != nil {
		return err
	}
	l, err := net.Listen("tcp", net.JoinHostPort(*address, "0"))
	if err != nil {
		return err
	}
	scheme, at := "http", l.Addr()
	if *trip > 0 || *each > 0 || *all > 0 {
		l = &far{Listener: l, trip: *trip, each: *each, all: *all}
	}
	if *pair != "" {
		certificate, err := tls.LoadX509KeyPair(*pair, *pair)
		if err != nil {
			return err
		}
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13})
		scheme = "https"
	}
	fmt.Printf("%s://%s/image.iso\n", scheme, at)
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/mute") {
			<-r.Context().Done()
			return
		}
		f, err := os.Open(set.Arg(0))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer f.Close()
		w.Header().Set("ETag", `"bench"`)
		http.ServeContent(w, r, "image.iso", time.Time{}, f)
	}))
}

// startServer runs serve in a process of its own; through is how to start it, where not simply so.
func startServer(through func(string, ...string) *exec.Cmd, args ...string) (p *process, url string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	if through == nil {
		through = exec.Command
	}
	p, out, err := start(through(self, append([]string{"serve"}, args...)...), false)
	if err != nil {
		return nil, "", fmt.Errorf("cannot start the server: %w", err)
	}
	url, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		p.stop()
		return nil, "", fmt.Errorf("the server did not start: %w", err)
	}
	return p, strings.TrimSpace(url), nil
}

// startFTP runs vsftpd for anonymous users of dir.
func startFTP(dir, conf string) (*process, string, error) {
	program, err := exec.LookPath("vsftpd")
	if err != nil {
		program = "/usr/sbin/vsftpd"
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String()) // it has one
	l.Close()
	if err := os.WriteFile(conf, nil, 0o600); err != nil {
		return nil, "", err
	}
	p, _, err := start(exec.Command(program, "-olisten=YES", "-olisten_ipv6=NO", "-olisten_address=127.0.0.1", "-olisten_port="+port,
		"-obackground=NO", "-oanonymous_enable=YES", "-olocal_enable=NO", "-oanon_root="+dir, "-orun_as_launching_user=YES",
		"-oxferlog_enable=NO", "-oseccomp_sandbox=NO", conf), false)
	if err != nil {
		return nil, "", fmt.Errorf("cannot start vsftpd: %w", err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(pause) {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
			return p, "ftp://127.0.0.1:" + port + "/image.iso", nil
		}
		if time.Now().After(deadline) {
			p.stop()
			return nil, "", fmt.Errorf("vsftpd does not listen: %w", err)
		}
	}
}

// makeCertificate writes a self-signed certificate for loopback, and one file with its key too.
func makeCertificate(certFile, bothFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "slotfetch-bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	var both bytes.Buffer
	_ = pem.Encode(&both, &pem.Block{Type: "CERTIFICATE", Bytes: der}) // a Buffer takes all
	if err := os.WriteFile(certFile, both.Bytes(), 0o644); err != nil {
		return err
	}
	_ = pem.Encode(&both, &pem.Block{Type: "PRIVATE KEY", Bytes: private})
	return os.WriteFile(bothFile, both.Bytes(), 0o600)
}
