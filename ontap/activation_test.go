package ontap

import (
	"testing"
	"time"

	"slotfetch/store"
)

// TestActivationEnds: the job of an activation ended when the boot loader knew, whenever somebody looks; and it does so though
// nobody looks.
func TestActivationEnds(t *testing.T) {
	t.Parallel()
	for how, look := range map[string]func(*testing.T, *box, *Server, string){
		"one": func(t *testing.T, b *box, s *Server, id string) {
			j, err := get(t, s, id)
			check(t, err)
			if j.State != stateSuccess || *j.EndTime != "2026-05-04T08:01:00+00:00" {
				t.Errorf("%+v", j)
			}
		},
		"another job": func(t *testing.T, b *box, s *Server, id string) {
			_, err := s.done("POST "+uploadPath, 0, "success", ann)
			check(t, err)
		},
		"a start": func(t *testing.T, b *box, s *Server, id string) { b.open(t) },
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			b := newBox(t)
			s := b.open(t)
			const id = "66666666-6666-4666-8666-666666666666"
			_, err := s.add(store.Job{ID: id, Description: describeUpdate, State: store.JobRunning, Message: "Testing"}, ann)
			check(t, err)
			s.mu.Lock()
			delete(s.ours, id) // its work is done
			s.mu.Unlock()
			u := store.Upgrade{ID: id, Request: "r", BootID: "b", To: 1, Reboot: "now"}
			check(t, b.cfg.Store.AddUpgrade(u, ann))
			b.set(t0.Add(time.Minute))
			u.Status = store.UpgradeActivated
			check(t, b.cfg.Store.MoveUpgrade(u, store.UpgradeRequested, ann))
			b.set(t0.Add(time.Hour))
			look(t, b, s, id)
			eventually(t, "its end is stored", func() bool { return b.stored(t, id) == store.JobSuccess })
			row, err := b.cfg.Store.Job(t.Context(), id)
			check(t, err)
			if want := t0.Add(time.Minute); !row.EndTime.Equal(want) {
				t.Errorf("it ended at %s, not at %s", row.EndTime, want)
			}
		})
	}
}
