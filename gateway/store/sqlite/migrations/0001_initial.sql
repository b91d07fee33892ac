-- The rules of gateway/ice.py stand here again as CHECKs: a row that breaks them cannot be written.

CREATE TABLE users (
    name TEXT PRIMARY KEY NOT NULL,
    name_folded TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('admin', 'auditor', 'member')),
    password_hash TEXT, -- NULL: only there to be tagged
    createdon TEXT NOT NULL,
    disabledon TEXT
) STRICT;

CREATE TABLE api_tokens (
    id TEXT PRIMARY KEY NOT NULL,
    user_name TEXT NOT NULL REFERENCES users (name),
    label TEXT NOT NULL,
    token_hash TEXT NOT NULL UNIQUE, -- SHA-256 of a random text of 256 bits
    createdon TEXT NOT NULL,
    expireson TEXT,
    revokedon TEXT
) STRICT;

CREATE TABLE ice_tokens (
    ice_name TEXT PRIMARY KEY NOT NULL,
    ice_type TEXT NOT NULL CHECK (ice_type IN ('normal', 'ci-cd')),
    ice_token TEXT NOT NULL UNIQUE, -- SHA-256 of the token's text, never the token
    status TEXT NOT NULL CHECK (status IN ('provisioned', 'registered', 'deregistered')),
    provisionedto TEXT REFERENCES users (name),
    generation INTEGER NOT NULL CHECK (generation >= 1),
    key_thumbprint TEXT,
    provisionedon TEXT NOT NULL,
    registeredon TEXT,
    deregisteredon TEXT,
    expireson TEXT,
    lastseen TEXT, -- when a session last began or ended
    CHECK ((provisionedto IS NULL) = (ice_type = 'ci-cd')),
    CHECK ((key_thumbprint IS NOT NULL) = (status = 'registered')),
    CHECK ((deregisteredon IS NOT NULL) = (status = 'deregistered')),
    CHECK (expireson IS NULL OR status = 'provisioned')
) STRICT;

CREATE UNIQUE INDEX ice_tokens_name_folded ON ice_tokens (lower(ice_name));
CREATE INDEX ice_tokens_provisionedto ON ice_tokens (provisionedto);

-- The audit log: numbered without gaps, each event with the SHA-256 of the one before.
CREATE TABLE ice_events (
    seq INTEGER PRIMARY KEY NOT NULL,
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    via TEXT NOT NULL,
    address TEXT NOT NULL,
    action TEXT NOT NULL,
    ice_name TEXT,
    generation INTEGER,
    detail TEXT NOT NULL,
    previous TEXT NOT NULL
) STRICT;

CREATE INDEX ice_events_ice_name ON ice_events (lower(ice_name), seq);
CREATE INDEX ice_events_actor ON ice_events (actor, seq);
CREATE INDEX ice_events_at ON ice_events (at);

CREATE TRIGGER ice_events_no_update BEFORE UPDATE ON ice_events
BEGIN
    SELECT RAISE(ABORT, 'ice_events is append-only');
END;

CREATE TRIGGER ice_events_no_delete BEFORE DELETE ON ice_events
BEGIN
    SELECT RAISE(ABORT, 'ice_events is append-only');
END;

-- INSERT OR REPLACE would delete without asking the trigger above.
CREATE TRIGGER ice_events_in_order BEFORE INSERT ON ice_events
WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM ice_events)
BEGIN
    SELECT RAISE(ABORT, 'ice_events is append-only');
END;

-- Presence: the sessions that are open now. Not audit, and not kept over a crash.
CREATE TABLE ice_sessions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    session TEXT NOT NULL UNIQUE,
    ice_name TEXT NOT NULL REFERENCES ice_tokens (ice_name),
    generation INTEGER NOT NULL,
    node TEXT NOT NULL,
    since TEXT NOT NULL,
    address TEXT NOT NULL,
    version TEXT,
    platform TEXT,
    hostname TEXT
) STRICT;

CREATE INDEX ice_sessions_ice_name ON ice_sessions (ice_name, number);

-- What an ICE's connections came to: admissions, refusals and closures, the last 50 of each ICE.
CREATE TABLE ice_connections (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    ice_name TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('admitted', 'refused', 'closed')),
    code TEXT,
    address TEXT NOT NULL,
    first TEXT NOT NULL,
    at TEXT NOT NULL,
    count INTEGER NOT NULL
) STRICT;

CREATE INDEX ice_connections_ice_name ON ice_connections (ice_name, id);
