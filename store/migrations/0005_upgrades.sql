-- What was activated, by whom, and what became of it. One at a time is under way.

CREATE TABLE upgrades (
	seq          INTEGER PRIMARY KEY AUTOINCREMENT,
	id           TEXT    NOT NULL UNIQUE,
	status       TEXT    NOT NULL CHECK (status IN ('requested', 'activated', 'booted', 'reverting', 'confirmed', 'failed')),
	request      TEXT    NOT NULL,                    -- the id of what the root side was asked last
	boot_id      TEXT    NOT NULL,                    -- the boot in which the status was reached
	from_slot    INTEGER,                             -- null: unknown
	from_version TEXT    NOT NULL,
	to_slot      INTEGER NOT NULL,
	to_version   TEXT    NOT NULL,
	sha256       TEXT    NOT NULL,
	message      TEXT    NOT NULL,
	reboot       TEXT    NOT NULL CHECK (reboot IN ('now', 'next', 'none')),
	rollback     INTEGER NOT NULL,                    -- 1: back to the slot before
	reason       TEXT,                                -- why it goes back, or failed
	created_by   TEXT    NOT NULL,
	created_at   INTEGER NOT NULL,
	end_time     INTEGER,
	CHECK ((status IN ('confirmed', 'failed')) = (end_time IS NOT NULL)),
	CHECK (status NOT IN ('reverting', 'failed') OR reason IS NOT NULL)
) STRICT;

CREATE UNIQUE INDEX upgrades_live ON upgrades (end_time IS NULL) WHERE end_time IS NULL;
