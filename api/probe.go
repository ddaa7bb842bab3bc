package api

// This file holds the JSON shapes of the look before a fetch: POST /api/firmware/fetch?dry_run=true.

// Probe answers a dry run.
type Probe struct {
	Body ProbeBody `json:"body"`
	Meta Meta      `json:"meta"`
}

// ProbeBody says whether the fetch would work now, and why not. All keys are always present.
type ProbeBody struct {
	// Verdict is ok, warning or fail. With mirrors, a place that fails is only a warning if another does not.
	Verdict string `json:"verdict"`
	// URL is the one posted, without userinfo.
	URL string `json:"url"`
	// SlotID is the slot that would be used, null if none could be.
	SlotID *int `json:"slot_id"`
	// Size is that of the image in bytes, null if unknown.
	Size *int64 `json:"size"`
	// Free is how many bytes the slots may still take, null if unknown.
	Free *int64 `json:"free"`
	// BytesPerSecond is of a sample, ETASeconds what the whole would take at that rate; null if unknown.
	BytesPerSecond *int64 `json:"bytes_per_second"`
	ETASeconds     *int64 `json:"eta_seconds"`
	// Deduplicated tells that a slot has the image already, so that nothing would be downloaded.
	Deduplicated bool `json:"deduplicated"`
	// Checks are those of the box and the URL in the order of the work, then those of each mirror.
	Checks []ProbeCheck `json:"checks"`
}

// ProbeCheck is one thing that was looked at.
type ProbeCheck struct {
	// Name and Code are for scripts. Code is null unless there is a warning or a failure.
	Name string `json:"name"`
	// Result is ok, warning, fail or skipped.
	Result string  `json:"result"`
	Code   *string `json:"code"`
	// Message is one sentence, Remedy what to do about a warning or a failure, else null.
	Message string  `json:"message"`
	Remedy  *string `json:"remedy"`
	// URL is what was looked at, without userinfo and query; null for what is about the box.
	URL *string `json:"url"`
}
