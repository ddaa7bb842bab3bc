package ontap

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"slotfetch/api"
	"slotfetch/fetch"
	"slotfetch/slots"
	"slotfetch/store"
)

const (
	prefix        = "/api/cluster"
	nodesPath     = prefix + "/nodes"
	jobsPath      = prefix + "/jobs"
	softwarePath  = prefix + "/software"
	downloadPath  = softwarePath + "/download"
	packagesPath  = softwarePath + "/packages"
	uploadPath    = softwarePath + "/upload"
	historyPath   = softwarePath + "/history"
	packageVarKey = "version"

	// jobLife is how long a job is kept that is no download (contract section 4), jobsKept how many of them that have ended.
	jobLife  = 7 * 24 * time.Hour
	jobsKept = 10_000
)

// Updates is how slots are activated. It is declared here, by its consumer.
type Updates interface {
	// Possible tells whether this box can activate at all.
	Possible() bool
	// Begin tests a slot, which has to hold the image of a digest, and notes its activation under id; nothing is done before
	// Answered. Its errors are those of [slots.Tester.Examine], *api.Error, or our own fault.
	Begin(ctx context.Context, id string, slot int, sha256 string, by store.Actor) error
	// Answered lets the activation take its course, of which a reboot is a part.
	Answered(id string)
	// List are all activations that are kept, newest first.
	List(ctx context.Context) ([]store.Upgrade, error)
}

// Config is what [Open] needs.
type Config struct {
	Fetch   *fetch.Manager
	Slots   *slots.Slots
	Store   *store.Store
	Updates Updates
	// Tester tests packages.
	Tester *slots.Tester
	Log    *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time

	// Name and UUID are those of the box. Name is asked each time: it may be changed.
	Name func() (string, error)
	UUID string
	// Version is what clients are told to speak with.
	Version Version
	// RequireChecksum fails downloads of which nobody says the digest.
	RequireChecksum bool
	// ReadOnly takes neither downloads nor uploads.
	ReadOnly bool
	// InRoots tells whether a file URL may be opened.
	InRoots func(*url.URL) bool
}

// Server is the dialect. It is safe for concurrent use.
type Server struct {
	cfg Config

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	work sync.WaitGroup

	posting sync.Mutex    // so that two equal downloads do not both begin
	lists   chan struct{} // has one for each list of jobs that is being made

	mu         sync.Mutex
	changed    chan struct{} // closed and replaced when a job that is no download ends, or its test
	validating string        // the job that tests a package; empty if none does
	updating   string        // the job whose package is tested before it is activated
	began      time.Time     // of updating
	results    []Validation  // of the last test
	// ours are the jobs that this run began and has to end, outcomes those that have ended and of which the database does not
	// know it yet.
	ours     map[string]bool
	outcomes map[string]outcome
}

// Open takes up what an earlier run left: of its jobs nobody knows more than the store does.
func Open(cfg Config) (*Server, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg, lists: make(chan struct{}, maxLists), changed: make(chan struct{}), results: []Validation{}, ours: map[string]bool{}, outcomes: map[string]outcome{}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	switch err := s.settle(); {
	case err == nil:
	case store.Full(err) || store.Busy(err):
		s.settleLater(err)
	default:
		s.Close()
		return nil, err
	}
	if err := s.expire(); err != nil {
		cfg.Log.Warn("cannot forget old jobs; the next job tries again", "err", err)
	}
	return s, nil
}

// Close ends the jobs that are no downloads, and waits for them. After it none begins.
func (s *Server) Close() {
	s.mu.Lock() // so that none begins behind our back
	s.stop()
	s.mu.Unlock()
	s.work.Wait()
}

// Dialect is how the paths of [Server.Routes] are spoken. authenticator takes sessions and HTTP Basic.
func Dialect(authenticator api.Authenticator) api.Dialect {
	return api.Dialect{Prefix: prefix, ContentType: "application/hal+json", Authenticator: authenticator, Error: encodeError}
}

// Routes are the resources of the dialect (contract section 1).
func (s *Server) Routes() []api.Route {
	return []api.Route{
		{Method: http.MethodGet, Path: prefix, Access: api.Viewer, Handler: s.getCluster},
		{Method: http.MethodGet, Path: nodesPath, Access: api.Viewer, Handler: s.getNodes},
		{Method: http.MethodGet, Path: jobsPath, Access: api.Viewer, Handler: s.getJobs},
		{Method: http.MethodGet, Path: jobsPath + "/{uuid}", Access: api.Viewer, Handler: s.getJob},
		{Method: http.MethodPatch, Path: jobsPath + "/{uuid}", Access: api.Operator, Wait: api.Always(time.Minute), Handler: s.patchJob},
		{Method: http.MethodGet, Path: downloadPath, Access: api.Viewer, Handler: s.getDownload},
		{Method: http.MethodPost, Path: downloadPath, Access: api.Operator, Wait: readTimeout, Handler: s.postDownload},
		{Method: http.MethodGet, Path: softwarePath, Access: api.Viewer, Handler: s.getSoftware},
		// validate_only is for operators; what is more than that asks for an admin itself.
		{Method: http.MethodPatch, Path: softwarePath, Access: api.Operator, Wait: readTimeout, Handler: s.patchSoftware},
		{Method: http.MethodGet, Path: packagesPath, Access: api.Viewer, Handler: s.getPackages},
		{Method: http.MethodGet, Path: packagesPath + "/{" + packageVarKey + "}", Access: api.Viewer, Handler: s.getPackage},
		{Method: http.MethodDelete, Path: packagesPath + "/{" + packageVarKey + "}", Access: api.Operator, Wait: readTimeout, Handler: s.deletePackage},
		{Method: http.MethodPost, Path: uploadPath, Access: api.Operator, Idle: fetch.UploadIdle, Wait: api.Always(fetch.UploadWait), Handler: s.postUpload},
		{Method: http.MethodGet, Path: historyPath, Access: api.Viewer, Handler: s.getHistory},
	}
}

// actor is who asks, and with which program, for the audit.
func actor(r *http.Request) store.Actor {
	p, _ := api.PrincipalFrom(r.Context())
	app := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return -1
		}
		return c
	}, r.Header.Get("X-Dot-Client-App"))
	return store.Actor{Name: p.Name, Address: p.Address, App: app[:min(len(app), 100)]}
}

// notify wakes those who wait for a job that is no download.
func (s *Server) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// name is that of the box.
func (s *Server) name() (string, error) {
	name, err := s.cfg.Name()
	if err != nil {
		return "", fmt.Errorf("cannot ask for the name of the box: %w", err)
	}
	return name, nil
}
