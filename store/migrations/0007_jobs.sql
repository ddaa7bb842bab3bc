-- What the ONTAP dialect has beside fetches: jobs of its own, digests that lie beside an image, and who cancelled.

CREATE TABLE jobs (
	seq         INTEGER PRIMARY KEY AUTOINCREMENT,
	id          TEXT    NOT NULL UNIQUE,                -- that of the upgrade, if it makes one
	description TEXT    NOT NULL,                       -- method and path
	state       TEXT    NOT NULL CHECK (state IN ('running', 'success', 'failure')),
	code        INTEGER NOT NULL DEFAULT 0,
	message     TEXT    NOT NULL,
	created_by  TEXT    NOT NULL,
	start_time  INTEGER NOT NULL,
	end_time    INTEGER,
	CHECK ((state = 'running') = (end_time IS NULL)),
	CHECK ((state = 'failure') = (code <> 0))
) STRICT;

ALTER TABLE fetches ADD COLUMN sidecar TEXT CHECK (sidecar IN ('required', 'optional')); -- look for a checksum file beside the image
ALTER TABLE fetches ADD COLUMN lone_version INTEGER NOT NULL DEFAULT 0;                  -- 1: no other slot may have the same version
ALTER TABLE fetches ADD COLUMN cancelled_by TEXT;
