package source

// For tests of what reads foreign bytes.
var (
	ContentRange = contentRange
	RetryAfter   = retryAfter
)
