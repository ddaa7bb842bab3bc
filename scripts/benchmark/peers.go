package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jlaffaye/ftp"
)

// served is an image behind a URL. ca is the PEM of the server's certificate and caFile the file that has it, if it is https.
type served struct {
	image           *image
	url, ca, caFile string
}

func (s served) scheme() string {
	scheme, _, _ := strings.Cut(s.url, ":")
	return strings.ToUpper(scheme)
}

// python is what one writes with requests and hashlib. Its arguments are URL, file and CA.
const python = `
import hashlib, requests, sys
url, path, ca = sys.argv[1:]
h = hashlib.sha256()
with requests.get(url, stream=True, verify=ca or True) as r, open(path, "wb") as f:
    r.raise_for_status()
    for chunk in r.iter_content(1 << 20):
        h.update(chunk)
        f.write(chunk)
print(h.hexdigest())
`

// pythonWithRequests is an interpreter that has them; Debian's rather than one that somebody installed.
func pythonWithRequests() (string, error) {
	for _, p := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(p, "-c", "import requests").Run() == nil {
			return p, nil
		}
	}
	return "", errors.New("python3-requests is not installed")
}

// peersOf are the other ways to bring s to the disk and know its digest. All end with a sync of the file.
func (b *bench) peersOf(s served) (tee *contestant, aria, others []*contestant) {
	sum := s.image.sha256
	curl := "curl -sN"
	if s.caFile != "" {
		curl += " --cacert " + s.caFile
	}
	name := func(of string) string { return s.scheme() + ": " + of }
	tee = b.piping(name("curl | tee | openssl, sync"), sum,
		fmt.Sprintf("%s %s | tee %s | openssl dgst -sha256 && sync -d %[3]s", curl, s.url, b.file))
	if b.short {
		return tee, nil, nil
	}
	others = append(others, b.piping(name("curl -o, openssl, sync"), sum,
		fmt.Sprintf("%s -o %[3]s %[2]s && openssl dgst -sha256 %[3]s && sync -d %[3]s", curl, s.url, b.file)))
	if b.python != "" && s.scheme() != "FTP" {
		others = append(others, b.piping(name("Python requests and hashlib, sync"), sum,
			fmt.Sprintf("%s %s %s %s '%s' && sync -d %[4]s", b.python, b.script, s.url, b.file, s.caFile)))
	}
	if b.aria {
		for _, x := range []int{1, 4} {
			aria = append(aria, b.ariaOf(s, x))
		}
	}
	return tee, aria, others
}

// ariaOf is aria2c with up to x connections. It checks the digest itself, and tells by its exit code.
func (b *bench) ariaOf(s served, x int) *contestant {
	ca := ""
	if s.caFile != "" {
		ca = "--ca-certificate=" + s.caFile
	}
	dir, base := filepath.Split(b.file)
	return b.piping(fmt.Sprintf("%s: aria2c -x%d --checksum, sync", s.scheme(), x), "",
		fmt.Sprintf("aria2c -q --no-conf -x%d -s%[1]d -k1M --file-allocation=falloc --checksum=sha-256=%s %s -d %s -o %s %s && sync -d %s",
			x, s.image.sha256, ca, dir, base, s.url, b.file))
}

// netHash is how fast s can be had and hashed when nothing is written: one goroutine reads into one of four buffers while
// the others are hashed.
func netHash(s served) *contestant {
	return &contestant{name: s.scheme() + " limit: network and hash, no disk", reset: func(context.Context) error { return nil },
		run: func(ctx context.Context) (time.Duration, error) {
			in, err := open(ctx, s)
			if err != nil {
				return 0, err
			}
			defer in.Close()
			return 0, hash(in, s.image.sha256)
		}}
}

func open(ctx context.Context, s served) (io.ReadCloser, error) {
	u, err := url.Parse(s.url)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "ftp" {
		c, err := ftp.Dial(u.Host, ftp.DialWithContext(ctx))
		if err != nil {
			return nil, err
		}
		if err := c.Login("anonymous", "anonymous"); err != nil {
			return nil, errors.Join(err, c.Quit())
		}
		r, err := c.Retr(strings.TrimPrefix(u.Path, "/"))
		if err != nil {
			return nil, errors.Join(err, c.Quit())
		}
		return ftpFile{r, c}, nil
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(s.ca))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// ftpFile is a file with its connection.
type ftpFile struct {
	*ftp.Response
	conn *ftp.ServerConn
}

func (f ftpFile) Close() error { return errors.Join(f.Response.Close(), f.conn.Quit()) }

func hash(in io.Reader, want string) error {
	free, full, sum := make(chan []byte, 4), make(chan []byte, 4), make(chan string)
	for range cap(free) {
		free <- make([]byte, 1<<20)
	}
	go func() {
		h := sha256.New()
		for p := range full {
			h.Write(p)
			free <- p[:cap(p)]
		}
		sum <- fmt.Sprintf("%x", h.Sum(nil))
	}()
	var err error
	for err == nil {
		var n int
		p := <-free
		n, err = io.ReadFull(in, p)
		full <- p[:n]
	}
	close(full)
	if got := <-sum; got != want {
		return fmt.Errorf("got digest %s, want %s: %w", got, want, err)
	}
	return nil
}
