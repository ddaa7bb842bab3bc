package ontap

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"slotfetch/api"
	"slotfetch/fetch"
	"slotfetch/fetch/source"
	"slotfetch/store"
)

// This file starts downloads, and shows the one that there is room for (contract section 3).

// postDownload answers with a job, be it one that runs already: joining is how a repeated request is treated as success
// (rules 8 and 22).
func (s *Server) postDownload(r *http.Request) (api.Reply, error) {
	q, err := readQuery(r, nil, nil)
	if err != nil {
		return api.Reply{}, err
	}
	body, err := api.ReadObject(r)
	if err != nil {
		return api.Reply{}, err
	}
	want, err := s.readDownload(body)
	if err != nil {
		return api.Reply{}, err
	}
	f, err := s.start(r.Context(), want, actor(r))
	if err != nil {
		return api.Reply{}, err
	}
	if q.timeout > 0 {
		f, err = s.cfg.Fetch.Hold(r.Context(), f, q.timeout, func(f store.Fetch) bool { return f.Status.Final() })
		if errors.Is(err, store.ErrNotFound) { // it ended, and was pruned
			err = noEntry("uuid")
		}
		if err != nil {
			return api.Reply{}, err
		}
		if j := s.download(f, ""); j.State == stateFailure {
			return api.Reply{}, failed(j.Code, "", j.Message)
		}
	}
	status := http.StatusAccepted
	if q.timeout > 0 && f.Status == store.Finished {
		status = http.StatusCreated // not 200 (rule 10)
	}
	return jobReply(status, f.Key, downloadPath), nil
}

// readDownload checks a body in the order of the contract.
func (s *Server) readDownload(body api.Object) (q fetch.Request, err error) {
	// NetApp's own example has the last three, which are read-only.
	if err := exact(body, "", "url", "username", "password", "checksum", "state", "message", "code"); err != nil {
		return q, err
	}
	raw, err := body.String("url", "a URL")
	if err != nil {
		return q, failed(codeURLSyntax, "url", "The URL is malformed: it must be a string without control characters.")
	}
	if raw == "" {
		return q, failed(codeMissing, "url", `Field "url" is missing.`)
	}
	if q.URL, q.Secrets.URL, err = s.readURL(raw); err != nil {
		return q, err
	}
	if q.SHA256, err = readChecksum(body); err != nil {
		return q, err
	}
	if err := readCredentials(body, &q); err != nil {
		return q, err
	}
	q.LoneVersion = true
	if q.SHA256 == "" {
		q.Sidecar = fetch.SidecarOptional
		if s.cfg.RequireChecksum {
			q.Sidecar = fetch.SidecarRequired
		}
	}
	return q, nil
}

func (s *Server) readURL(raw string) (*url.URL, *source.Credentials, error) {
	u, cred, err := source.ParseURL(raw)
	if err != nil {
		scheme, _, found := strings.Cut(raw, ":")
		switch strings.ToLower(scheme) {
		case "http", "https", "ftp", "ftps", "file":
		default:
			if _, perr := url.Parse(raw); found && perr == nil {
				return nil, nil, failed(codeURLScheme, "url", "The scheme of the URL is not supported: it must be http, https, ftp or ftps.")
			}
		}
		return nil, nil, failed(codeURLSyntax, "url", "The URL is malformed: it must be "+err.Error()+".")
	}
	if u.Scheme == "file" && !s.cfg.InRoots(u) {
		return nil, nil, failed(codeURLScheme, "url", "A file URL must be below one of the directories in fetch.file_roots.")
	}
	return u, cred, nil
}

// readChecksum reads our extension: {"sha256": "…"}.
func readChecksum(body api.Object) (string, error) {
	const field, expected = "checksum.sha256", "checksum.sha256 must be 64 hexadecimal digits."
	sum, given, err := body.Object("checksum")
	if err != nil {
		return "", failed(codeInvalid, field, expected)
	}
	if !given {
		return "", nil
	}
	if err := exact(sum, "checksum.", "sha256"); err != nil {
		return "", err
	}
	digest, err := sum.String("sha256", "")
	if digest = strings.ToLower(digest); err != nil || len(digest) != 64 || strings.Trim(digest, "0123456789abcdef") != "" {
		return "", failed(codeInvalid, field, expected)
	}
	return digest, nil
}

// readCredentials reads username and password, which win over what is in the URL.
func readCredentials(body api.Object, q *fetch.Request) error {
	var cred source.Credentials
	var err error
	for field, to := range map[string]*string{"username": &cred.Username, "password": &cred.Password} {
		if *to, err = body.String(field, ""); err != nil {
			return failedf(codeInvalid, field, "%s must be a string without control characters.", field)
		}
	}
	if cred == (source.Credentials{}) {
		return nil
	}
	if err := cred.Check(); err != nil {
		return failed(codeInvalid, "username", "username and password must be "+err.Error()+".")
	}
	q.Secrets.URL = &cred
	return nil
}

// start makes a download of q, unless one like it is under way.
func (s *Server) start(ctx context.Context, q fetch.Request, by store.Actor) (store.Fetch, error) {
	s.posting.Lock()
	defer s.posting.Unlock()
	switch busy, err := s.busy(ctx); {
	case err != nil:
		return store.Fetch{}, unreadable(err)
	case busy:
		return store.Fetch{}, failed(codeUpdating, "", "A software update is in progress.")
	case s.cfg.ReadOnly:
		return store.Fetch{}, switchedOff()
	}
	if f, found, err := s.underWay(ctx, q); err != nil {
		return store.Fetch{}, unreadable(err)
	} else if found {
		return f, nil
	}
	if err := s.sameName(q); err != nil {
		return store.Fetch{}, err
	}
	f, err := s.cfg.Fetch.Enqueue(q, by)
	if store.Full(err) {
		e := failed(codeUnhealthy, "", "The download could not be stored: the disk is full. Make room and try again.")
		e.Err = err
		return f, e
	}
	if err != nil {
		e := failed(codeUnknownIfMay, "", "The download could not be stored. Look whether it is listed before trying again.")
		e.Err = err
		return f, e
	}
	return f, nil
}

// unreadable says that nobody knows whether a download may begin.
func unreadable(err error) error {
	e := failed(codeUnknownIfMay, "", "It is not known whether a download may begin: the database cannot be read. Try again in a moment.")
	e.Err = err
	return e
}

// underWay is the download of the same URL that waits or runs, if q names no other digest.
func (s *Server) underWay(ctx context.Context, q fetch.Request) (found store.Fetch, ok bool, err error) {
	stop := errors.New("found")
	want := canonical(q.URL)
	err = s.cfg.Fetch.Unfinished(ctx, func(f store.Fetch) error {
		u, err := url.Parse(f.URL)
		if err != nil || f.CancelRequested || f.Status.Final() || canonical(u) != want || q.SHA256 != "" && q.SHA256 != f.SHA256 {
			return nil
		}
		found, ok = f, true
		return stop
	})
	if errors.Is(err, stop) {
		err = nil
	}
	return found, ok, err
}

// canonical is u in a form in which equal URLs are equal: scheme and host in lower case, without default port, userinfo and
// fragment (contract section 3.1).
func canonical(u *url.URL) string {
	c := *u
	c.User, c.Fragment, c.RawFragment = nil, "", ""
	c.Scheme = strings.ToLower(c.Scheme)
	c.Host = strings.TrimSuffix(strings.ToLower(c.Host), ":"+map[string]string{"http": "80", "https": "443", "ftp": "21", "ftps": "990"}[c.Scheme])
	return c.String()
}

// sameName refuses an image whose file name a package has with other content. The phrase is one that Ansible looks for
// (rule 7).
func (s *Server) sameName(q fetch.Request) error {
	if q.SHA256 == "" {
		return nil
	}
	list, err := s.packages()
	if err != nil {
		return err
	}
	if current, err := s.running(); err != nil || current != nil && current.SHA256 == q.SHA256 {
		return err
	}
	name := source.FileName(q.URL)
	clash := 0
	for _, p := range list {
		if p.SHA256 == q.SHA256 {
			return nil // it is there, and the download is done
		}
		if name != "" && p.file == name {
			clash = p.SlotID
		}
	}
	if clash > 0 {
		return failedf(codeSameName, "url", "Package image with the same name already exists: %s is in slot %d with other content. Delete that package first.", name, clash)
	}
	return nil
}

// getDownload is a singleton and always there.
func (s *Server) getDownload(r *http.Request) (api.Reply, error) {
	if _, err := readQuery(r, nil, nil); err != nil {
		return api.Reply{}, err
	}
	d := Download{State: "not_started", Code: codeNotStarted, Message: "No package download has been started.", Links: link(downloadPath)}
	f, err := s.cfg.Fetch.Foremost(r.Context())
	if errors.Is(err, store.ErrNotFound) {
		return api.Reply{Body: d}, nil
	}
	if err != nil {
		return api.Reply{}, err
	}
	j := s.download(f, "")
	d.State, d.Code, d.Message, d.Progress, d.Error = j.State, j.Code, j.Message, j.Progress, j.Error
	switch j.State {
	case stateSuccess:
		d.Message = "Package download complete"
	case stateQueued, stateRunning:
		const begin = "Package download in progress"
		d.State, d.Code = stateRunning, codeDownloading
		if !strings.HasPrefix(d.Message, begin) {
			d.Message = begin + ": " + strings.ToLower(d.Message[:1]) + d.Message[1:]
		}
	}
	return api.Reply{Body: d}, nil
}
