package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"slotfetch/api"
)

const (
	// continueLimit is how long the box may take to say that it wants the image; then it is sent all the same.
	continueLimit = 10 * time.Second
	// answerLimit is for the answer after the last byte. The box keeps to 100 s.
	answerLimit = 110 * time.Second
	// stallLimit is how long the box may take none of the image.
	stallLimit = 2 * time.Minute
	// uploadPace is between two looks at the progress.
	uploadPace = 100 * time.Millisecond
)

// upload is the command of that name with its flags.
type upload struct {
	app    *app
	flags  *pflag.FlagSet
	sha256 string
	slot   int
}

func (a *app) uploadCommand() *cobra.Command {
	u := &upload{app: a}
	cmd := &cobra.Command{
		Use:        "upload FILE",
		SuggestFor: []string{"put", "push", "send", "copy"},
		Short:      "Put an image of this machine into a slot",
		Long: `Send the image in FILE (- is stdin) to the box, which puts it into a slot. That is for boxes
that reach no server of images; where they do, fetch goes on by itself when a connection
breaks, and an upload has to be started again. No image is overwritten.

The SHA-256 is computed on the way and compared with what the box has. With --sha256, in the
forms that fetch takes but for a URL, the box keeps nothing else.

When it returns 0, the image is in the slot, durably. Of an upload that fails or is stopped
with Ctrl-C the box keeps nothing.`,
		Example: `  slotfetch upload sps.iso
  slotfetch upload sps.iso --sha256 SHA256SUMS --slot 3
  ssh builder cat sps.iso | slotfetch upload - --sha256 5d41ab90…c2f7`,
		Args: wants(1, 1),
		RunE: a.act(u.run),
	}
	u.flags = cmd.Flags()
	u.flags.SortFlags = false
	u.flags.StringVar(&u.sha256, "sha256", "", "`DIGEST` that the image must have, a sha256sum line, or a FILE of such lines")
	u.flags.IntVar(&u.slot, "slot", 0, "put it into slot `N`, which must be empty (default: the lowest empty one)")
	return cmd
}

func (u *upload) run(ctx context.Context, args []string) error {
	a := u.app
	path, err := u.path(args[0])
	if err != nil {
		return err
	}
	file, size, err := a.image(args[0])
	if err != nil {
		return err
	}
	defer file.Close()
	c, err := a.open()
	if err != nil {
		return err
	}
	defer c.close()
	if a.curl {
		return c.printCurl(http.MethodPost, path, formFile(args[0]))
	}
	s := &sending{app: a, name: imageFile(args[0]), file: file, hash: sha256.New(), total: size}
	reply, err := s.send(ctx, c, path)
	if err != nil {
		return uploadFailure(err)
	}
	if got := s.digest(); reply.Body.SHA256 != got {
		return &failure{code: exitIntegrity, kind: "UploadDiffers", details: map[string]any{"slot": reply.Key, "sent": got, "stored": reply.Body.SHA256},
			message: fmt.Sprintf("slot %s holds another image than was sent: SHA-256 %s, not %s", reply.Key, orDash(reply.Body.SHA256), got),
			hint:    "Empty it with: slotfetch slots rm " + reply.Key}
	}
	return a.show(view{doc: reply, ids: []string{reply.Key}, text: func(p *page) {
		p.line("Slot %s holds %s, %s.", reply.Key, s.name, size64(reply.Body.Size, s.took()))
		p.say("Version %s, SHA-256 %s", reply.Body.Version, reply.Body.SHA256)
	}})
}

// size64 says how much it was and how fast.
func size64(n int64, took time.Duration) string {
	text := size(n) + " in " + span(took)
	if took > 0 {
		text += " (" + rate(int64(float64(n)/took.Seconds())) + ")"
	}
	return text
}

// path is that of the upload with what is asked for.
func (u *upload) path(file string) (string, error) {
	query := url.Values{}
	if u.flags.Changed("sha256") {
		if u.sha256 == "-" && file == "-" {
			return "", usage("stdin can be read only once: - is given twice", "")
		}
		if strings.Contains(u.sha256, "://") {
			return "", usage("--sha256 is a URL, which only fetch takes", "Give the digest, or the name of a checksum file.")
		}
		digest, err := sha256Algorithm.digest(u.sha256, "file:///"+url.PathEscape(imageFile(file)), u.app.stdin)
		if err != nil {
			return "", err
		}
		query.Set("sha256", digest)
	}
	if u.flags.Changed("slot") {
		if u.slot < 0 {
			return "", usage("--slot must not be negative", "Look at the slots with: slotfetch slots")
		}
		query.Set("slot_id", strconv.Itoa(u.slot))
	}
	if len(query) == 0 {
		return pathUpload, nil
	}
	return pathUpload + "?" + query.Encode(), nil
}

// imageFile names the image for people and for the box.
func imageFile(file string) string {
	if file == "-" {
		return "stdin"
	}
	return filepath.Base(file)
}

// image opens the file; size is below 0 where it is not known.
func (a *app) image(name string) (file io.ReadCloser, size int64, err error) {
	if name == "-" {
		return io.NopCloser(a.stdin), -1, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, usage(fmt.Sprintf("cannot read the image: %v", err), "")
	}
	info, err := f.Stat()
	switch {
	case err == nil && info.IsDir():
		err = usage(name+" is a directory", "")
	case err == nil && info.Mode().IsRegular() && info.Size() == 0:
		err = usage(name+" is empty", "")
	case err == nil && info.Mode().IsRegular():
		return f, info.Size(), nil
	case err == nil:
		return f, -1, nil
	}
	f.Close()
	return nil, 0, err
}

// sending is an image on its way; the transport reads it.
type sending struct {
	app   *app
	name  string
	file  io.Reader
	total int64 // below 0: unknown
	pump  sync.Once
	out   *io.PipeReader
	in    *io.PipeWriter
	began time.Time
	stall *time.Timer

	mu     sync.Mutex
	hash   hash.Hash
	sent   int64
	ended  bool
	failed error // of file
	shown  time.Time
	report func(b api.FetchBody)
}

// send performs the upload.
func (s *sending) send(ctx context.Context, c *client, path string) (reply api.Upload, err error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	stalled := &failure{code: exitNetwork, kind: "Network", temporary: true, message: fmt.Sprintf("%s took nothing of the image for %s", c.box, stallLimit)}
	s.began, s.stall = s.app.now(), time.AfterFunc(stallLimit, func() { stop(stalled) })
	defer s.stall.Stop()
	// The transport does not give up before a Read has returned, and one of stdin may take for ever.
	s.out, s.in = io.Pipe()
	defer s.out.Close()
	defer context.AfterFunc(ctx, func() { s.in.CloseWithError(context.Cause(ctx)) })()

	req, err := c.request(ctx, http.MethodPost, path, nil)
	if err != nil {
		return reply, err
	}
	req.Body, req.GetBody, req.ContentLength = s, s.again, s.total
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": s.name}))
	req.Header.Set("Expect", "100-continue")
	c.limit = 7 * 24 * time.Hour // nothing but a stall ends it
	if t, ok := c.http.Transport.(*http.Transport); ok {
		t.ExpectContinueTimeout, t.ResponseHeaderTimeout = continueLimit, answerLimit
	}
	done := s.show()
	_, err = c.perform(req, &reply)
	done()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		if reply.Key == "" {
			err = c.stranger("it took the image without saying where")
		}
		return reply, err
	}
	switch bad := asFailure(err); {
	case errors.Is(context.Cause(ctx), stalled):
		return reply, stalled
	case ctx.Err() != nil:
	case s.failed != nil:
		return reply, &failure{code: exitFailed, kind: "Failed", message: fmt.Sprintf("cannot read %s: %v", s.name, s.failed), cause: s.failed}
	case s.ended && bad.status == 0:
		bad.hint = strings.TrimSpace(bad.hint + " The image may be in a slot all the same. Look with: slotfetch slots")
		return reply, bad
	}
	return reply, err
}

// Read reads the image for the transport.
func (s *sending) Read(p []byte) (int, error) {
	s.pump.Do(func() {
		go func() {
			_, err := io.Copy(s.in, s.file)
			s.in.CloseWithError(err) // nil is EOF
		}()
	})
	n, err := s.out.Read(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hash.Write(p[:n])
	s.sent += int64(n)
	s.stall.Reset(stallLimit)
	switch {
	case err == io.EOF:
		s.ended = true
		s.stall.Stop() // from now on answerLimit counts
	case err != nil:
		s.failed = err
	}
	if s.ended = s.ended || s.sent == s.total; s.ended {
		s.stall.Stop()
	}
	s.tell()
	return n, err
}

// Close leaves the file to whom it belongs: the request may be made again.
func (s *sending) Close() error { return nil }

// again is for a request that has to be made again because nobody took the first: nothing was read.
func (s *sending) again() (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sent > 0 || s.ended {
		return nil, errors.New("the image was sent in part already")
	}
	return s, nil
}

func (s *sending) digest() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%x", s.hash.Sum(nil))
}

func (s *sending) took() time.Duration { return s.app.now().Sub(s.began) }

// sentSoFar is a line of --progress json.
type sentSoFar struct {
	File           string `json:"file"`
	Phase          string `json:"phase"`
	BytesSent      int64  `json:"bytes_sent"`
	BytesTotal     int64  `json:"bytes_total"` // 0: unknown
	BytesPerSecond int64  `json:"bytes_per_second"`
}

// show begins to show the progress, in the forms that a fetch has.
func (s *sending) show() (done func()) {
	if s.app.progress == "json" {
		s.report = func(b api.FetchBody) {
			_ = writeJSON(s.app.stderr, sentSoFar{s.name, *b.Phase, b.BytesDownloaded, b.BytesTotal, *b.BytesPerSecond}, "")
		}
		return func() {}
	}
	r := s.app.newReporter([]string{s.name})
	s.report = func(b api.FetchBody) { r.update(api.Fetch{Key: s.name, Body: b}) }
	return func() {
		s.mu.Lock() // the transport may read on for a moment
		defer s.mu.Unlock()
		s.report = nil
		r.close()
	}
}

// tell shows what was sent, now and then. The caller holds mu.
func (s *sending) tell() {
	now := s.app.now()
	if s.report == nil || !s.ended && now.Sub(s.shown) < uploadPace {
		return
	}
	s.shown = now
	phase, perSecond := "uploading", int64(0)
	if d := now.Sub(s.began); d > 0 {
		perSecond = int64(float64(s.sent) / d.Seconds())
	}
	b := api.FetchBody{Status: "in-progress", Phase: &phase, BytesDownloaded: s.sent, BytesTotal: max(s.total, 0), BytesPerSecond: &perSecond}
	switch {
	case s.ended:
		phase = "installing"
	case s.total > 0 && perSecond > 0:
		eta := (s.total - s.sent) / perSecond
		b.ETASeconds = &eta
	}
	s.report(b)
}

// uploadFailure gives what the box refused the exit code that a fetch has for it.
func uploadFailure(err error) error {
	f := asFailure(err)
	switch state := f.details["state"]; {
	case f.kind == "Interrupted":
		f.message = "interrupted; the box keeps nothing of the upload"
	case f.status == http.StatusNotFound:
		f.message = "the box takes no uploads: its agent is too old"
	case f.details["got"] != nil:
		f.code = exitIntegrity
	case state == "full", state == "occupied":
		f.code, f.hint = exitNoSpace, makeRoom
	case f.code == exitNoSpace:
		f.hint = makeRoom
	}
	return f
}
