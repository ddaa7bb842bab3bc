package main

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// The local socket lets nobody in for an instant, and making it leaves alone what others make meanwhile.
func TestLocalSocketMode(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	file, err := os.Create(filepath.Join(dir, "like this"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	like, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if info, err := os.Lstat(path); err == nil && info.Mode().Perm()&0o007 != 0 {
				t.Errorf("the socket has mode %o for an instant", info.Mode().Perm())
				return
			}
			name := filepath.Join(dir, strconv.Itoa(i))
			if err := os.WriteFile(name, nil, 0o666); err != nil {
				t.Error(err)
				return
			}
			info, err := os.Stat(name)
			if err != nil {
				t.Error(err)
				return
			}
			if info.Mode() != like.Mode() {
				t.Errorf("a file made meanwhile has mode %v, want %v", info.Mode(), like.Mode())
				return
			}
			os.Remove(name)
		}
	}()
	for range 2000 {
		l, err := listenLocal(path)
		if err != nil {
			t.Error(err)
			break
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm() != 0o660 {
			t.Errorf("the socket has mode %v", info.Mode())
		}
		l.Close()
	}
	close(stop)
	<-done
}
