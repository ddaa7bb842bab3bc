package ontap

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/mux"

	"slotfetch/api"
	"slotfetch/slots"
	"slotfetch/store"
)

// This file shows slots as packages: every image but the one that runs (contract section 5.3).

// listed is a package, and what the slot knows beside.
type listed struct {
	Package
	file    string // its name at its source
	fetched time.Time
}

// named is a version as it is written everywhere here. It is a segment of a path, so that it cannot have a slash.
func named(version string) string { return strings.ReplaceAll(version, "/", "_") }

// names tells whether a client means version. It may have written a blank as +.
func names(client, version string) bool {
	client, version = named(client), named(version)
	return client == version || strings.ReplaceAll(client, "+", " ") == version
}

// packages are the images that could be activated, the sound ones by slot and then those that are degraded. Of two with one
// version, the later one has the number of its slot behind it.
func (s *Server) packages() ([]listed, error) {
	list, err := s.cfg.Slots.List()
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(list, func(a, b slots.Slot) int { return degraded(a) - degraded(b) })
	var out []listed
	seen := map[string]bool{}
	for _, slot := range list {
		m := slot.Manifest
		if m == nil || slot.Current {
			continue
		}
		version := named(m.Version)
		for n := slot.ID; seen[version]; n += 1000 { // somebody may call a version so
			version = fmt.Sprintf("%s+slot%d", named(m.Version), n)
		}
		seen[version] = true
		out = append(out, listed{Package{Version: version, CreateTime: api.FormatTime(m.FetchedAt), SlotID: slot.ID, SHA256: m.SHA256, Size: m.Size,
			Links: link(packageHref(version))}, m.Name, m.FetchedAt})
	}
	return out, nil
}

func degraded(sl slots.Slot) int {
	if sl.Care.Degraded {
		return 1
	}
	return 0
}

// running is the image that runs; nil if it is not known.
func (s *Server) running() (*slots.Manifest, error) {
	list, err := s.cfg.Slots.List()
	if err != nil {
		return nil, err
	}
	for _, slot := range list {
		if slot.Current {
			return slot.Manifest, nil
		}
	}
	return nil, nil
}

var packageFields = fields[Package]{
	"version":     func(p Package) value { return text(p.Version) },
	"create_time": func(p Package) value { return optional(p.CreateTime) },
	"slot_id":     func(p Package) value { return number(int64(p.SlotID)) },
	"sha256":      func(p Package) value { return text(p.SHA256) },
	"size":        func(p Package) value { return number(p.Size) },
}

func (s *Server) getPackages(r *http.Request) (api.Reply, error) {
	q, err := readQuery(r, packageFields.names(), nil)
	if err != nil {
		return api.Reply{}, err
	}
	list, err := s.packages()
	if err != nil {
		return api.Reply{}, err
	}
	slices.SortStableFunc(list, func(a, b listed) int { return a.fetched.Compare(b.fetched) }) // oldest first, as everywhere
	records := make([]Package, len(list))
	for i, p := range list {
		records[i] = p.Package
	}
	return collection(q, records, packageFields), nil
}

// find is the package with a version; ok is false if there is none.
func find(list []listed, version string) (p listed, ok bool) {
	for _, p := range list {
		if p.Version == named(version) {
			return p, true
		}
	}
	for _, p := range list {
		if names(version, p.Version) {
			return p, true
		}
	}
	return p, false
}

func (s *Server) getPackage(r *http.Request) (api.Reply, error) {
	if _, err := readQuery(r, nil, nil); err != nil {
		return api.Reply{}, err
	}
	list, err := s.packages()
	if err != nil {
		return api.Reply{}, err
	}
	p, ok := find(list, mux.Vars(r)[packageVarKey])
	if !ok {
		return api.Reply{}, noEntry("version")
	}
	return api.Reply{Body: p.Package}, nil
}

// deletePackage empties a slot. The version that runs is left alone, and that is a success: Ansible deletes what it has just
// activated. A body means nothing.
func (s *Server) deletePackage(r *http.Request) (api.Reply, error) {
	q, err := readQuery(r, nil, nil)
	if err != nil {
		return api.Reply{}, err
	}
	version := mux.Vars(r)[packageVarKey]
	list, err := s.packages()
	if err != nil {
		return api.Reply{}, err
	}
	p, listed := find(list, version)
	message := "success"
	if !listed {
		current, err := s.running()
		if err != nil {
			return api.Reply{}, err
		}
		if current == nil || !names(version, current.Version) {
			return api.Reply{}, failed(codeNoPackage, "version", messageNoPackage)
		}
		message = "success: the version runs, so its image is kept"
	}
	// The job comes first: what is deleted should be on record.
	by := actor(r)
	row, err := s.add(store.Job{ID: uuid.NewString(), Description: "DELETE " + packageHref(version), State: store.JobRunning, Message: "Deleting the package"}, by)
	if err != nil {
		return api.Reply{}, err
	}
	if listed {
		err = s.empty(p)
	}
	var e *api.Error
	switch {
	case errors.As(err, &e):
		code, _ := strconv.Atoi(e.Code) // ours have one
		s.end(row.ID, s.became(code, e.Message))
		return api.Reply{}, err
	case err != nil:
		s.end(row.ID, s.became(codeInternal, "The slot could not be emptied. The agent's journal has the details."))
		return api.Reply{}, err
	}
	s.end(row.ID, s.became(0, message))
	if listed {
		if err := s.cfg.Store.Audit(by, "slot.delete", strconv.Itoa(p.SlotID), ""); err != nil {
			s.cfg.Log.Error("cannot write audit", "action", "slot.delete", "slot", p.SlotID, "err", err)
		}
	}
	row.State = store.JobSuccess
	return answer(row, q.timeout, http.StatusOK)
}

func (s *Server) empty(p listed) error {
	switch err := s.cfg.Slots.DeleteImage(p.SlotID, p.SHA256); {
	case errors.Is(err, slots.ErrProtected), errors.Is(err, slots.ErrReserved):
		return failedf(codePackageInUse, "version", "The package is in slot %d, which runs now, boots next or is being filled.", p.SlotID)
	case errors.Is(err, slots.ErrPinned):
		return failedf(codePackageInUse, "version", "The package is in slot %d, which is pinned. Unpin it first.", p.SlotID)
	case errors.Is(err, slots.ErrBusy):
		return failedf(codeValidated, "version", "The package in slot %d is being validated. Try again in a moment.", p.SlotID)
	case errors.Is(err, slots.ErrEmpty), errors.Is(err, slots.ErrUnknown):
		return failed(codeNoPackage, "version", messageNoPackage)
	case errors.Is(err, slots.ErrBoot), slots.ReadOnly(err):
		e := failed(codeUnhealthy, "", "The slot was not emptied: the slots directory cannot be read or written as it should be.")
		e.Err = err
		return e
	default:
		return err
	}
}
