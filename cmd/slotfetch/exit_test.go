package main

import (
	"errors"
	"testing"
)

func TestCodeOfError(t *testing.T) {
	for sentence, want := range map[string]int{
		"SHA-256 mismatch: expected 5d41…, got 91ab…. The file was discarded.": exitIntegrity,
		"SHA-512 mismatch: expected 5d41…, got 91ab…. The file was discarded.": exitIntegrity,
		"No empty firmware slot: all 5 are occupied.":                          exitNoSpace,
		"Not enough space: needs 3 GiB, free are 2 GiB.":                       exitNoSpace,
		"Slot 3 is occupied. Delete it or leave out slot_id.":                  exitNoSpace,
		"Slot 12 is occupied.": exitNoSpace,
		"Slot x is occupied.":  exitFailed,
		"The server answered 404 Not Found for https://h/Slot 3 is occupied.": exitFailed,
		"The server answered 404 Not Found for https://h/SHA-256 mismatch.":   exitFailed,
		"The certificate of example.com could not be verified.":               exitFailed,
		"": exitFailed,
	} {
		if got := codeOfError(sentence); got != want {
			t.Errorf("%q: %d, want %d", sentence, got, want)
		}
	}
}

func TestCodeOfStatus(t *testing.T) {
	for status, want := range map[int]int{
		400: exitUsage, 401: exitAuth, 403: exitAuth, 404: exitNotFound, 405: exitFailed, 409: exitConflict, 413: exitUsage,
		500: exitFailed, 502: exitNetwork, 503: exitNetwork, 504: exitNetwork, 507: exitNoSpace,
	} {
		if got := codeOfStatus(status); got != want {
			t.Errorf("%d: %d, want %d", status, got, want)
		}
	}
}

func TestErrorForms(t *testing.T) {
	home(t)
	r := invoke(t, "", "ls", "-H", "http://lab1").want(t, exitUsage)
	if want := "slotfetch: bad box \"http://lab1\": a box speaks https only\nhint: Write HOST, HOST:PORT, https://HOST[:PORT] or unix:///PATH.\n"; r.stderr != want {
		t.Errorf("stderr %q", r.stderr)
	}
	r = invoke(t, "", "ls", "-H", "http://lab1", "-o", "json").want(t, exitUsage)
	want := `{"code":2,"error":{"type":"Usage","message":"bad box \"http://lab1\": a box speaks https only","details":{}},"hint":"Write HOST, HOST:PORT, https://HOST[:PORT] or unix:///PATH."}` + "\n"
	if r.stderr != want || r.stdout != "" {
		t.Errorf("stderr %q\nwant   %q\nstdout %q", r.stderr, want, r.stdout)
	}
	invoke(t, "", "bogus").want(t, exitUsage, "unknown command")
	invoke(t, "", "ls", "too", "many").want(t, exitUsage)
	invoke(t, "").want(t, exitOK)
}

func TestEach(t *testing.T) {
	a := &app{stderr: discard{}}
	var seen []string
	err := a.each([]string{"a", "b", "c", "d"}, func(key string) error {
		seen = append(seen, key)
		switch key {
		case "a":
			return &failure{code: exitConflict, message: key}
		case "b":
			return errors.New("plain")
		case "c":
			return &failure{code: exitNetwork, message: key}
		}
		return nil
	})
	if f := asFailure(err); f.code != exitConflict || !f.printed || len(seen) != 3 {
		t.Errorf("%+v after %v", f, seen)
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
