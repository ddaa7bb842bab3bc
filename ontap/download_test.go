package ontap

import (
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"slotfetch/store"
)

// ask asks for a download, and gives the code of the refusal.
func ask(s *Server) string {
	body := fmt.Sprintf(`{"url":"http://127.0.0.1:1/x","checksum":{"sha256":%q}}`, strings.Repeat("0", 64))
	_, err := s.postDownload(httptest.NewRequest(http.MethodPost, downloadPath, strings.NewReader(body)))
	return refusal(err)
}

// TestUnreadable: while nobody can tell whether a download may begin, that is the answer.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	for _, table := range []string{"upgrades", "fetches"} {
		b := newBox(t)
		s := b.open(t)
		db, err := sql.Open("sqlite3", "file:"+b.database+"?_busy_timeout=10000")
		check(t, err)
		_, err = db.Exec("ALTER TABLE " + table + " RENAME TO elsewhere")
		check(t, err)
		if got := ask(s); got != "10551797" {
			t.Errorf("without %s: %s", table, got)
		}
		_, err = db.Exec("ALTER TABLE elsewhere RENAME TO " + table)
		check(t, errors.Join(err, db.Close()))
	}
}

// TestOrderOfRefusals: an update in progress is told before that nothing is taken here at all.
func TestOrderOfRefusals(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.cfg.ReadOnly = true
	s := b.open(t)
	if got := ask(s); got != "10551798" {
		t.Error(got)
	}
	check(t, b.cfg.Store.AddUpgrade(store.Upgrade{ID: "u", Request: "r", BootID: "b", To: 1, Reboot: "now"}, ann))
	if got := ask(s); got != "10551357" {
		t.Error(got)
	}
}
