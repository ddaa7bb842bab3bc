package ontap

import (
	"errors"
	"mime"
	"net/http"

	"slotfetch/api"
	"slotfetch/fetch"
)

// uploadForm is the field of the form that has the image.
const uploadForm = "file"

// postUpload takes an image that comes with the request. When it is answered the job has ended: nothing of the body is left.
func (s *Server) postUpload(r *http.Request) (api.Reply, error) {
	reply, err := s.upload(r)
	var e *api.Error
	if errors.As(err, &e) { // what may still come of the body is not for the next request
		c := *e
		if c.Header = e.Header.Clone(); c.Header == nil {
			c.Header = http.Header{}
		}
		c.Header.Set("Connection", "close")
		err = &c
	}
	return reply, err
}

func (s *Server) upload(r *http.Request) (api.Reply, error) {
	q, err := readQuery(r, nil, nil)
	if err != nil {
		return api.Reply{}, err
	}
	if s.cfg.ReadOnly {
		return api.Reply{}, switchedOff()
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" || params["boundary"] == "" {
		return api.Reply{}, failed(codeNotMultipart, "", `The image must be the part "file" of a multipart/form-data body.`)
	}
	if busy, err := s.busy(r.Context()); err != nil {
		return api.Reply{}, unreadable(err)
	} else if busy {
		return api.Reply{}, failed(codeUpdating, "", "A software update is in progress.")
	}
	u := fetch.Upload{Body: r.Body, Header: r.Header, Length: r.ContentLength, Form: uploadForm, Reuse: true}
	code, message := 0, "success"
	if _, err := s.cfg.Fetch.Upload(u, actor(r)); err != nil {
		if err = s.uploadError(s.cfg.Fetch.UploadError(err, u)); err != nil {
			return api.Reply{}, err
		}
		code, message = codeUploadWrite, "The image could not be written. The agent's journal has the details."
	}
	row, err := s.done("POST "+uploadPath, code, message, actor(r))
	if err != nil {
		return api.Reply{}, err
	}
	return answer(row, q.timeout, http.StatusCreated)
}

// uploadError gives err its code; nil if it is for the job.
func (s *Server) uploadError(err error) error {
	var e *api.Error
	code := 0
	switch {
	case errors.Is(err, fetch.ErrManyImages):
		code = codeSecondFile
	case errors.Is(err, fetch.ErrLongName):
		code = codeLongName
	case !errors.As(err, &e):
		s.cfg.Log.Error("an upload failed", "err", err)
		return nil
	case e.Status == http.StatusConflict:
		code = codeNoPlace
	case e.Status == http.StatusInsufficientStorage:
		code = codeUploadSpace
	case e.Status == http.StatusRequestEntityTooLarge:
		code = codeUploadSpace
	default:
		return e
	}
	errors.As(err, &e)
	return failed(code, "", e.Message)
}

func switchedOff() *api.Error {
	return failed(codeSwitchedOff, "", "This box takes no packages over this interface (ontap.read_only in the agent's configuration).")
}
