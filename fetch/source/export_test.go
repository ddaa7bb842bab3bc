package source

// For tests of what reads foreign bytes.
var (
	ContentRange    = contentRange
	AnnouncedSHA256 = announcedSHA256
	RetryAfter      = retryAfter
)
