package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// sessionCookie is the name under which the SPS dialect keeps a session.
const sessionCookie = "session_id"

// httpOnlyPrefix marks a cookie line that a reader must not take for a comment. It is curl's convention, and
// the only place of the format for the HttpOnly attribute.
const httpOnlyPrefix = "#HttpOnly_"

// jar is one box's cookie file in the Netscape format, as curl -b reads it and curl -c writes it:
// domain, subdomains too, path, secure, expiry, name, value, separated by tabs.
type jar struct {
	path string
	box  box
}

// jarFor names the cookie file of a box: <host>.txt, or <host>_<port>.txt for a port other than 443.
func jarFor(b box) (jar, error) {
	dir, err := stateDir()
	if err != nil {
		return jar{}, err
	}
	name := b.host
	if b.port != "443" {
		name += "_" + b.port
	}
	return jar{path: filepath.Join(dir, "cookies", name+".txt"), box: b}, nil
}

// session is a stored login. A zero Expires means that the box gave no lifetime.
type session struct {
	token   string
	expires time.Time
}

// load returns the stored login, or none when there is no file or it has expired.
func (j jar) load(now time.Time) (session, error) {
	data, err := readPrivate(j.path, 0o077, fmt.Sprintf("Mend it with: chmod 600 %s", j.path))
	if errors.Is(err, fs.ErrNotExist) {
		return session{}, nil
	}
	if err != nil {
		return session{}, err
	}
	for _, line := range splitLines(data) {
		s, ok := j.parseLine(line)
		if ok && (s.expires.IsZero() || now.Before(s.expires)) {
			return s, nil
		}
	}
	return session{}, nil
}

// parseLine reads one cookie line; ok is false for comments, other cookies and other hosts.
func (j jar) parseLine(line string) (s session, ok bool) {
	line, httpOnly := strings.CutPrefix(line, httpOnlyPrefix)
	if !httpOnly && strings.HasPrefix(line, "#") {
		return s, false
	}
	fields := strings.Split(line, "\t")
	if len(fields) != 7 || fields[5] != sessionCookie || !validToken(fields[6]) {
		return s, false
	}
	if !strings.EqualFold(strings.TrimPrefix(fields[0], "."), j.box.host) {
		return s, false
	}
	seconds, err := strconv.ParseInt(fields[4], 10, 64)
	if err != nil {
		return s, false
	}
	if seconds != 0 {
		s.expires = time.Unix(seconds, 0)
	}
	s.token = fields[6]
	return s, true
}

// save stores a login and keeps what else curl -c may have put into the file.
func (j jar) save(s session) error {
	if !validToken(s.token) {
		return errors.New("cannot store the login: the box gave a session that is not a cookie value")
	}
	var b bytes.Buffer
	b.WriteString("# Netscape HTTP Cookie File\n# Written by slotfetch; share it with: curl -b FILE\n\n")
	if old, err := readPrivate(j.path, 0o077, ""); err == nil {
		for _, line := range splitLines(old) {
			_, ours := j.parseLine(line)
			isCookie := strings.Count(line, "\t") == 6
			if isCookie && !ours {
				b.WriteString(line + "\n")
			}
		}
	}
	expiry := int64(0)
	if !s.expires.IsZero() {
		expiry = s.expires.Unix()
	}
	fmt.Fprintf(&b, "%s%s\tFALSE\t/\tTRUE\t%d\t%s\t%s\n", httpOnlyPrefix, j.box.host, expiry, sessionCookie, s.token)
	return writePrivate(j.path, b.Bytes())
}

// remove forgets the stored login; no file is no error.
func (j jar) remove() error {
	if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the stored login: %w", err)
	}
	return nil
}

// sessionOf takes the session from the answer to a login.
func sessionOf(r *http.Response, now time.Time) (session, bool) {
	for _, c := range r.Cookies() {
		if c.Name != sessionCookie || c.Value == "" {
			continue
		}
		s := session{token: c.Value}
		switch {
		case c.MaxAge > 0:
			s.expires = now.Add(time.Duration(c.MaxAge) * time.Second)
		case c.MaxAge < 0:
			return session{}, false
		case !c.Expires.IsZero():
			s.expires = c.Expires
		}
		return s, true
	}
	return session{}, false
}

// validToken keeps a header or a line of the jar from being broken apart by a strange value.
func validToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`",;\`, r) })
}

// splitLines splits text at line ends of either kind.
func splitLines(data []byte) []string {
	return strings.Split(strings.ReplaceAll(string(data), "\r\n", "\n"), "\n")
}
