package source_test

import (
	"os"
	"path/filepath"
	"testing"

	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
)

// TestEnd has sources that send more, or less, than they announced: no more than that is ever read. FTP has its own words
// for it, in ftp_test.go.
func TestEnd(t *testing.T) {
	const over = "Longer than announced: the server sent more than 65536 bytes."
	half := image.Bytes()[32*kib:]
	part := func(body string) fetchtest.Handler {
		return fetchtest.Raw("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 32768-65535/65536\r\nETag: \"x\"\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
	}
	for _, tt := range []struct {
		name   string
		serve  fetchtest.Handler
		offset int64
		max    int64
		want   outcome
	}{
		{"a part and more", func(x *fetchtest.Exchange) {
			part("8000\r\n" + string(half) + "\r\n")(x)
			fetchtest.Flood("", "4\r\nmore\r\n")(x)
		}, 32 * kib, 0, outcome{Class: source.Permanent, Code: "too_long", Message: over, Bytes: 32 * kib, Offset: 32 * kib, Head: true}},
		{"a part that ends early, in order", part("1000\r\n" + string(half[:4096]) + "\r\n0\r\n\r\n"), 32 * kib, 0,
			outcome{Class: source.Temporary, Code: "broken", Message: "The connection broke.", Bytes: 4096, Offset: 32 * kib, Head: true}},
		{"a whole part", part("8000\r\n" + string(half) + "\r\n0\r\n\r\n"), 32 * kib, 0, outcome{Bytes: 32 * kib, Offset: 32 * kib, Head: true, Whole: true}},
		{"as large as allowed", fetchtest.Whole(image).Serve, 0, 64 * kib, good(image)},
		{"larger than allowed", fetchtest.Whole(image).Serve, 0, 64*kib - 1,
			failure(source.Human, "too_large", "The image has 65536 bytes; fetch.max_size allows 65535. Raise fetch.max_size in the agent's configuration if it should be allowed.")},
		{"of unknown length, as large as allowed", fetchtest.File{Image: image, Chunked: true}.Serve, 0, 64 * kib, good(image)},
		{"of unknown length, larger than allowed", fetchtest.Flood("HTTP/1.0 200 OK\r\n\r\n"+string(image.Bytes()), "more"), 0, 64 * kib,
			after(64*kib, failure(source.Human, "too_large", "The image has more bytes; fetch.max_size allows 65536. Raise fetch.max_size in the agent's configuration if it should be allowed."))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := patient()
			cfg.MaxSize = tt.max
			raw := fetchtest.NewHTTP(t, nil).Handle("/a.iso", tt.serve)
			got, _ := attempt(t, cfg, source.Request{URL: parse(t, raw)}, image, tt.offset, source.Validator{ETag: `"x"`, Size: 64 * kib})
			wantOutcome(t, tt.want, got)
		})
	}
	t.Run("a file that grows", func(t *testing.T) {
		dir := t.TempDir()
		name := filepath.Join(dir, "a.iso")
		if err := os.WriteFile(name, image.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg := patient()
		cfg.FileRoots = []string{dir}
		s, err := client(t, cfg).Open(t.Context(), source.Request{URL: parse(t, "file://"+name)}, 0, source.Validator{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := os.WriteFile(name, append(image.Bytes(), "more"...), 0o600); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 128*kib)
		if n, err := s.Read(buf); n != 64*kib || err != nil {
			t.Errorf("read %d, %v", n, err)
		}
		if n, err := s.Read(buf); n != 0 || err == nil || err.Error() != over {
			t.Errorf("read %d, %v", n, err)
		}
	})
}
