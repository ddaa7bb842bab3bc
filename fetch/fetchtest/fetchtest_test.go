package fetchtest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"os"
	"testing"
	"testing/iotest"
	"time"

	"slotfetch/fetch/fetchtest"
)

func TestImage(t *testing.T) {
	img := fetchtest.NewImage(3, 200_001)
	data := img.Bytes()
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != img.SHA256() {
		t.Error("SHA256 is not that of the bytes")
	}
	if err := iotest.TestReader(img.Reader(), data); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(data, fetchtest.NewImage(3, 200_001).Bytes()) {
		t.Error("the same seed gives other bytes")
	}
	if bytes.Equal(data[:1000], fetchtest.NewImage(4, 200_001).Bytes()[:1000]) {
		t.Error("another seed gives the same bytes")
	}
	if bytes.Equal(data[:65536], data[65536:131072]) {
		t.Error("two blocks are equal")
	}
	for _, off := range []int64{0, 1, 7, 8, 65535, 65536, 65540, 131071, 200_000} {
		p := make([]byte, 20)
		n, err := img.ReadAt(p, off)
		if !bytes.Equal(p[:n], data[off:min(off+20, 200_001)]) || (err == io.EOF) != (n < 20) {
			t.Errorf("ReadAt %d: %d bytes, %v", off, n, err)
		}
	}
	file, err := os.ReadFile(img.WriteFile(t, t.TempDir(), "x", time.Now()))
	if err != nil || !bytes.Equal(file, data) {
		t.Errorf("WriteFile: %v", err)
	}
}

// TestFile compares the good server with what net/http itself understands.
func TestFile(t *testing.T) {
	img := fetchtest.NewImage(3, 100_000)
	s := fetchtest.NewHTTP(t, nil)
	f := fetchtest.Whole(img)
	url := s.Handle("/x.iso", f.Serve)
	for _, tc := range []struct {
		name   string
		header map[string]string
		status int
		from   int64
	}{
		{"whole", nil, 200, 0},
		{"range", map[string]string{"Range": "bytes=1000-"}, 206, 1000},
		{"If-Range holds", map[string]string{"Range": "bytes=1000-", "If-Range": f.ETag}, 206, 1000},
		{"If-Range date holds", map[string]string{"Range": "bytes=1000-", "If-Range": f.Modified.Format(http.TimeFormat)}, 206, 1000},
		{"If-Range fails", map[string]string{"Range": "bytes=1000-", "If-Range": `"other"`}, 200, 0},
		{"past the end", map[string]string{"Range": "bytes=100000-"}, 416, 100_000},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range tc.header {
				r.Header.Set(k, v)
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != tc.status || !bytes.Equal(data, img.Bytes()[tc.from:]) {
				t.Errorf("status %d, %d bytes, %v", resp.StatusCode, len(data), err)
			}
			x := s.Next(t)
			fetchtest.Await(t, "the end of the connection", x.Closed)
			if x.Sent() != int64(len(data)) {
				t.Errorf("sent %d bytes", x.Sent())
			}
		})
	}
}
