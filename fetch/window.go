package fetch

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// Window is a part of each day, by the clock and time zone of the box. The zero value is the whole day.
type Window struct {
	from, to time.Duration // since midnight; to may be less than from: on the next day
}

// ParseWindow reads "22:00-04:30". The end is not part of it, and 24:00 is a possible end. Empty means the whole day.
func ParseWindow(s string) (Window, error) {
	if s == "" {
		return Window{}, nil
	}
	var n [4]int
	if !windowForm.MatchString(s) {
		return Window{}, errWindow
	}
	for i := range n {
		n[i], _ = strconv.Atoi(s[3*i : 3*i+2])
	}
	w := Window{clock(n[0], n[1]), clock(n[2], n[3])}
	if n[1] > 59 || n[3] > 59 || w.from >= 24*time.Hour || w.to > 24*time.Hour || w.from == w.to {
		return Window{}, errWindow
	}
	return w, nil
}

var (
	windowForm = regexp.MustCompile(`^\d\d:\d\d-\d\d:\d\d$`)
	errWindow  = errors.New("it is no daily window such as 22:00-04:00")
)

func clock(hours, minutes int) time.Duration {
	return time.Duration(hours)*time.Hour + time.Duration(minutes)*time.Minute
}

// String gives the form that ParseWindow reads.
func (w Window) String() string {
	if w == (Window{}) {
		return ""
	}
	at := func(d time.Duration) string { return fmt.Sprintf("%02d:%02d", d/time.Hour, d%time.Hour/time.Minute) }
	return at(w.from) + "-" + at(w.to)
}

// at tells whether the window is open at t, and when that changes; never (the zero time) for the whole day. Where the
// clock is set forward or back for summer time, the window follows what the clock shows; what it shows twice is the first time.
func (w Window) at(t time.Time) (open bool, change time.Time) {
	if w == (Window{}) {
		return true, time.Time{}
	}
	for day := -1; ; day++ {
		begin, end := w.on(t, day)
		if !begin.Before(end) {
			continue // the clock is set forward over it
		}
		if t.Before(begin) {
			return false, begin
		}
		if t.Before(end) {
			return true, end
		}
	}
}

// on is the window that begins so many days after the day of t.
func (w Window) on(t time.Time, days int) (begin, end time.Time) {
	y, m, d := t.Date()
	moment := func(days int, since time.Duration) time.Time {
		return earliest(time.Date(y, m, d+days, int(since/time.Hour), int(since%time.Hour/time.Minute), 0, 0, t.Location()))
	}
	after := days
	if w.to <= w.from {
		after++
	}
	return moment(days, w.from), moment(after, w.to)
}

// earliest is the first of the two moments at which the clock shows what it shows at t, where it is set back in between. Time.Date
// gives either.
func earliest(t time.Time) time.Time {
	_, now := t.Zone()
	_, before := t.Add(-12 * time.Hour).Zone()
	if earlier := t.Add(time.Duration(now-before) * time.Second); now < before && earlier.Hour() == t.Hour() && earlier.Minute() == t.Minute() {
		return earlier
	}
	return t
}
