package main

import (
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"slotfetch/api"
)

// TestScripts runs the program as a process, with a terminal where the script has ttyin.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			b := newFakeBox(e.T().(testing.TB))
			b.slots = []api.Slot{{Key: "1", Body: api.SlotBody{Version: "7.0.5", Size: 1 << 30}}}
			// The first look is that for the key.
			b.add(testKey, downloading(1<<20, 3<<20), downloading(1<<20, 3<<20), finished())
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "state"))
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			e.Setenv("SLOTFETCH_BOX", b.address())
			e.Setenv("FINGERPRINT", b.fingerprint())
			e.Setenv("DIGEST", testDigest)
			return nil
		},
	})
}
