-- Which image ran before an upgrade: a way back leads to that one only, whatever its slot holds by then.

ALTER TABLE upgrades ADD COLUMN from_sha256 TEXT;
