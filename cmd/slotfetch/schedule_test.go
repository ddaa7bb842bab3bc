package main

import (
	"testing"
	"time"
)

func TestParseRate(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "1024": 1024, "500K": 500 << 10, "10M": 10 << 20, "1.5m": 3 << 19, "2MiB/s": 2 << 20, "0.5G": 1 << 29, "3MB": 3 << 20} {
		if got, err := parseRate(in); err != nil || got != want {
			t.Errorf("%s is %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "fast", "-1", "1K2", "10T", "1", "1023", "1G", "1e9", " 5M", "5 M"} {
		if got, err := parseRate(in); err == nil {
			t.Errorf("%q is %d", in, got)
		}
	}
}

func TestParseTime(t *testing.T) {
	zone := time.FixedZone("", 2*3600)
	local := time.Local
	time.Local = zone
	defer func() { time.Local = local }()
	now := time.Date(2026, 5, 4, 21, 30, 15, 0, zone)
	for in, want := range map[string]string{
		"": "", "22:00": "2026-05-04T22:00:00+02:00", "21:30": "2026-05-05T21:30:00+02:00", "+2h": "2026-05-04T23:30:15+02:00",
		"2026-12-31T23:00": "2026-12-31T23:00:00+02:00", "2026-12-31 23:00": "2026-12-31T23:00:00+02:00",
		"2026-12-31T23:00:00Z": "2026-12-31T23:00:00Z", "2026-12-31T23:00:00-05:00": "2026-12-31T23:00:00-05:00",
	} {
		if got, err := parseTime(in, now); err != nil || got != want {
			t.Errorf("%q is %s, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"soon", "25:00", "2026-13-01T00:00", "+", "2h", "1777900000"} {
		if got, err := parseTime(in, now); err == nil {
			t.Errorf("%q is %s", in, got)
		}
	}
}
