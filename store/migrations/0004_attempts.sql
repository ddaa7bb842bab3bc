-- What each attempt of a fetch did and how it ended. Durations are milliseconds.

CREATE TABLE attempts (
	fetch          TEXT    NOT NULL REFERENCES fetches (key) ON DELETE CASCADE,
	number         INTEGER NOT NULL,                 -- as counted by the fetch
	url            TEXT    NOT NULL,                 -- redacted: no userinfo, no query
	redirected_to  TEXT,                             -- the same; where the bytes came from
	proxy          TEXT,                             -- host:port
	address        TEXT,                             -- ip:port that was dialled
	started        INTEGER NOT NULL,
	ended          INTEGER NOT NULL,
	dns            INTEGER,                          -- these four: null if not needed or not reached
	connect        INTEGER,
	tls            INTEGER,
	first_byte     INTEGER,
	resumed_from   INTEGER,                          -- null: there was no stream
	bytes_received INTEGER NOT NULL,
	connections    INTEGER NOT NULL,                 -- at most at a time
	http_status    INTEGER,
	error_code     TEXT,                             -- null: it succeeded
	error_class    TEXT,                             -- null: nothing was wrong with the source or the box
	error          TEXT,
	bottleneck     TEXT    CHECK (bottleneck IN ('network', 'hash', 'disk', 'limit')),
	network        INTEGER NOT NULL,                 -- how long the stages had to do
	hash           INTEGER NOT NULL,
	disk           INTEGER NOT NULL,
	"limit"        INTEGER NOT NULL,
	PRIMARY KEY (fetch, number),
	CHECK ((error_code IS NULL) = (error IS NULL))
) STRICT, WITHOUT ROWID;
