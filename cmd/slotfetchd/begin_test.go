package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"slotfetch/api"
	"slotfetch/slots"
	"slotfetch/store"
)

// TestBeginAnotherImage: a slot is not activated for somebody who meant the image that was there before.
func TestBeginAnotherImage(t *testing.T) {
	t.Parallel()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	var cfg config
	cfg.StateDir, cfg.Activate.BootIDFile = dir, filepath.Join(dir, "boot_id")
	ok(os.WriteFile(cfg.Activate.BootIDFile, []byte("0b9d1bd5-6a1c-4a5e-9a57-1f6f3f0f8a11\n"), 0o600))
	st, err := store.Open(filepath.Join(dir, "db"), store.Options{})
	ok(err)
	sl, err := slots.Open(slots.Config{Dir: filepath.Join(dir, "slots"), First: 1, Count: 1, Log: log})
	ok(err)
	tester := slots.NewTester(sl, slots.TesterConfig{Policy: slots.TestPolicy{Space: func() (int64, error) { return 1 << 30, nil }}})
	u, err := openUpgrader(cfg, log, st, sl, tester)
	ok(err)
	defer func() {
		tester.Close()
		ok(errors.Join(u.Close(), sl.Close(), st.Close()))
	}()
	w, err := sl.Reserve("00000000-0000-4000-8000-000000000001", nil, 0)
	ok(err)
	bufs, release, err := slots.Buffers(1)
	ok(err)
	text := bytes.Repeat([]byte("x"), 1000)
	_, err = w.Write(bufs[0][:copy(bufs[0], text)])
	ok(errors.Join(err, release()))
	digest := fmt.Sprintf("%x", sha256.Sum256(text))
	_, err = w.Commit(slots.Manifest{SHA256: digest, Version: "2"})
	ok(err)

	by := store.Actor{Name: "ann"}
	_, _, err = u.begin(t.Context(), order{slot: 1, sha256: fmt.Sprintf("%x", sha256.Sum256(nil)), reboot: slots.RebootNone, by: by})
	var e *api.Error
	if !errors.As(err, &e) || e.Status != 404 {
		t.Fatalf("%v", err)
	}
	if _, err := st.LiveUpgrade(t.Context()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%v", err)
	}
	ok(sl.Delete(1)) // nobody holds it
}
