-- When a fetch may run, in which order, how fast; and where its digest is if the caller does not know it.

ALTER TABLE fetches ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;  -- a higher one goes first
ALTER TABLE fetches ADD COLUMN rank REAL;                            -- the order within a priority; null: seq
ALTER TABLE fetches ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;    -- by a user, until resumed
ALTER TABLE fetches ADD COLUMN not_before INTEGER;                   -- as asked for
ALTER TABLE fetches ADD COLUMN "window" TEXT;                        -- HH:MM-HH:MM, by the clock of the box
ALTER TABLE fetches ADD COLUMN eligible_at INTEGER;                  -- what not_before and window come to; null: now
ALTER TABLE fetches ADD COLUMN rate_limit INTEGER;                   -- bytes a second
ALTER TABLE fetches ADD COLUMN checksum_url TEXT;                    -- without userinfo

DROP INDEX fetches_queue;
CREATE INDEX fetches_queue ON fetches (priority DESC, coalesce(rank, seq)) WHERE status = 'queued' AND paused = 0;
