package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http/httpproxy"

	"slotfetch/api"
	"slotfetch/auth"
	"slotfetch/fetch"
	"slotfetch/fetch/source"
	"slotfetch/ontap"
	"slotfetch/slots"
	"slotfetch/store"
)

// daemon is the running agent: leaves are opened first and closed last.
type daemon struct {
	cfg      config
	log      *slog.Logger
	lock     *os.File
	store    *store.Store
	slots    *slots.Slots
	scrubber *slots.Scrubber
	tester   *slots.Tester
	fetch    *fetch.Manager
	auth     *auth.Auth
	api      *api.Server
	cert     *certificate

	upgrades *upgrader
	ontap    *ontap.Server // nil if it is switched off

	metrics *prometheus.Registry

	listeners []net.Listener
	servers   []*http.Server
}

// openDaemon opens everything and listens; serve answers.
func openDaemon(cfg config, log *slog.Logger) (d *daemon, err error) {
	d = &daemon{cfg: cfg, log: log}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if err := os.MkdirAll(cfg.StateDir, 0o750); err != nil {
		return d, fmt.Errorf("cannot make state directory: %w", err)
	}
	if d.lock, err = lockState(cfg.StateDir); err != nil {
		return d, err
	}
	if err := d.openStore(); err != nil {
		return d, err
	}
	if d.slots, err = slots.Open(slots.Config{Dir: cfg.Slots.Dir, First: cfg.Slots.First, Count: cfg.Slots.Count, Reserve: cfg.Slots.Reserve,
		RequireISO: cfg.Slots.RequireISO, VersionFile: cfg.Slots.VersionFile, ManifestFile: cfg.Slots.ManifestFile, Evict: evictions[cfg.Slots.Evict], Evicted: d.onEvicted, WayBack: d.wayBack, Log: log}); err != nil {
		return d, err
	}
	trust, err := cfg.Trust.policy(cfg.Upgrade)
	if err != nil {
		return d, err
	}
	policy := d.testPolicy()
	policy.Keys, policy.SignedProduct = trust.KeyIDs(), trust.Product
	d.tester = slots.NewTester(d.slots, slots.TesterConfig{Policy: policy})
	if d.upgrades, err = openUpgrader(cfg, log, d.store, d.slots, d.tester); err != nil {
		return d, err
	}
	if err := d.openFetch(trust); err != nil {
		return d, err
	}
	d.scrubber = slots.StartScrubber(d.slots, slots.ScrubConfig{Interval: time.Duration(cfg.Slots.ScrubInterval), Rate: cfg.Slots.ScrubRate})
	if d.auth, err = auth.Open(auth.Config{Store: d.store, Log: log, OnLogin: d.onLogin}); err != nil {
		return d, err
	}
	if err := d.firstUser(); err != nil {
		return d, err
	}
	if d.cert, err = openCertificate(cfg); err != nil {
		return d, err
	}
	if cfg.Ontap.Enabled {
		if err := d.openOntap(); err != nil {
			return d, err
		}
	}
	d.metrics = d.newMetrics()
	d.api = api.NewServer(api.Config{Routes: d.routes(), Authenticator: d.auth, Dialects: d.dialects(), Explain: explain, Log: log})
	if err := d.listen(); err != nil {
		return d, err
	}
	log.Info("agent ready", "listen", d.listeners[0].Addr().String(), "certificate", d.cert.fingerprint())
	return d, nil
}

// lockState keeps a second agent off the same state directory for as long as this one lives.
func lockState(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "agent.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another slotfetchd is running on %s: stop it first, or give this one another state_dir", dir)
	}
	return f, nil
}

// openStore opens the database. A corrupt one is set aside, never deleted: slots live without it.
func (d *daemon) openStore() error {
	path := databaseFile(d.cfg)
	lock, err := d.lock.Stat()
	if err != nil {
		return fmt.Errorf("cannot look at the lock of the state directory: %w", err)
	}
	must := lock.Size() > 0 // what is written below
	d.store, err = store.Open(path, store.Options{MustExist: must, KeepCopy: true})
	if must && (errors.Is(err, store.ErrCorrupt) || errors.Is(err, fs.ErrNotExist)) {
		cause := err
		aside := "(nothing there)"
		if !errors.Is(err, fs.ErrNotExist) {
			if aside, err = store.SetAside(path); err != nil {
				return err
			}
		}
		d.log.Error("the database was unusable; starting with an empty one, slots are untouched", "err", cause, "kept_as", aside)
		d.store, err = store.Open(path, store.Options{})
	}
	if errors.Is(err, store.ErrNewer) {
		// The firmware before is back, after a newer one has migrated the database that they share.
		cause := err
		aside, oerr := store.Older(path)
		if oerr != nil {
			return errors.Join(cause, oerr)
		}
		d.log.Error("a newer agent has changed the database; going on with the copy of before, which knows nothing that came since", "err", cause, "kept_as", aside)
		d.store, err = store.Open(path, store.Options{MustExist: true})
	}
	if err == nil && !must {
		_, err = d.lock.WriteString("There is a database beside this file.\n")
	}
	return err
}

func (d *daemon) openFetch(trust fetch.Trust) error {
	key, err := sealKey(filepath.Join(d.cfg.StateDir, "seal.key"))
	if err != nil {
		return err
	}
	sc := source.Config{Egress: d.cfg.Egress.policy(), FileRoots: d.cfg.Fetch.FileRoots,
		UserAgent: "slotfetch/" + version, IdleTimeout: time.Duration(d.cfg.Fetch.IdleTimeout), Connections: d.cfg.Fetch.Connections,
		MaxSize: d.cfg.Fetch.MaxSize}
	if p := d.cfg.Proxy; p.HTTP != "" || p.HTTPS != "" {
		sc.Proxy = &httpproxy.Config{HTTPProxy: p.HTTP, HTTPSProxy: p.HTTPS, NoProxy: p.NoProxy}
		d.log.Info("a proxy is configured: it, not the egress policy, decides where names lead")
	}
	client, err := source.New(sc)
	if err != nil {
		return err
	}
	c := d.cfg.Fetch
	traffic := c.MaxTraffic
	if traffic == 0 {
		traffic = -1 // no bound
	}
	d.fetch, err = fetch.Open(fetch.Config{Store: d.store, Slots: d.slots, Source: client, SealKey: key, Log: d.log, Workers: c.Workers,
		Retry: fetch.Retry{Rounds: c.RetryRounds, Keep: time.Duration(c.RetryKeep), Initial: time.Duration(c.RetryInitial),
			Max: time.Duration(c.RetryMax)},
		Deadline: time.Duration(c.Deadline), MaxTraffic: traffic, ResumeVerify: resumeVerify[c.ResumeVerify],
		CheckpointBytes: c.CheckpointBytes, CheckpointEvery: time.Duration(c.CheckpointInterval),
		RateLimit: c.RateLimit, Window: fetch.Window(c.Window), MaxSize: c.MaxSize, KeepAge: time.Duration(c.KeepAge), KeepCount: c.KeepCount, Trust: trust})
	return err
}

// sealKey reads the key for credentials at rest: from systemd's credentials, else from the state directory.
func sealKey(file string) ([]byte, error) {
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		if key, err := os.ReadFile(filepath.Join(dir, "seal.key")); err == nil {
			return key, nil
		}
	}
	key, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, fetch.SealKeySize)
		rand.Read(key)
		err = writeSecret(file, key)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read seal key: %w", err)
	}
	return key, nil
}

func (d *daemon) passwordFile() string {
	return filepath.Join(d.cfg.StateDir, "initial-admin-password")
}

// firstUser makes admin with a random password when there is no user. The password goes to a file that root and the
// agent can read; the journal says where.
func (d *daemon) firstUser() error {
	users, err := d.store.Users(context.Background())
	if err != nil || len(users) > 0 {
		return err
	}
	password := auth.RandomPassword()
	if err := writeSecret(d.passwordFile(), []byte(password+"\n")); err != nil {
		return fmt.Errorf("cannot write the first password: %w", err)
	}
	d.log.Warn("made the user admin; its password is in a file that is removed at the first login", "file", d.passwordFile())
	return d.store.AddUser(store.User{Name: "admin", PasswordHash: auth.HashPassword(password), Role: "admin"}, store.Actor{Name: "slotfetchd", Address: "local"})
}

// stuckAfter is for how long a running fetch may show no sign of life. An attempt without a byte ends by itself long before.
const stuckAfter = 5 * time.Minute

// health says whether the agent can do its work: the database answers, and no worker hangs.
func (d *daemon) health(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, 2*time.Second)
	defer stop()
	if err := d.store.Ping(ctx); err != nil {
		return fmt.Errorf("the database does not answer: %w", err)
	}
	if key, stuck := d.fetch.Stuck(max(stuckAfter, 2*time.Duration(d.cfg.Fetch.IdleTimeout))); stuck {
		return fmt.Errorf("fetch %s shows no sign of life", key)
	}
	return nil
}

// reload loads the certificate again.
func (d *daemon) reload() {
	if err := d.cert.reload(); err != nil {
		d.log.Error("reload failed; the old certificate stays", "err", err)
	} else {
		d.log.Info("reloaded", "certificate", d.cert.fingerprint())
	}
}

func (d *daemon) onLogin(user string) {
	if user == "admin" {
		if err := os.Remove(d.passwordFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.log.Warn("cannot remove the file with the first password", "err", err)
		}
	}
}

// serve answers until ctx ends, or a listener fails.
func (d *daemon) serve(ctx context.Context) error {
	failed := make(chan error, len(d.servers))
	for i, s := range d.servers {
		go func() {
			if s.TLSConfig != nil {
				failed <- s.ServeTLS(d.listeners[i], "", "")
			} else {
				failed <- s.Serve(d.listeners[i])
			}
		}()
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("cannot serve: %w", err)
	}
}

// close is the reverse of openDaemon: HTTP first, then the workers, then what they stand on.
func (d *daemon) close() error {
	var errs []error
	if d.api != nil {
		d.api.Stopping()
	}
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Second)
	defer stop()
	if d.fetch != nil {
		// Before the servers, which would else wait for requests that wait for fetches.
		errs = append(errs, d.fetch.Close())
	}
	if d.scrubber != nil {
		d.scrubber.Close() // for the same reason
	}
	if d.tester != nil {
		d.tester.Close() // and this
	}
	if d.ontap != nil {
		d.ontap.Close()
	}
	for i, s := range d.servers {
		if err := s.Shutdown(ctx); err != nil {
			s.Close()
		}
		d.listeners[i].Close()
	}
	if d.auth != nil {
		errs = append(errs, d.auth.Close())
	}
	if d.upgrades != nil {
		errs = append(errs, d.upgrades.Close())
	}
	if d.slots != nil {
		errs = append(errs, d.slots.Close())
	}
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	if d.lock != nil {
		d.lock.Close()
	}
	return errors.Join(errs...)
}
