package fetch_test

import (
	"crypto/tls"
	"net/url"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"slotfetch/fetch"
	"slotfetch/fetch/fetchtest"
	"slotfetch/fetch/source"
	"slotfetch/store"
)

var iso = fetchtest.NewImage(90, 2<<20)

// misbehave runs one fetch and looks at everything that it may leave behind.
func misbehave(t *testing.T, m fetchtest.Misbehaviour, conf *tls.Config) {
	t.Helper()
	cfg := source.Config{Egress: fetchtest.Loopback()}
	m.Configure(&cfg)
	u, cred, err := source.ParseURL(m.Serve(t, conf))
	if err != nil {
		t.Fatalf("ParseURL: expected %v", err)
	}
	client, err := source.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b := newBox(t, t.TempDir(), func(c *fetch.Config) {
		c.Source, c.Retry.Rounds, c.CheckpointBytes = client, fetchtest.Rounds, 1
	})
	accepted, err := b.fetch.Enqueue(fetch.Request{URL: u, SHA256: iso.SHA256(), Secrets: fetch.Secrets{URL: cred}}, admin)
	if err != nil {
		t.Fatal(err)
	}
	f := b.until(accepted.Key, final)
	ended := fetchtest.Ending{Finished: f.Status == store.Finished, Says: strings.ReplaceAll(f.Error, (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String(), "URL"),
		Attempts: f.Attempts, From: f.ResumedFrom}
	if m.Want.From < 0 {
		ended.From = m.Want.From
	}
	if ended != m.Want {
		t.Errorf("%s: got  %+v\nwant %+v", f.Status, ended, m.Want)
	}
	b.noPartials()
	list, err := b.slots.List()
	if err != nil || (list[0].Manifest != nil) != m.Want.Finished {
		t.Errorf("slot 1 is %+v, %v", list[0], err)
	}
	if m.Want.Finished {
		b.holds(*f.SlotID, iso.SHA256())
	}
}

// TestHTTPMisbehaviour has what HTTP servers do wrong, and what comes of the fetch: each by http and by https.
func TestHTTPMisbehaviour(t *testing.T) {
	testMisbehaviour(t, "http", fetchtest.HTTPMisbehaviour(iso))
}

// TestFTPMisbehaviour has what FTP servers do wrong, and what comes of the fetch: each by ftp and by ftps.
func TestFTPMisbehaviour(t *testing.T) {
	testMisbehaviour(t, "ftp", fetchtest.FTPMisbehaviour(iso))
}

func testMisbehaviour(t *testing.T, scheme string, all []fetchtest.Misbehaviour) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) }) // after boxes and servers are gone
	for _, m := range all {
		for scheme, conf := range map[string]*tls.Config{scheme: nil, scheme + "s": fetchtest.NewCA().TLS(fetchtest.Good)} {
			t.Run(scheme+" "+m.Name, func(t *testing.T) {
				t.Parallel()
				misbehave(t, m, conf)
			})
		}
	}
}
