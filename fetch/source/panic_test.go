package source_test

import (
	"errors"
	"strings"
	"testing"

	"slotfetch/fetch/source"
)

func TestPanic(t *testing.T) {
	s := source.Panicking()
	_, err := s.Read(make([]byte, 1))
	for what, err := range map[string]error{"read": err, "close": s.Close()} {
		var e *source.Error
		var p *source.PanicError
		if !errors.As(err, &e) || e.Code != "malformed_answer" || !errors.As(err, &p) || !strings.Contains(p.Stack, "panic_test.go") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
