package fetch

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"

	"slotfetch/api"
	"slotfetch/fetch/source"
	"slotfetch/slots"
	"slotfetch/store"
)

// This file takes images that come with a request. An upload is no fetch: it has no row, nobody can continue it, and what
// is not complete goes away with the request, or at the next start.

const (
	uploadPath = "/api/upload/firmware"
	// maxUploads is how many go on at a time; each has a pipeline of its own.
	maxUploads = 2
	// UploadIdle is how long nothing may come, UploadWait how long the answer may take after the last byte: the clients of
	// the vendor wait 100 s (contract section 9, rule 19).
	UploadIdle = time.Minute
	UploadWait = 100 * time.Second
)

var (
	errUploads    = errors.New("too many uploads")
	errRecovering = errors.New("fetches and slots are not brought together yet")
)

// Upload is an image that comes with a request.
type Upload struct {
	// Body and Header are those of the request.
	Body   io.Reader
	Header http.Header
	// Length is that of the body in bytes, below 0 if it is not announced.
	Length int64
	// SHA256 and SHA512 are what the image must have, in lower-case hex; empty for anything.
	SHA256, SHA512 string
	// Slot is where it goes, which must be empty; nil for the lowest that is.
	Slot *int
	// Form is the field of a multipart body that has the image; empty for the one of SPS.
	Form string
	// Reuse gives up the upload for a slot that has the image already.
	Reuse bool
}

// ErrManyImages means that the body of an upload has more than one image.
var ErrManyImages = errors.New("more than one image in the body")

// ErrLongName means that the name of the file is longer than 255 bytes, which only those hear of who set Form.
var ErrLongName = errors.New("the name of the file is too long")

// Upload brings u into a slot. Nothing is read before a slot is reserved and the announced length is known to fit. After an
// error nothing is left of it.
func (m *Manager) Upload(u Upload, by store.Actor) (slots.Slot, error) {
	if err := m.beginUpload(); err != nil {
		return slots.Slot{}, err
	}
	defer m.endUpload()
	if most := m.cfg.MaxSize; most > 0 && u.Length > most+maxOther {
		return slots.Slot{}, tooLarge(most)
	}
	w, err := m.cfg.Slots.Reserve(uuid.NewString(), u.Slot, 0)
	if err != nil {
		return slots.Slot{}, errWrite{err}
	}
	r := &upload{m: m, u: u, w: w, log: m.cfg.Log.With("slot", w.Slot())}
	defer r.abort() // also after a panic
	r.log.Info("upload started", "by", by.Name)
	manifest, err := r.run()
	if there := new(alreadyThere); errors.As(err, &there) {
		r.log.Info("upload not needed: a slot has the image", "has", there.slot.ID)
		return there.slot, nil
	}
	if err != nil {
		r.failed(err)
		return slots.Slot{}, err
	}
	m.metrics.uploads.WithLabelValues("finished").Inc()
	r.log.Info("upload finished", "bytes", manifest.Size, "sha256", manifest.SHA256)
	detail := fmt.Sprintf("sha256=%s size=%d", manifest.SHA256, manifest.Size)
	if err := m.cfg.Store.Audit(by, "slot.upload", strconv.Itoa(w.Slot()), detail); err != nil {
		r.log.Error("cannot write audit", "action", "slot.upload", "err", err)
	}
	return slots.Slot{ID: w.Slot(), Manifest: &manifest}, nil
}

// beginUpload counts an upload in, for Close to wait for.
func (m *Manager) beginUpload() error {
	select {
	case <-m.recovered: // which would take our partial for one of nobody
	default:
		return errRecovering
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.ctx.Err() != nil:
		return errShutdown
	case m.uploads >= maxUploads:
		return errUploads
	}
	m.uploads++
	m.group.Add(1)
	return nil
}

func (m *Manager) endUpload() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.uploads--
	m.group.Done()
}

// upload is one on its way.
type upload struct {
	m    *Manager
	u    Upload
	w    *slots.Writer
	log  *slog.Logger
	size int64 // bytes of the image so far
}

// errBody marks errors of the client and of the connection, as against those of the box.
type errBody struct{ error }

func (e errBody) Unwrap() error { return e.error }

// run moves the image into the slot.
func (r *upload) run() (slots.Manifest, error) {
	var m slots.Manifest
	if r.u.Length > 0 {
		if err := r.w.Expect(r.u.Length); err != nil { // with what is around the image, if it is multipart
			return m, errWrite{err}
		}
	}
	pipe, err := newPipeline()
	if err != nil {
		return m, err
	}
	defer pipe.close() //nolint:errcheck // unmapping at the end has no consequence
	body, err := openUpload(r.u.Body, r.u.Header, cmp.Or(r.u.Form, uploadField))
	if err != nil {
		return m, errBody{err}
	}
	digests := newDigests(r.u.SHA512 != "")
	never := func(int) bool { return false }
	if err := pipe.run(r.m.ctx, &bounded{body, r}, digests, r.w, r.receive, never, nil); isWrite(err) {
		return m, err
	} else if err != nil {
		return m, errBody{err}
	}
	if r.size == 0 {
		return m, errBody{noImage("The image is empty.")}
	}
	m = slots.Manifest{Key: r.w.Key(), Name: body.name, Source: "upload", Size: r.size, FetchedAt: r.m.cfg.Now().UTC()}
	if body.name != "" {
		m.Source += ":" + body.name
	}
	var sum512 string
	m.SHA256, sum512 = digests.got()
	m.SHA512 = sum512
	if err := errors.Join(unlike("sha256", "SHA-256", r.u.SHA256, m.SHA256), unlike("sha512", "SHA-512", r.u.SHA512, sum512)); err != nil {
		return m, errBody{err}
	}
	if r.u.Reuse {
		if s := r.m.holder(store.Fetch{SHA256: m.SHA256}); s != nil {
			return m, &alreadyThere{*s}
		}
	}
	if err := r.w.Inspect(&m); err != nil {
		return m, errWrite{err}
	}
	if _, err = r.w.Commit(m); err != nil {
		return m, errWrite{err}
	}
	return m, nil
}

// alreadyThere ends an upload that a slot makes needless.
type alreadyThere struct{ slot slots.Slot }

func (a *alreadyThere) Error() string { return "a slot has the image" }

// receive counts n bytes of the image.
func (r *upload) receive(n int) {
	r.size += int64(n)
	r.m.metrics.uploaded.Add(float64(n))
}

// bounded ends an image that is larger than the configuration allows.
type bounded struct {
	io.Reader
	r *upload
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if most := b.r.m.cfg.MaxSize; most > 0 && b.r.size+int64(n) > most {
		return 0, tooLarge(most)
	}
	return n, err
}

// unlike compares a digest with the one that was asked for, if one was.
func unlike(field, name, want, got string) error {
	if want == "" || want == got {
		return nil
	}
	e := api.Semantic(field, want)
	e.Message = mismatch(name, want, got).Message
	e.Details["got"] = got
	return e
}

// failed notes what an upload ended with.
func (r *upload) failed(err error) {
	outcome, level := "failed", slog.LevelError
	switch {
	case errors.Is(err, errShutdown), r.m.ctx.Err() != nil:
		outcome, level = "interrupted", slog.LevelInfo
	case errors.As(err, new(errBody)):
		level = slog.LevelWarn
	}
	r.m.metrics.uploads.WithLabelValues(outcome).Inc()
	r.log.Log(r.m.ctx, level, "upload "+outcome, "bytes", r.size, "err", err)
}

// abort removes what there is of an upload that was not committed.
func (r *upload) abort() {
	if err := r.w.Abort(); err != nil {
		// What is left is swept at the next start: no row owns it.
		r.log.Error("cannot remove the partial", "err", err)
		if err := r.w.Suspend(); err != nil {
			r.log.Warn("cannot close the partial", "err", err)
		}
	}
}

// uploadRoute is POST /api/upload/firmware (contract section 8).
func (m *Manager) uploadRoute(p Policy) api.Route {
	return api.Route{Method: http.MethodPost, Path: uploadPath, Access: api.Operator, Idle: UploadIdle, Wait: api.Always(UploadWait),
		Handler: func(r *http.Request) (api.Reply, error) {
			u, err := parseUpload(r, p)
			if err != nil {
				return api.Reply{}, unread(err)
			}
			slot, err := m.Upload(u, actor(r))
			if err != nil {
				return api.Reply{}, unread(m.uploadError(err, u))
			}
			return m.uploaded(slot)
		}}
}

// parseUpload checks what there is before the body.
func parseUpload(r *http.Request, p Policy) (Upload, error) {
	u := Upload{Body: r.Body, Header: r.Header, Length: r.ContentLength}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return u, api.Semantic("query", "a well-formed query: what is in it must not be overlooked")
	}
	one := func(name, expected string, ok func(string) bool) string {
		values, there := query[name]
		if there && err == nil && (len(values) != 1 || !ok(values[0])) {
			err = api.Semantic(name, expected)
		}
		return strings.ToLower(query.Get(name))
	}
	u.SHA256 = one("sha256", "64 hexadecimal digits", func(s string) bool { return isHex(s, 64) })
	u.SHA512 = one("sha512", "128 hexadecimal digits", func(s string) bool { return isHex(s, 128) })
	number := one("slot_id", p.Slots, func(s string) bool {
		n, err := strconv.Atoi(s)
		return err == nil && strconv.Itoa(n) == s && p.ValidSlot(n)
	})
	if err == nil && number != "" {
		n, _ := strconv.Atoi(number) // checked above
		u.Slot = &n
	}
	if e := r.Header.Get("Content-Encoding"); err == nil && e != "" && !strings.EqualFold(e, "identity") {
		err = api.Semantic("Content-Encoding", "left out: the image is stored as it comes")
	}
	return u, err
}

// unread has the connection closed behind an error: what may still come of the body is not for the next request.
func unread(err error) error {
	var e *api.Error
	if errors.As(err, &e) {
		h := http.Header{"Connection": {"close"}}
		for k, v := range e.Header {
			h[k] = v
		}
		e.Header = h
	}
	return err
}

// uploaded is the answer.
func (m *Manager) uploaded(slot slots.Slot) (api.Reply, error) {
	list, err := m.cfg.Slots.List()
	if err != nil {
		return api.Reply{}, err
	}
	doc, links := slots.Document(slot), withLinks(uploadPath, "")
	reply := api.Upload{Key: doc.Key, Body: doc.Body,
		Meta: api.UploadMeta{Href: links.Href, Slot: doc.Meta.Href, Test: links.Test, Upgrade: links.Upgrade}}
	for _, s := range list {
		if slots.Document(s).Body.Empty() {
			reply.Meta.NumberOfEmptySlots++
		}
	}
	return api.Reply{Body: reply}, nil
}

func tooLarge(most int64) error {
	return &api.Error{Status: http.StatusRequestEntityTooLarge, Type: "RequestTooLarge",
		Message: fmt.Sprintf("The image is larger than %d bytes, which is the limit of this box (fetch.max_size).", most), Details: map[string]any{"limit": most}}
}

// noSpace has the remedy of the fault with that code, needed and free bytes.
func noSpace(code, message string, needed, free int64) *api.Error {
	return &api.Error{Status: http.StatusInsufficientStorage, Type: "InsufficientStorage",
		Message: message + " " + source.FaultOf(code).Remedy, Details: map[string]any{"needed": needed, "free": free}}
}

// UploadError is what Upload returned, as an *api.Error where a caller is to know. Then it may be ErrManyImages or ErrLongName
// too.
func (m *Manager) UploadError(err error, u Upload) error {
	if errors.Is(err, ErrManyImages) || errors.Is(err, ErrLongName) {
		return err
	}
	return m.uploadError(err, u)
}

// uploadError is err for the caller.
func (m *Manager) uploadError(err error, u Upload) error {
	slot := func() string { return fmt.Sprintf("Slot %d", *u.Slot) }
	state := func(s string) map[string]any { return map[string]any{"slot_id": *u.Slot, "state": s} }
	var e *api.Error
	var space *slots.SpaceError
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, errShutdown):
		return api.Unavailable("The agent is stopping.")
	case errors.Is(err, errRecovering):
		return api.Unavailable("The agent cannot take an image yet: it is still bringing fetches and slots in order.")
	case errors.Is(err, errUploads):
		return api.Unavailable(fmt.Sprintf("%d uploads are under way, which is all at a time. Try again when they are through.", maxUploads))
	case errors.Is(err, api.ErrSilent):
		return noImage(fmt.Sprintf("Nothing more of the body came for %d s: the upload was given up.", int(UploadIdle.Seconds())))
	case errors.As(err, new(errBody)):
		return noImage("The body ended early, or could not be read: the upload was not complete.")

	case errors.Is(err, slots.ErrNoEmpty):
		return api.Conflict(fmt.Sprintf("No empty firmware slot: all %d are occupied. Delete one with DELETE /api/firmware/slots/<slot_id> and start again.",
			m.cfg.Slots.Count()), map[string]any{"state": "full"})
	case errors.Is(err, slots.ErrOccupied) && u.Slot != nil:
		return api.Conflict(slot()+" is occupied. Delete it or leave out slot_id.", state("occupied"))
	case errors.Is(err, slots.ErrProtected) && u.Slot != nil:
		return api.Conflict(slot()+" is the one that runs or boots next. Choose another or leave out slot_id.", state("protected"))
	case errors.As(err, &space):
		return noSpace("space", fmt.Sprintf("Not enough space: needs %d bytes, %d are free beside the reserve.", space.Needed, space.Free), space.Needed, space.Free)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		free, ferr := m.cfg.Slots.Free()
		if ferr != nil {
			free = 0
		}
		if errors.Is(err, slots.ErrNoInodes) {
			return noSpace("inodes", noInodes, max(u.Length, 1), free)
		}
		return noSpace("space", "Not enough space: the disk is full, or has no room for another file.", max(u.Length, 1), free)
	case errors.Is(err, slots.ErrNotISO):
		e := api.Semantic(uploadField, "an ISO 9660 file system, which this box requires (slots.require_iso)")
		e.Message = "The image is no ISO 9660 file system, which this box requires (slots.require_iso)."
		return e
	case errors.Is(err, slots.ErrBoot):
		e = api.Unavailable("It is not known which slots must be kept: boot.json in the slots directory cannot be read. Repair or remove it and try again.")
	case slots.ReadOnly(err):
		e = api.Unavailable("The slots directory cannot be written. Make it writable and try again.")
	default:
		return err
	}
	e.Err = err
	return e
}

// isHex tells whether s is n hexadecimal digits.
func isHex(s string, n int) bool {
	return len(s) == n && !slices.ContainsFunc([]byte(s), func(c byte) bool { return !strings.ContainsRune("0123456789abcdefABCDEF", rune(c)) })
}
