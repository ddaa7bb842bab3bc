package slots

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
)

const (
	bootFile = "boot.json"
	bootMax  = 4 << 10 // bytes
)

// bootChoice is the content of boot.json. The vendor's hooks write it too, so unknown fields pass.
type bootChoice struct {
	Current     *int `json:"current"`
	AfterReboot *int `json:"after_reboot"`
}

// protects tells whether slot id must stay as it is.
func (b bootChoice) protects(id int) bool {
	return b.Current != nil && *b.Current == id || b.AfterReboot != nil && *b.AfterReboot == id
}

// boot reads boot.json anew: a hook may have changed it since. The error wraps [ErrBoot].
func (s *Slots) boot() (bootChoice, error) {
	var b bootChoice
	data, err := readSmall(s.root, bootFile, bootMax)
	if err == nil {
		err = json.Unmarshal(data, &b)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return bootChoice{}, fmt.Errorf("%w: cannot read %s: %w", ErrBoot, bootFile, err)
	}
	if runs := s.runs.Load(); b.Current == nil && runs != nil && s.Known(*runs) {
		// Somebody has removed the file, as our own messages advise. An empty slot is not what runs, whatever the kernel says.
		if m, problem, err := s.read(*runs); err != nil || m != nil || problem != nil && !errors.Is(problem, errNoManifest) {
			b.Current = runs
		}
	}
	if b.AfterReboot == nil {
		b.AfterReboot = b.Current
	}
	return b, nil
}

// bootIfKnown is boot for those who only show it: what cannot be read is unknown, and logged when that begins.
func (s *Slots) bootIfKnown() bootChoice {
	b, err := s.boot()
	s.mu.Lock()
	news := err != nil && !s.bootless
	s.bootless = err != nil
	s.mu.Unlock()
	if news {
		s.cfg.Log.Error("cannot tell which slot boots; until then no slot is filled or deleted", "err", err)
	}
	return b
}

// Runs says which slot the box runs, as somebody knows who is not boot.json. It is protected even where that says nothing.
func (s *Slots) Runs(id int) { s.runs.Store(&id) }

// Boot returns the slot that runs now and the one that boots next, as boot.json has them; nil means unknown.
func (s *Slots) Boot() (current, next *int, err error) {
	b, err := s.boot()
	return b.Current, b.AfterReboot, err
}

// SetBoot writes boot.json durably. A nil next means that the current slot boots again. It returns an error
// that wraps [ErrUnknown] for a number that is no slot; whether the slot can boot is for the caller to know
// (see [Slots.Valid]).
func (s *Slots) SetBoot(current, next *int) error {
	if next == nil {
		next = current
	}
	for _, id := range []*int{current, next} {
		if id != nil && !s.Known(*id) {
			return fmt.Errorf("cannot choose slot %d: %w", *id, ErrUnknown)
		}
	}
	data, err := json.Marshal(bootChoice{Current: current, AfterReboot: next})
	if err != nil {
		return fmt.Errorf("cannot encode %s: %w", bootFile, err)
	}
	s.turn.Lock() // a Delete that has asked for protection must not be overtaken
	defer s.turn.Unlock()
	if err := s.prepare(); err != nil {
		return fmt.Errorf("cannot write %s: %w", bootFile, err)
	}
	if err := replaceFile(s.root, bootFile, append(data, '\n'), 0o640); err != nil {
		return err
	}
	return syncDir(s.root)
}
