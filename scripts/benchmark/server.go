package main

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// image is a file of random bytes in memory.
type image struct {
	path, sha256 string
	size         int64
}

const memory = "/dev/shm"

func makeImage(size int64) (*image, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(memory, &fs); err != nil {
		return nil, fmt.Errorf("cannot look at %s: %w", memory, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < size {
		return nil, fmt.Errorf("%s has only %d MiB free: give a smaller --size", memory, free>>20)
	}
	f, err := os.CreateTemp(memory, "slotfetch-bench")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var seed [32]byte
	_, _ = rand.Read(seed[:]) // never fails
	digest := sha256.New()
	img := &image{path: f.Name(), size: size}
	if _, err := io.CopyN(io.MultiWriter(f, digest), mathrand.NewChaCha8(seed), size); err != nil {
		img.remove()
		return nil, err
	}
	img.sha256 = fmt.Sprintf("%x", digest.Sum(nil))
	return img, nil
}

func (i *image) remove() { _ = os.Remove(i.path) }

// serve sends the file at path to whoever asks, by sendfile, and prints its URL first.
func serve(path string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s/image.iso\n", l.Addr())
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, err := os.Open(path)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer f.Close()
		w.Header().Set("ETag", `"bench"`)
		http.ServeContent(w, r, "image.iso", time.Time{}, f)
	}))
}

// startServer runs serve in a process of its own.
func startServer(path string) (p *process, url string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	p, out, err := start(exec.Command(self, "serve", path), false)
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
