package slots

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// What the agent may ask the root side for.
const (
	// ActionActivate lets the boot loader boot a slot once.
	ActionActivate = "activate"
	// ActionConfirm makes the slot that runs the default, if the box is healthy.
	ActionConfirm = "confirm"
	// ActionRollback makes the previous slot the default again.
	ActionRollback = "rollback"
)

// When the box reboots into the slot.
const (
	// RebootNow is as soon as the boot loader knows.
	RebootNow = "now"
	// RebootNext leaves the first reboot to others. If the slot turns out not to be healthy, the box reboots by itself.
	RebootNext = "next"
	// RebootNone leaves every reboot to others.
	RebootNone = "none"
)

const (
	requestFile = "request.json"
	resultFile  = "result.json"
	handoverMax = 4 << 10 // bytes of either
	messageMax  = 500     // characters
)

// Request is what the agent asks the root side for: the content of request.json.
type Request struct {
	// ID is a UUID of this request alone.
	ID string `json:"id"`
	// Action is one of the three above, Reboot too.
	Action string `json:"action"`
	SlotID int    `json:"slot_id"`
	// SHA256 is that of the image in the slot.
	SHA256 string `json:"sha256"`
	// Previous is the slot that ran before; nil if unknown.
	Previous *int   `json:"previous"`
	Reboot   string `json:"reboot"`
}

// Check refuses what the root side must not act upon, whoever wrote it.
func (r Request) Check() error {
	switch {
	case !validKey(r.ID):
		return errors.New("id is no canonical UUID")
	case !slices.Contains([]string{ActionActivate, ActionConfirm, ActionRollback}, r.Action):
		return errors.New("action is none of activate, confirm, rollback")
	case !lowerHex(r.SHA256, 64):
		return errors.New("sha256 is not 64 lower-case hex digits")
	case !slices.Contains([]string{RebootNow, RebootNext, RebootNone}, r.Reboot):
		return errors.New("reboot is none of now, next, none")
	}
	return nil
}

// Result is the root side's answer: the content of result.json.
type Result struct {
	// ID and Action are those of the request.
	ID     string `json:"id"`
	Action string `json:"action"`
	OK     bool   `json:"ok"`
	// Message says in words why not.
	Message string `json:"message"`
	// Uncertain says that the boot loader may have been told half of it.
	Uncertain bool `json:"uncertain,omitempty"`
	// Running is the slot that was found to run; nil if nobody looked.
	Running *int `json:"running,omitempty"`
	// BootID is the boot in which it was done.
	BootID string    `json:"boot_id"`
	Time   time.Time `json:"time"`
}

// Handover is the directory in which agent and root side leave each other files. Whoever changes something holds its
// lock: the root side while it works, the agent while it writes or takes back. The directory belongs to the agent, so the
// root side follows no link in it and makes no file through one.
type Handover struct{ root *os.Root }

// OpenHandover opens the directory name of dir. The error is [fs.ErrNotExist] if there is none.
func OpenHandover(dir, name string) (*Handover, error) {
	parent, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	sub, err := openSub(parent, name)
	if err = errors.Join(err, parent.Close()); err != nil {
		return nil, err
	}
	return &Handover{sub}, nil
}

// MakeHandover opens the directory, and makes it first if need be.
func MakeHandover(dir, name string) (*Handover, error) {
	parent, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	if err = parent.Mkdir(name, 0o750); err == nil {
		err = syncDir(parent)
	}
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err = errors.Join(err, parent.Close()); err != nil {
		return nil, err
	}
	return OpenHandover(dir, name)
}

// Close ends the use of the directory.
func (h *Handover) Close() error { return h.root.Close() }

// Lock takes the directory for one side. It does not wait: the error wraps [ErrLocked] if the other one has it.
func (h *Handover) Lock() (unlock func(), err error) {
	dir, err := h.root.Open(".")
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return func() { _ = dir.Close() }, nil
}

// WriteRequest leaves r for the root side, in place of whatever was there.
func (h *Handover) WriteRequest(r Request) error {
	if err := r.Check(); err != nil {
		return fmt.Errorf("cannot write %s: %w", requestFile, err)
	}
	return h.write(requestFile, r, 0o640)
}

// Request reads what the agent asks for. The error is [fs.ErrNotExist] if there is nothing; with any other, the ID is set as
// far as it could be made out, so that the agent can be told.
func (h *Handover) Request() (Request, error) {
	data, err := readSmall(h.root, requestFile, handoverMax)
	if err != nil {
		return Request{}, err
	}
	var r Request
	if err = decodeStrict(data, &r); err == nil {
		err = r.Check()
	}
	if err != nil {
		var id struct{ ID string }
		if json.Unmarshal(data, &id) != nil || !validKey(id.ID) {
			id.ID = ""
		}
		return Request{ID: id.ID}, fmt.Errorf("cannot read %s: %w", requestFile, err)
	}
	return r, nil
}

// RemoveRequest takes the request away durably; none is no error.
func (h *Handover) RemoveRequest() error {
	if err := removeFile(h.root, requestFile); err != nil {
		return err
	}
	return syncDir(h.root)
}

// WriteResult leaves r for the agent.
func (h *Handover) WriteResult(r Result) error {
	if m := []rune(r.Message); len(m) > messageMax {
		r.Message = string(m[:messageMax])
	}
	return h.write(resultFile, r, 0o644)
}

// Result reads the last answer of the root side. The error is [fs.ErrNotExist] if there was none yet.
func (h *Handover) Result() (Result, error) {
	var r Result
	data, err := readSmall(h.root, resultFile, handoverMax)
	if err == nil {
		err = decodeStrict(data, &r)
	}
	return r, err
}

func (h *Handover) write(name string, v any, perm os.FileMode) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) >= handoverMax {
		return fmt.Errorf("cannot write %s: it has %d bytes", name, len(data))
	}
	if err := h.replace(name, append(data, '\n'), perm); err != nil {
		return fmt.Errorf("cannot write %s: %w", name, err)
	}
	return syncDir(h.root)
}

// replace writes a small file atomically. Its mode does not depend on the umask: what root writes is for the agent to read.
func (h *Handover) replace(name string, data []byte, perm os.FileMode) error {
	temp := name + tempSuffix
	if err := removeFile(h.root, temp); err != nil {
		return err
	}
	f, err := h.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = h.root.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(err, removeFile(h.root, temp))
	}
	return nil
}

// decodeStrict takes one JSON value that has no unknown fields and nothing after it.
func decodeStrict(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there are other bytes after it")
	}
	return nil
}
