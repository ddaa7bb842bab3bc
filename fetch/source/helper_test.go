package source_test

import (
	"context"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

const kib = 1024

// image is what most tests fetch.
var image = fetchtest.NewImage(7, 64*kib)

// quick is a configuration whose limits a test can wait for where stall is what it waits for.
func quick(stall time.Duration) source.Config {
	return source.Config{Egress: fetchtest.Loopback(), ConnectTimeout: stall, HandshakeTimeout: stall, HeaderTimeout: stall, IdleTimeout: stall}
}

// patient is for everything else.
func patient() source.Config { return quick(fetchtest.Patience) }

// outcome is what came of an attempt. Addresses in Message are replaced by words, so that it can be compared.
type outcome struct {
	Class   source.Class
	Code    string
	Message string

	// Head: the bytes are what the image begins with at Offset. Whole: they are all of it from there.
	Bytes       int64
	Offset      int64
	Head, Whole bool
}

// good is the outcome of a whole image.
func good(img *fetchtest.Image) outcome {
	return outcome{Bytes: img.Size(), Head: true, Whole: true}
}

func failure(class source.Class, code, message string) outcome {
	return outcome{Class: class, Code: code, Message: message}
}

// after is failure after n good bytes.
func after(n int64, o outcome) outcome {
	o.Bytes, o.Head = n, n > 0
	return o
}

func parse(t testing.TB, raw string) *url.URL {
	t.Helper()
	u, _, err := source.ParseURL(raw)
	if err != nil {
		t.Fatalf("ParseURL: expected %v", err)
	}
	return u
}

func client(t testing.TB, cfg source.Config) *source.Client {
	t.Helper()
	c, err := source.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// attempt opens req and reads all of it.
func attempt(t testing.TB, cfg source.Config, req source.Request, img *fetchtest.Image, offset int64, v source.Validator) (outcome, source.Validator) {
	t.Helper()
	var o outcome
	var got source.Validator
	ctx, cancel := context.WithTimeout(t.Context(), 2*fetchtest.Patience) // for code that hangs
	defer cancel()
	s, err := client(t, cfg).Open(ctx, req, offset, v)
	if err == nil {
		var data []byte
		data, err = io.ReadAll(s)
		if cerr := s.Close(); err == nil {
			err = cerr
		}
		o.Bytes, o.Offset, got = int64(len(data)), s.Offset, s.Validator
		want := img.Bytes()[s.Offset:]
		o.Head = len(data) > 0 && strings.HasPrefix(string(want), string(data))
		o.Whole = err == nil && string(want) == string(data)
	}
	if err != nil {
		var e *source.Error
		if !errors.As(err, &e) {
			t.Fatalf("%T %v is no *source.Error", err, err)
		}
		if t.Failed() || testing.Verbose() {
			t.Logf("cause: %v", e.Err)
		}
		o.Class, o.Code = e.Class, e.Code
		o.Message = e.Error()
		if u := req.URL; u.Host != "" {
			o.Message = strings.NewReplacer(u.Host, "HOST", u.Hostname(), "NAME").Replace(e.Error())
		}
	}
	return o, got
}

func wantOutcome(t testing.TB, want, got outcome) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("outcome (-want +got):\n%s", d)
	}
}

func credentials() *source.Credentials {
	return &source.Credentials{Username: "admin", Password: "s3cret"}
}
