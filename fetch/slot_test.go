package fetch_test

import (
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"slotfetch/fetch"
	"slotfetch/store"
)

// TestNoSlot has the words for why a fetch gets no slot.
func TestNoSlot(t *testing.T) {
	one, two := 1, 2
	for _, tt := range []struct {
		name, boot string
		want       *int
		code, says string
	}{
		{"current", `{"current":1,"after_reboot":2}`, &one, "slot_protected", "Slot 1 is the one that runs or boots next. Choose another or leave out slot_id."},
		{"next", `{"current":1,"after_reboot":2}`, &two, "slot_protected", "Slot 2 is the one that runs or boots next. Choose another or leave out slot_id."},
		{"unreadable", `{`, nil, "boot", "It is not known which slots must be kept: boot.json in the slots directory cannot be read. Repair or remove it and start again."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBox(t, t.TempDir(), nil)
			if err := os.WriteFile(filepath.Join(b.dir, "slots", "boot.json"), []byte(tt.boot), 0o600); err != nil {
				t.Fatal(err)
			}
			u, err := url.Parse("http://127.0.0.1:1/a.iso")
			if err != nil {
				t.Fatal(err)
			}
			f, err := b.fetch.Enqueue(fetch.Request{URL: u, SHA256: otherKey, Slot: tt.want}, admin)
			if err != nil {
				t.Fatal(err)
			}
			if f = b.until(f.Key, final); f.Status != store.Failed || f.ErrorCode != tt.code || f.Error != tt.says {
				t.Errorf("got %s %s %q", f.Status, f.ErrorCode, f.Error)
			}
		})
	}
}
