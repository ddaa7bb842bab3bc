package ontap

import (
	"context"
	"testing"

	"slotfetch/store"
)

// handing is an update that is handed over from us to its row while somebody asks.
type handing struct {
	noUpdates
	s     *Server
	calls int
}

func (h *handing) List(context.Context) ([]store.Upgrade, error) {
	if h.calls++; h.calls == 1 { // it was asked just before
		h.s.leave("x", finding{results: []Validation{}})
		return nil, nil
	}
	return []store.Upgrade{{Status: store.UpgradeRequested, CreatedAt: t0}}, nil
}

// TestInProgress: at no moment between PATCH and reboot does the update look completed.
func TestInProgress(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	h := &handing{}
	b.cfg.Updates = h
	s := b.open(t)
	h.s = s
	check(t, s.enter(t.Context(), "x", true))
	for range 2 {
		sw, err := s.software(t.Context())
		check(t, err)
		if sw.State != updateInProgress || sw.EstimatedDuration == nil || *sw.EstimatedDuration < 1 {
			t.Errorf("%+v", sw)
		}
	}
}
