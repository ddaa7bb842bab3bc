package slots

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// This file keeps what is known of an image beyond its manifest, in care.json beside it. The file names the fetch that
// brought the image, so that what is left of it after a crash is not taken for that of the next image. It promises
// nothing: a slot without it is whole.

const (
	careFile   = "care.json"
	careFormat = 1
	careMax    = 4 << 10 // bytes

	// LabelMax is how many characters a label may have.
	LabelMax = 64
)

// Care is what people and the scrubber noted about the image in a slot. The zero value is that of a new image.
type Care struct {
	// Pinned keeps the image: it is neither deleted nor evicted.
	Pinned bool `json:"pinned"`
	// Label is what people call it.
	Label string `json:"label"`
	// ScrubbedAt is when the image was last read as a whole, in UTC; zero if never.
	ScrubbedAt time.Time `json:"scrubbed_at,omitzero"`
	// Degraded says that it was not what its manifest promises, or could not be read.
	Degraded bool `json:"degraded"`
}

// careOnDisk is the content of care.json.
type careOnDisk struct {
	Format int    `json:"format"`
	Key    string `json:"key"` // of the manifest
	Care
}

// ValidLabel tells whether text may be a label.
func ValidLabel(text string) bool {
	return utf8.ValidString(text) && utf8.RuneCountInString(text) <= LabelMax && strings.TrimSpace(text) == text &&
		!strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) })
}

// decodeCare is as strict as decodeManifest.
func decodeCare(data []byte) (careOnDisk, error) {
	var c careOnDisk
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	err := dec.Decode(&c)
	if _, end := dec.Token(); err == nil && !errors.Is(end, io.EOF) {
		err = errors.New("followed by other bytes")
	}
	switch {
	case err != nil:
		return c, err
	case c.Format != careFormat:
		return c, fmt.Errorf("format %d, want %d", c.Format, careFormat)
	case !ValidLabel(c.Label):
		return c, errors.New("label is not printable, or too long")
	}
	return c, nil
}

// readCare reads care.json of the image that key brought. If that cannot be done the image counts as pinned: whoever
// pinned it must not lose it to a broken file.
func readCare(dir *os.Root, key string) (Care, error) {
	data, err := readSmall(dir, careFile, careMax)
	if errors.Is(err, fs.ErrNotExist) {
		return Care{}, nil
	}
	var c careOnDisk
	if err == nil {
		c, err = decodeCare(data)
	}
	if err != nil {
		return Care{Pinned: true}, fmt.Errorf("cannot read %s: %w", careFile, err)
	}
	if c.Key != key {
		return Care{}, nil
	}
	return c.Care, nil
}

// careOf is what is known of the image m in slot id. What could not be written yet is newer than what is on the disk.
func (s *Slots) careOf(id int, m *Manifest) Care {
	if m == nil {
		return Care{}
	}
	s.mu.Lock()
	c, ok := s.unwritten[id]
	s.mu.Unlock()
	if ok && c.Key == m.Key {
		return c.Care
	}
	dir, err := openSub(s.root, slotName(id))
	if errors.Is(err, fs.ErrNotExist) {
		return Care{} // emptied meanwhile
	}
	if err != nil {
		return Care{Pinned: true}
	}
	defer dir.Close() //nolint:errcheck // it was only read
	care, _ := readCare(dir, m.Key)
	return care
}

// ChangeCare lets change note something about the image in slot id, durably, and returns the slot as it is then. Its
// errors wrap [ErrUnknown], [ErrEmpty] or [ErrDamaged].
func (s *Slots) ChangeCare(id int, change func(*Care)) (Slot, error) {
	return s.changeCare(id, "", change)
}

// changeCare also wraps ErrEmpty if key is not empty and the image is not the one that it brought.
func (s *Slots) changeCare(id int, key string, change func(*Care)) (Slot, error) {
	if !s.Known(id) {
		return Slot{}, fmt.Errorf("cannot change slot %d: %w", id, ErrUnknown)
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	if err := s.prepare(); err != nil {
		return Slot{}, fmt.Errorf("cannot change slot %d: %w", id, err)
	}
	sl, err := s.lookLocked(id)
	switch {
	case err != nil:
		return Slot{}, fmt.Errorf("cannot change slot %d: %w", id, err)
	case sl.Damaged:
		return Slot{}, fmt.Errorf("cannot change slot %d: %w", id, ErrDamaged)
	case sl.Manifest == nil, key != "" && sl.Manifest.Key != key:
		return Slot{}, fmt.Errorf("cannot change slot %d: %w", id, ErrEmpty)
	}
	change(&sl.Care)
	if err := s.writeCare(id, careOnDisk{Format: careFormat, Key: sl.Manifest.Key, Care: sl.Care}); err != nil {
		return Slot{}, fmt.Errorf("cannot change slot %d: %w", id, err)
	}
	s.mu.Lock()
	delete(s.unwritten, id)
	s.mu.Unlock()
	return s.bootIfKnown().mark(sl), nil
}

func (s *Slots) writeCare(id int, c careOnDisk) (err error) {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	dir, err := openSub(s.root, slotName(id))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := replaceFile(dir, careFile, append(data, '\n'), imagePerm); err != nil {
		return err
	}
	return syncDir(dir)
}

// noteScrub keeps the result of a scrub; in memory, if the disk does not take it, which may be what is wrong with the
// image too.
func (s *Slots) noteScrub(id int, m *Manifest, degraded bool) (Slot, error) {
	c := careOnDisk{Format: careFormat, Key: m.Key}
	sl, err := s.changeCare(id, m.Key, func(old *Care) {
		old.ScrubbedAt, old.Degraded = s.cfg.Now().UTC(), degraded
	})
	if err == nil || errors.Is(err, ErrEmpty) || errors.Is(err, ErrDamaged) {
		return sl, err
	}
	s.cfg.Log.Error("cannot write the result of a scrub; it is kept until the agent ends", "slot", id, "err", err)
	c.Care = s.careOf(id, m)
	c.ScrubbedAt, c.Degraded = s.cfg.Now().UTC(), degraded
	s.mu.Lock()
	s.unwritten[id] = c
	s.mu.Unlock()
	return s.Get(id)
}

// Alarms are the numbers of the slots that are degraded or damaged.
func (s *Slots) Alarms() ([]int, error) {
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, sl := range list {
		if sl.Damaged || sl.Care.Degraded {
			ids = append(ids, sl.ID)
		}
	}
	return ids, nil
}
