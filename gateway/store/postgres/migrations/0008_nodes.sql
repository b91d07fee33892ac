-- Who serves the database: a row per running gateway is its lease and its acknowledgement. Times are of the
-- lease clock, in seconds.
CREATE TABLE ice_nodes (
    instance TEXT COLLATE "C" PRIMARY KEY NOT NULL, -- another with each start
    name TEXT COLLATE "C" NOT NULL,
    version TEXT COLLATE "C" NOT NULL,
    keys TEXT COLLATE "C" NOT NULL, -- which token keys it has
    url TEXT COLLATE "C" NOT NULL,
    since TEXT COLLATE "C" NOT NULL,
    lease_until DOUBLE PRECISION NOT NULL, -- before then it may hold sessions that nobody else knows of
    seen_seq BIGINT NOT NULL, -- the last event that it has acted on
    draining BIGINT NOT NULL CHECK (draining IN (0, 1)) -- an admin wants it to admit nobody
);

-- What a node has dropped because of an event that another's admin waits for; nothing after a crash.
CREATE UNLOGGED TABLE ice_drops (
    session TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    seq BIGINT NOT NULL,
    node TEXT COLLATE "C" NOT NULL,
    ice_name TEXT COLLATE "C" NOT NULL,
    code BIGINT NOT NULL,
    at DOUBLE PRECISION NOT NULL
);

CREATE INDEX ice_drops_seq ON ice_drops (seq);

-- The proofs that were used, for as long as they are good: each is good once, on whichever node.
CREATE TABLE ice_proofs (
    digest TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    until DOUBLE PRECISION NOT NULL
);

CREATE INDEX ice_proofs_until ON ice_proofs (until);

-- When the entry behind a session was read, by the lease clock: of two sessions of an ICE the later stays.
ALTER TABLE ice_sessions ADD COLUMN opened DOUBLE PRECISION NOT NULL DEFAULT 0;

-- The clock by which nodes judge each other's leases: the server's.
CREATE FUNCTION lease_clock() RETURNS double precision LANGUAGE sql VOLATILE AS $$
    SELECT extract(epoch FROM clock_timestamp())::double precision
$$;
