-- Which ended fetches are the oldest, and what proves an image that comes with a signed manifest.

CREATE INDEX fetches_ended ON fetches (end_time, seq) WHERE status IN ('finished', 'failed', 'cancelled');

ALTER TABLE fetches ADD COLUMN signature TEXT;                       -- JSON: the signed manifest and its minisig
