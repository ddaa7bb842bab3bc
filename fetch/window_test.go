package fetch

import (
	"testing"
	"time"
	_ "time/tzdata"
)

func TestWindow(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		window, now string
		open        bool
		change      string
	}{
		{"", "2026-05-04 12:00", true, ""},
		{"22:00-04:00", "2026-05-04 12:00", false, "2026-05-04T22:00:00+02:00"},
		{"22:00-04:00", "2026-05-04 22:00", true, "2026-05-05T04:00:00+02:00"},
		{"22:00-04:00", "2026-05-05 03:59", true, "2026-05-05T04:00:00+02:00"},
		{"22:00-04:00", "2026-05-05 04:00", false, "2026-05-05T22:00:00+02:00"},
		{"00:00-24:00", "2026-05-05 23:59", true, "2026-05-06T00:00:00+02:00"},
		{"08:00-09:30", "2026-12-31 09:30", false, "2027-01-01T08:00:00+01:00"},
		{"22:00-04:00", "2026-03-28 23:00", true, "2026-03-29T04:00:00+02:00"}, // an hour short
		{"22:00-04:00", "2026-10-24 23:00", true, "2026-10-25T04:00:00+01:00"}, // an hour long
		{"00:00-02:00", "2026-10-25 01:00", true, "2026-10-25T02:00:00+02:00"}, // which comes again an hour later
		{"00:00-02:30", "2026-10-25 01:00", true, "2026-10-25T02:30:00+02:00"},
		{"02:30-06:00", "2026-10-25 01:00", false, "2026-10-25T02:30:00+02:00"},
		{"10:00-11:00", "2026-10-25 01:00", false, "2026-10-25T10:00:00+01:00"},
	} {
		w, err := ParseWindow(tt.window)
		if err != nil || w.String() != tt.window {
			t.Errorf("%s is %q, %v", tt.window, w, err)
		}
		now, err := time.ParseInLocation("2006-01-02 15:04", tt.now, berlin)
		if err != nil {
			t.Fatal(err)
		}
		open, at := w.at(now)
		change := ""
		if !at.IsZero() {
			change = at.Format(time.RFC3339)
		}
		if open != tt.open || change != tt.change {
			t.Errorf("%s at %s is %v until %s", tt.window, tt.now, open, change)
		}
	}
	for _, bad := range []string{"22:00", "22:00-22:00", "24:00-01:00", "1:00-2:00", "00:60-01:00", "00:00-24:01", "22:00-04:00 ", "-1:00-02:00", "aa:bb-cc:dd"} {
		if w, err := ParseWindow(bad); err == nil {
			t.Errorf("%q is %v", bad, w)
		}
	}
}
