package source

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// InRoots tells whether a file URL lies below a configured root, by its name alone; what it leads to is decided
// when it is opened.
func (c *Client) InRoots(u *url.URL) bool {
	_, _, ok := c.root(u)
	return ok
}

func (c *Client) root(u *url.URL) (dir, rel string, ok bool) {
	clean := filepath.Clean(u.Path)
	for _, dir := range c.cfg.FileRoots {
		if rel, found := strings.CutPrefix(clean, strings.TrimSuffix(filepath.Clean(dir), "/")+"/"); found && rel != "" {
			return dir, rel, true
		}
	}
	return "", "", false
}

// openFile opens a regular file beneath its root; os.Root keeps a symlink from leading out of it.
func (c *Client) openFile(u *url.URL, offset int64, v Validator) (*Stream, error) {
	dir, rel, ok := c.root(u)
	if !ok {
		return nil, NewError("file_root", "The file lies below no configured root.", nil)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fileError(err)
	}
	defer root.Close()
	// O_NONBLOCK: opening a FIFO must not wait for its writer.
	f, err := root.OpenFile(rel, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileError(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = NewError("file_type", "The file is not a regular file.", nil)
	}
	if err != nil {
		f.Close()
		return nil, fileError(err)
	}
	s := &Stream{Validator: Validator{Modified: fileStamp(info), Size: info.Size()}, read: f, close: f.Close}
	if offset > 0 && s.Validator.same(v) && offset <= v.Size {
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			f.Close()
			return nil, fileError(err)
		}
		s.Offset = offset
	}
	return s, nil
}

func fileStamp(info fs.FileInfo) string {
	var inode uint64
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = st.Ino
	}
	return fmt.Sprintf("%d-%d", inode, info.ModTime().UnixNano())
}

func fileError(err error) error {
	var own *Error
	switch {
	case errors.As(err, &own):
		return own
	case errors.Is(err, fs.ErrNotExist):
		return NewError("file_missing", "No such file.", err)
	case errors.Is(err, fs.ErrPermission):
		return NewError("file_permission", "The agent may not read the file.", err)
	}
	return NewError("file", "The file cannot be opened below its root.", err)
}
