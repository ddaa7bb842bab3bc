package api

// This file holds the JSON shapes of the attempts of a fetch, which SPS does not have.

// Attempt is one attempt of a fetch, and one item of the list (then without meta.parent).
type Attempt struct {
	// Key is the number of the attempt, from 1.
	Key  string      `json:"key"`
	Body AttemptBody `json:"body"`
	Meta Meta        `json:"meta"`
}

// AttemptBody is what an attempt did and how it ended. All keys are always present; null is what is not known, or not yet.
type AttemptBody struct {
	// URL is what was asked for, RedirectedTo where the bytes come from; both without userinfo and query. RedirectedTo is
	// null without a redirect.
	URL          string  `json:"url"`
	RedirectedTo *string `json:"redirected_to"`
	// Proxy is host:port of the proxy that was used.
	Proxy *string `json:"proxy"`
	// Address is ip:port of what was connected to, the proxy if there is one.
	Address *string `json:"address"`
	// EndTime is null while the attempt runs.
	StartTime *string `json:"start_time"`
	EndTime   *string `json:"end_time"`
	// The next four are of the last server that was asked; null if not needed or not reached.
	DNSMS     *int64 `json:"dns_ms"`
	ConnectMS *int64 `json:"connect_ms"`
	TLSMS     *int64 `json:"tls_ms"`
	// FirstByteMS is from when the connection was there to the first byte of the answer.
	FirstByteMS *int64 `json:"first_byte_ms"`
	// ResumedFrom is the offset at which it went on; null if it got no stream.
	ResumedFrom   *int64 `json:"resumed_from"`
	BytesReceived int64  `json:"bytes_received"`
	// BytesPerSecond is the recent rate while it runs, then the average.
	BytesPerSecond *int64 `json:"bytes_per_second"`
	// Connections is how many it used at most at a time.
	Connections int  `json:"connections"`
	HTTPStatus  *int `json:"http_status"`
	// Error is one sentence on what it ended with, ErrorCode the same for scripts; both are null while it runs and if it
	// succeeded. ErrorClass is temporary, human or permanent, null also where somebody stopped it.
	Error      *string `json:"error"`
	ErrorCode  *string `json:"error_code"`
	ErrorClass *string `json:"error_class"`
	// Bottleneck is the stage that was at work for longest: network, hash, disk or limit; null while nothing was measured.
	Bottleneck *string `json:"bottleneck"`
	NetworkMS  int64   `json:"network_ms"`
	HashMS     int64   `json:"hash_ms"`
	DiskMS     int64   `json:"disk_ms"`
	LimitMS    int64   `json:"limit_ms"`
}

// AttemptList is all attempts of a fetch that are on record, oldest first.
type AttemptList struct {
	Items []Attempt `json:"items"`
	Meta  Meta      `json:"meta"`
}
