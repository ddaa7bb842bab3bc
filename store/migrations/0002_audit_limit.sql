-- The audit keeps its newest 100,000 rows: each login adds one, and a viewer may log in all day. What is older goes at
-- every 1,000th row, and nothing else can.

DROP TRIGGER events_no_delete;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events WHEN OLD.id > (SELECT max(id) FROM events) - 100000
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER events_limit AFTER INSERT ON events WHEN NEW.id % 1000 = 0
BEGIN DELETE FROM events WHERE id <= NEW.id - 100000; END;
