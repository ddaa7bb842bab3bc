-- The queue, who may use it, and who did what. Moments are unix milliseconds.

CREATE TABLE fetches (
	seq              INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of claims
	key              TEXT    NOT NULL UNIQUE,
	status           TEXT    NOT NULL CHECK (status IN ('queued', 'in-progress', 'finished', 'failed', 'cancelled')),
	phase            TEXT    CHECK (phase IN ('downloading', 'waiting', 'verifying', 'installing')),
	cancel_requested INTEGER NOT NULL DEFAULT 0,

	-- what was asked for
	url              TEXT    NOT NULL,                  -- without userinfo
	mirrors          TEXT    NOT NULL DEFAULT '[]',     -- JSON array of the same
	sha256           TEXT,
	sha512           TEXT,
	want_slot        INTEGER,
	tls_verify       INTEGER,                           -- null: auto
	tls_ca           TEXT,
	force            INTEGER NOT NULL DEFAULT 0,        -- download though a slot has the image
	idem_key         TEXT,                              -- the caller's own key for the request
	idem_hash        BLOB,                              -- of the request, keyed
	secrets          BLOB,                              -- sealed; null once final
	created_by       TEXT    NOT NULL,
	created_at       INTEGER NOT NULL,

	-- how it goes
	start_time       INTEGER,
	end_time         INTEGER,
	attempts         INTEGER NOT NULL DEFAULT 0,
	bytes_downloaded INTEGER NOT NULL DEFAULT 0,
	bytes_total      INTEGER NOT NULL DEFAULT 0,
	bytes_received   INTEGER NOT NULL DEFAULT 0,        -- by all attempts before the one that runs
	resumed_from     INTEGER NOT NULL DEFAULT 0,        -- where the last attempt began
	bytes_per_second INTEGER,
	tls_verified     INTEGER,
	slot_id          INTEGER,
	deduplicated     INTEGER NOT NULL DEFAULT 0,        -- 1: the slot had the image already
	error_code       TEXT,
	error            TEXT,

	-- the checkpoint: written after the partial is durable up to cp_offset
	cp_offset        INTEGER NOT NULL DEFAULT 0,
	cp_state         BLOB,                              -- of the hash
	cp_validator     TEXT,                              -- JSON, of the source
	cp_source        TEXT,                              -- which of the URLs
	cp_clean         INTEGER NOT NULL DEFAULT 0,        -- 1: the agent stopped in order after writing it

	CHECK ((status = 'in-progress') = (phase IS NOT NULL)),
	CHECK (status NOT IN ('finished', 'failed', 'cancelled') OR (end_time IS NOT NULL AND secrets IS NULL)),
	CHECK ((status = 'failed') = (error IS NOT NULL)),
	CHECK ((status = 'finished') = (slot_id IS NOT NULL))
) STRICT;

CREATE INDEX fetches_queue ON fetches (seq) WHERE status = 'queued';
CREATE UNIQUE INDEX fetches_idem ON fetches (created_by, idem_key) WHERE idem_key IS NOT NULL;
CREATE INDEX fetches_live ON fetches (seq) WHERE status = 'in-progress';

CREATE TABLE users (
	name          TEXT    PRIMARY KEY,
	password_hash TEXT    NOT NULL,                     -- argon2id, PHC string
	role          TEXT    NOT NULL CHECK (role IN ('admin', 'operator', 'viewer')),
	disabled      INTEGER NOT NULL DEFAULT 0,
	created_at    INTEGER NOT NULL,
	changed_at    INTEGER NOT NULL
) STRICT;

CREATE TABLE sessions (
	token_hash BLOB    PRIMARY KEY,                     -- SHA-256 of the token
	user       TEXT    NOT NULL REFERENCES users (name) ON DELETE CASCADE,
	created_at INTEGER NOT NULL,
	last_seen  INTEGER NOT NULL,
	address    TEXT    NOT NULL,
	agent      TEXT    NOT NULL
) STRICT;

CREATE INDEX sessions_user ON sessions (user, last_seen);

-- The audit: rows are added and never changed.
CREATE TABLE events (
	id      INTEGER PRIMARY KEY AUTOINCREMENT,
	at      INTEGER NOT NULL,
	actor   TEXT    NOT NULL,
	address TEXT    NOT NULL,
	action  TEXT    NOT NULL,
	object  TEXT    NOT NULL,
	detail  TEXT    NOT NULL DEFAULT ''
) STRICT;

CREATE TRIGGER events_no_update BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
-- REPLACE deletes without the trigger above. (A new row has no id yet here, so it is -1.)
CREATE TRIGGER events_no_replace BEFORE INSERT ON events WHEN EXISTS (SELECT 1 FROM events WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
