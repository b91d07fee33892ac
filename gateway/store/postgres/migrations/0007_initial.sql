-- The schema that SQLite has after its migration 7; `tests/contract/test_schemas.py` compares them.
-- Text sorts by code points, as there, whatever collation the database has.

CREATE TABLE ice_schema (
    version BIGINT NOT NULL
);

CREATE TABLE users (
    name TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    name_folded TEXT COLLATE "C" NOT NULL UNIQUE,
    role TEXT COLLATE "C" NOT NULL CHECK (role IN ('admin', 'auditor', 'member')),
    password_hash TEXT COLLATE "C", -- NULL: only there to be tagged
    createdon TEXT COLLATE "C" NOT NULL,
    disabledon TEXT COLLATE "C"
);

-- The rules of gateway/ice.py stand here again as CHECKs: a row that breaks them cannot be written.
CREATE TABLE ice_tokens (
    ice_name TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    ice_type TEXT COLLATE "C" NOT NULL CHECK (ice_type IN ('normal', 'ci-cd')),
    ice_token TEXT COLLATE "C" NOT NULL UNIQUE, -- SHA-256 of the token's text, never the token
    status TEXT COLLATE "C" NOT NULL CHECK (status IN ('provisioned', 'registered', 'deregistered')),
    provisionedto TEXT COLLATE "C" REFERENCES users (name),
    generation BIGINT NOT NULL CHECK (generation >= 1),
    key_thumbprint TEXT COLLATE "C",
    provisionedon TEXT COLLATE "C" NOT NULL,
    registeredon TEXT COLLATE "C",
    deregisteredon TEXT COLLATE "C",
    expireson TEXT COLLATE "C",
    lastseen TEXT COLLATE "C", -- when a session last began or ended
    key_id TEXT COLLATE "C", -- the key that sealed the current token, where it needs one
    CHECK ((provisionedto IS NULL) = (ice_type = 'ci-cd')),
    CHECK ((key_thumbprint IS NOT NULL) = (status = 'registered')),
    CHECK ((deregisteredon IS NOT NULL) = (status = 'deregistered')),
    CHECK (expireson IS NULL OR status = 'provisioned')
);

CREATE UNIQUE INDEX ice_tokens_name_folded ON ice_tokens (lower(ice_name));
CREATE INDEX ice_tokens_provisionedto ON ice_tokens (provisionedto);

CREATE TABLE api_tokens (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    user_name TEXT COLLATE "C" NOT NULL REFERENCES users (name),
    label TEXT COLLATE "C" NOT NULL,
    token_hash TEXT COLLATE "C" NOT NULL UNIQUE, -- SHA-256 of a random text of 256 bits
    createdon TEXT COLLATE "C" NOT NULL,
    expireson TEXT COLLATE "C",
    revokedon TEXT COLLATE "C",
    ice_name TEXT COLLATE "C" REFERENCES ice_tokens (ice_name)
);

CREATE TABLE logins (
    token_hash TEXT COLLATE "C" PRIMARY KEY NOT NULL, -- SHA-256 of the cookie's value
    user_name TEXT COLLATE "C" NOT NULL REFERENCES users (name),
    address TEXT COLLATE "C" NOT NULL,
    createdon TEXT COLLATE "C" NOT NULL,
    seenon TEXT COLLATE "C" NOT NULL
);

CREATE INDEX logins_user_name ON logins (user_name);

-- The audit log: numbered without gaps, each event with the SHA-256 of the one before.
CREATE TABLE ice_events (
    seq BIGINT PRIMARY KEY NOT NULL,
    at TEXT COLLATE "C" NOT NULL,
    actor TEXT COLLATE "C" NOT NULL,
    via TEXT COLLATE "C" NOT NULL,
    address TEXT COLLATE "C" NOT NULL,
    action TEXT COLLATE "C" NOT NULL,
    ice_name TEXT COLLATE "C",
    generation BIGINT,
    detail TEXT COLLATE "C" NOT NULL,
    previous TEXT COLLATE "C" NOT NULL
);

CREATE INDEX ice_events_ice_name ON ice_events (lower(ice_name), seq);
CREATE INDEX ice_events_actor ON ice_events (actor, seq);
CREATE INDEX ice_events_at ON ice_events (at);
CREATE INDEX ice_events_prune ON ice_events (seq) WHERE action = 'prune';

CREATE FUNCTION ice_events_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.seq = (SELECT coalesce(max(seq), 0) + 1 FROM ice_events) THEN
            RETURN NEW;
        END IF;
    ELSIF TG_OP = 'DELETE' THEN
        -- An event may be deleted behind a checkpoint: an event that names the last one pruned.
        IF EXISTS (
            SELECT 1 FROM ice_events
            WHERE action = 'prune' AND seq > OLD.seq
                AND (detail::jsonb ->> 'pruned_to')::bigint >= OLD.seq
        ) THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION 'ice_events is append-only' USING ERRCODE = 'integrity_constraint_violation';
END
$$;

CREATE TRIGGER ice_events_no_update BEFORE UPDATE ON ice_events
FOR EACH ROW EXECUTE FUNCTION ice_events_guard();
CREATE TRIGGER ice_events_no_delete BEFORE DELETE ON ice_events
FOR EACH ROW EXECUTE FUNCTION ice_events_guard();
CREATE TRIGGER ice_events_no_truncate BEFORE TRUNCATE ON ice_events
FOR EACH STATEMENT EXECUTE FUNCTION ice_events_guard();
CREATE TRIGGER ice_events_in_order BEFORE INSERT ON ice_events
FOR EACH ROW EXECUTE FUNCTION ice_events_guard();

-- The end of the log: whoever locks this row gives the next numbers.
CREATE TABLE ice_head (
    seq BIGINT NOT NULL,
    digest TEXT COLLATE "C" NOT NULL
);
INSERT INTO ice_head VALUES (0, repeat('0', 64));

-- Numbers, chains and writes the events of a transaction, which is committed in the same round trip
-- (`SELECT ice_log(...); COMMIT`): so the order of numbers is the order of commits, and a node that stops
-- between two round trips holds up no other. Each element of `events` is what is hashed between number and
-- digest (gateway/event.py): the columns from `at` to `detail` as JSON, parted by commas. The last number
-- stays in the session as `ice.seq`.
CREATE FUNCTION ice_log(events text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    number bigint;
    link text;
    hashed text;
    c json;
BEGIN
    SELECT seq, digest INTO number, link FROM ice_head FOR UPDATE;
    FOREACH hashed IN ARRAY events LOOP
        number := number + 1;
        c := ('[' || hashed || ']')::json;
        INSERT INTO ice_events VALUES (
            number, c ->> 0, c ->> 1, c ->> 2, c ->> 3, c ->> 4, c ->> 5, (c ->> 6)::bigint, c ->> 7, link
        );
        link := encode(
            sha256(convert_to('[' || number || ',' || hashed || ',"' || link || '"]', 'UTF8')), 'hex'
        );
    END LOOP;
    UPDATE ice_head SET seq = number, digest = link;
    PERFORM set_config('ice.seq', number::text, false);
    PERFORM pg_notify('ice_events', number::text);
END
$$;

-- Presence: the sessions that are open now. Not audit, and not kept over a crash.
CREATE TABLE ice_sessions (
    number BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    session TEXT COLLATE "C" NOT NULL UNIQUE,
    ice_name TEXT COLLATE "C" NOT NULL REFERENCES ice_tokens (ice_name),
    generation BIGINT NOT NULL,
    node TEXT COLLATE "C" NOT NULL,
    since TEXT COLLATE "C" NOT NULL,
    address TEXT COLLATE "C" NOT NULL,
    version TEXT COLLATE "C",
    platform TEXT COLLATE "C",
    hostname TEXT COLLATE "C"
);

CREATE INDEX ice_sessions_ice_name ON ice_sessions (ice_name, number);

-- What an ICE's connections came to: admissions, refusals and closures, the last 50 of each ICE.
CREATE TABLE ice_connections (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    ice_name TEXT COLLATE "C" NOT NULL,
    kind TEXT COLLATE "C" NOT NULL CHECK (kind IN ('admitted', 'refused', 'closed')),
    code TEXT COLLATE "C",
    address TEXT COLLATE "C" NOT NULL,
    first TEXT COLLATE "C" NOT NULL,
    at TEXT COLLATE "C" NOT NULL,
    count BIGINT NOT NULL
);

CREATE INDEX ice_connections_ice_name ON ice_connections (ice_name, id);

-- A database that is a copy says so: while this row is there nobody is admitted.
CREATE TABLE restored (
    id BIGINT PRIMARY KEY NOT NULL CHECK (id = 1),
    copied TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    aside TEXT COLLATE "C" NOT NULL DEFAULT '[]'
);

-- Work sent to ICEs. The states are those of gateway/operation.py. JSON stands as it was sent.
CREATE TABLE ice_operations (
    number BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, -- in the order of the requests
    id TEXT COLLATE "C" NOT NULL UNIQUE,
    ice_name TEXT COLLATE "C" NOT NULL REFERENCES ice_tokens (ice_name),
    kind TEXT COLLATE "C" NOT NULL,
    params TEXT COLLATE "C" NOT NULL,
    state TEXT COLLATE "C" NOT NULL CHECK (state IN
        ('queued', 'sent', 'running', 'succeeded', 'failed', 'cancelled', 'expired', 'lost')),
    requested_by TEXT COLLATE "C" NOT NULL,
    created TEXT COLLATE "C" NOT NULL,
    run_at TEXT COLLATE "C",
    deadline TEXT COLLATE "C" NOT NULL,
    sent TEXT COLLATE "C",
    finished TEXT COLLATE "C",
    progress TEXT COLLATE "C",
    result TEXT COLLATE "C",
    error TEXT COLLATE "C",
    idempotency_key TEXT COLLATE "C",
    CHECK ((finished IS NULL) = (state IN ('queued', 'sent', 'running'))),
    CHECK (sent IS NULL OR state <> 'queued'),
    CHECK (sent IS NOT NULL OR state NOT IN ('sent', 'running', 'succeeded', 'failed', 'lost')),
    UNIQUE (ice_name, requested_by, idempotency_key)
);

CREATE INDEX ice_operations_ice_name ON ice_operations (lower(ice_name), number);
CREATE INDEX ice_operations_unfinished ON ice_operations (ice_name, number)
WHERE state IN ('queued', 'sent', 'running');
-- One at a time: an ICE that works on two would be our fault.
CREATE UNIQUE INDEX ice_operations_active ON ice_operations (ice_name)
WHERE state IN ('sent', 'running');
CREATE INDEX ice_operations_deadline ON ice_operations (deadline)
WHERE state IN ('queued', 'sent', 'running');
CREATE INDEX ice_operations_finished ON ice_operations (finished) WHERE finished IS NOT NULL;

-- SQLite's names for what lists in parameters need, so that one SQL text serves both.
CREATE FUNCTION json_each(given text) RETURNS TABLE (value jsonb, atom text)
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 50 AS $$
    SELECT element, element #>> '{}' FROM jsonb_array_elements(given::jsonb) AS element
$$;

CREATE FUNCTION json_extract(given jsonb, path text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT jsonb_path_query_first(given, path::jsonpath) #>> '{}'
$$;
