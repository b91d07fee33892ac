-- Who serves the database: a row per running gateway is its lease and its acknowledgement. Times are of the
-- engine's lease clock, in seconds.
CREATE TABLE ice_nodes (
    instance TEXT PRIMARY KEY NOT NULL, -- another with each start
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    keys TEXT NOT NULL, -- which token keys it has
    url TEXT NOT NULL,
    since TEXT NOT NULL,
    lease_until REAL NOT NULL, -- before then it may hold sessions that nobody else knows of
    seen_seq INTEGER NOT NULL, -- the last event that it has acted on
    draining INTEGER NOT NULL CHECK (draining IN (0, 1)) -- an admin wants it to admit nobody
) STRICT;

-- What a node has dropped because of an event that another's admin waits for.
CREATE TABLE ice_drops (
    session TEXT PRIMARY KEY NOT NULL,
    seq INTEGER NOT NULL,
    node TEXT NOT NULL,
    ice_name TEXT NOT NULL,
    code INTEGER NOT NULL,
    at REAL NOT NULL
) STRICT;

CREATE INDEX ice_drops_seq ON ice_drops (seq);

-- The proofs that were used, for as long as they are good: each is good once, on whichever node.
CREATE TABLE ice_proofs (
    digest TEXT PRIMARY KEY NOT NULL,
    until REAL NOT NULL
) STRICT;

CREATE INDEX ice_proofs_until ON ice_proofs (until);

-- When the entry behind a session was read, by the lease clock: of two sessions of an ICE the later stays.
ALTER TABLE ice_sessions ADD COLUMN opened REAL NOT NULL DEFAULT 0;
