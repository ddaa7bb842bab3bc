package main

import (
	"testing"

	"slotfetch/api"
)

// TestDiagnosis: one sentence for each way in which a fetch can be.
func TestDiagnosis(t *testing.T) {
	num := func(n int64) *int64 { return &n }
	str := func(s string) *string { return &s }
	inProgress := func(phase string) api.FetchBody { return api.FetchBody{Status: "in-progress", Phase: &phase} }
	going := api.AttemptBody{URL: "https://h.example/x.iso", Address: str("10.0.0.7:443"), ConnectMS: num(1), TLSMS: num(2), FirstByteMS: num(3),
		BytesReceived: 9, BytesPerSecond: num(11 << 20), Connections: 1, Bottleneck: str("network")}
	with := func(change func(*api.AttemptBody)) []api.Attempt {
		b := going
		change(&b)
		return []api.Attempt{{Key: "1"}, {Key: "2", Body: b}}
	}
	ended := func(b *api.AttemptBody) { b.EndTime = str("2026-05-04T08:00:01+00:00") }
	waiting := inProgress("waiting")
	waiting.RetryReason, waiting.NextAttemptTime = str("The server answered 503 Service Unavailable."), str("2026-05-04T08:00:01+00:00")
	for _, tc := range []struct {
		want  string
		fetch api.FetchBody
		list  []api.Attempt
	}{
		{"The network is what limits it: 11.0 MiB/s from 10.0.0.7:443 over 1 connection.", inProgress("downloading"), with(func(*api.AttemptBody) {})},
		{"The disk is what limits it: 11.0 MiB/s from 10.0.0.7:443 over 4 connections.", inProgress("downloading"),
			with(func(b *api.AttemptBody) { b.Bottleneck, b.Connections = str("disk"), 4 })},
		{"Computing the digest is what limits it: 11.0 MiB/s from h.example through the proxy p:3128 over 1 connection.", inProgress("downloading"),
			with(func(b *api.AttemptBody) { b.Bottleneck, b.Proxy = str("hash"), str("p:3128") })},
		{"The rate limit is what limits it: 11.0 MiB/s from 10.0.0.7:443 over 1 connection.", inProgress("downloading"),
			with(func(b *api.AttemptBody) { b.Bottleneck = str("limit") })},
		{"It stands still: nothing comes from 10.0.0.7:443.", inProgress("downloading"), with(func(b *api.AttemptBody) { b.BytesPerSecond = num(0) })},
		{"It is connected to 10.0.0.7:443 and waits for the first byte.", inProgress("downloading"),
			with(func(b *api.AttemptBody) { b.BytesReceived, b.Bottleneck, b.FirstByteMS = 0, nil, nil })},
		{"It is connected to 10.0.0.7:443 and waits for TLS.", inProgress("downloading"),
			with(func(b *api.AttemptBody) { b.BytesReceived, b.Bottleneck, b.FirstByteMS, b.TLSMS = 0, nil, nil, nil })},
		{"It connects to 10.0.0.7:443.", inProgress("downloading"),
			with(func(b *api.AttemptBody) { b.BytesReceived, b.Bottleneck, b.ConnectMS = 0, nil, nil })},
		{"It has not reached h.example yet.", inProgress("downloading"),
			with(func(b *api.AttemptBody) { b.BytesReceived, b.Bottleneck, b.Address = 0, nil, nil })},
		{"The next attempt is about to begin.", inProgress("downloading"), with(ended)},
		{"The next attempt is about to begin.", inProgress("downloading"), nil},
		{"It waits: the server answered 503 Service Unavailable; next attempt at " + moment(waiting.NextAttemptTime) + ".", waiting, with(ended)},
		{"All bytes are here: it is verifying.", inProgress("verifying"), with(func(*api.AttemptBody) {})},
		{"The network was what limited it: 11.0 MiB/s from 10.0.0.7:443 over 1 connection.", api.FetchBody{Status: "finished"}, with(ended)},
		{"Reading the file was what limited it: 11.0 MiB/s from file:///mnt/x.iso.", api.FetchBody{Status: "finished"},
			with(func(b *api.AttemptBody) { ended(b); b.URL, b.Address, b.Connections = "file:///mnt/x.iso", nil, 0 })},
		{"It finished.", api.FetchBody{Status: "finished"}, nil},
		{"Nothing was downloaded: the slot had the image already.", api.FetchBody{Status: "finished", Deduplicated: true}, nil},
		{"It failed: SHA-256 mismatch.", api.FetchBody{Status: "failed", Error: str("SHA-256 mismatch.")}, with(ended)},
		{"It was cancelled.", api.FetchBody{Status: "cancelled"}, with(ended)},
		{"It is queued.", api.FetchBody{Status: "queued"}, nil},
		{"It is queued again: the agent was stopped.", api.FetchBody{Status: "queued"},
			with(func(b *api.AttemptBody) { ended(b); b.Error = str("The agent was stopped.") })},
	} {
		if got := diagnosis(tc.fetch, tc.list); got != tc.want {
			t.Errorf("got  %q\nwant %q", got, tc.want)
		}
	}
}

func TestTook(t *testing.T) {
	for ms, want := range map[int64]string{0: "0 ms", 999: "999 ms", 1000: "1.0 s", 61_250: "61.2 s"} {
		if got := took(&ms); got != want {
			t.Errorf("%d: %q, want %q", ms, got, want)
		}
	}
	if got := took(nil); got != "-" {
		t.Errorf("nothing is %q", got)
	}
}
