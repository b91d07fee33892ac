-- Pools: the ICEs that have all `labels`. `pairs` is a JSON list of the texts by which a label is found in
-- `ice_tokens.labels`, one for each label.
CREATE TABLE ice_pools (
    name TEXT PRIMARY KEY NOT NULL,
    description TEXT NOT NULL,
    ice_type TEXT CHECK (ice_type IN ('normal', 'ci-cd')),
    labels TEXT NOT NULL,
    pairs TEXT NOT NULL,
    createdby TEXT NOT NULL,
    createdon TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX ice_pools_name ON ice_pools (lower(name));

-- An API token for one pool; it is revoked when the pool is deleted.
ALTER TABLE api_tokens ADD COLUMN pool TEXT;

-- As before, but an operation for a pool has no ICE until one is chosen, and `refused_by` is a JSON list of the sessions
-- that refused it. `token` is the API token that requested it.
ALTER TABLE ice_operations RENAME TO ice_operations_before;
CREATE TABLE ice_operations (
    number INTEGER PRIMARY KEY AUTOINCREMENT, -- in the order of the requests
    id TEXT NOT NULL UNIQUE,
    ice_name TEXT REFERENCES ice_tokens (ice_name),
    kind TEXT NOT NULL,
    params TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN
        ('queued', 'sent', 'running', 'succeeded', 'failed', 'cancelled', 'expired', 'lost')),
    requested_by TEXT NOT NULL,
    created TEXT NOT NULL,
    run_at TEXT,
    deadline TEXT NOT NULL,
    sent TEXT,
    finished TEXT,
    progress TEXT,
    result TEXT,
    error TEXT,
    idempotency_key TEXT,
    former_user TEXT,
    pool TEXT,
    schedule TEXT,
    token TEXT,
    refused_by TEXT NOT NULL DEFAULT '[]',
    kept INTEGER NOT NULL DEFAULT 0 CHECK (kept >= 0),
    CHECK ((finished IS NULL) = (state IN ('queued', 'sent', 'running'))),
    CHECK (sent IS NULL OR state <> 'queued'),
    CHECK (sent IS NOT NULL OR state NOT IN ('sent', 'running', 'succeeded', 'failed', 'lost')),
    CHECK (ice_name IS NOT NULL OR (pool IS NOT NULL AND sent IS NULL))
) STRICT;
INSERT INTO ice_operations
SELECT number, id, ice_name, kind, params, state, requested_by, created, run_at, deadline, sent, finished, progress,
    result, error, idempotency_key, former_user, NULL, NULL, NULL, '[]', kept
FROM ice_operations_before;
-- A number is never used again.
DELETE FROM sqlite_sequence WHERE name = 'ice_operations';
UPDATE sqlite_sequence SET name = 'ice_operations' WHERE name = 'ice_operations_before';
DROP TABLE ice_operations_before;

CREATE INDEX ice_operations_ice_name ON ice_operations (lower(ice_name), number);
CREATE INDEX ice_operations_unfinished ON ice_operations (ice_name, number)
WHERE state IN ('queued', 'sent', 'running');
-- One at a time: an ICE that works on two would be our fault.
CREATE UNIQUE INDEX ice_operations_active ON ice_operations (ice_name)
WHERE state IN ('sent', 'running');
CREATE INDEX ice_operations_deadline ON ice_operations (deadline)
WHERE state IN ('queued', 'sent', 'running');
CREATE INDEX ice_operations_finished ON ice_operations (finished) WHERE finished IS NOT NULL;
CREATE INDEX ice_operations_emptied ON ice_operations (finished) WHERE kept = 0;
-- What an ICE, or a pool, keeps.
CREATE INDEX ice_operations_kept ON ice_operations (ice_name, finished, kept)
WHERE kept > 0 AND pool IS NULL;
CREATE INDEX ice_operations_pool_kept ON ice_operations (pool, finished, kept)
WHERE kept > 0 AND pool IS NOT NULL;
-- A key counts for the target as it was requested.
CREATE UNIQUE INDEX ice_operations_key ON ice_operations (ice_name, requested_by, idempotency_key)
WHERE pool IS NULL AND idempotency_key IS NOT NULL;
CREATE UNIQUE INDEX ice_operations_pool_key ON ice_operations (pool, requested_by, idempotency_key)
WHERE pool IS NOT NULL AND idempotency_key IS NOT NULL;
CREATE INDEX ice_operations_pool ON ice_operations (lower(pool), number) WHERE pool IS NOT NULL;
CREATE INDEX ice_operations_pool_waiting ON ice_operations (pool, number)
WHERE pool IS NOT NULL AND state IN ('queued', 'sent');
CREATE INDEX ice_operations_schedule ON ice_operations (schedule, number)
WHERE schedule IS NOT NULL;
CREATE INDEX ice_operations_schedule_unfinished ON ice_operations (schedule, number)
WHERE schedule IS NOT NULL AND finished IS NULL;
-- Which have waited longest.
CREATE INDEX ice_operations_queued ON ice_operations (coalesce(run_at, created), number)
WHERE state = 'queued';
-- When an ICE was last busy.
CREATE INDEX ice_operations_last ON ice_operations (ice_name, finished) WHERE finished IS NOT NULL;

-- What `operation.log` brought, in pieces of `bytes` bytes of UTF-8; `start` counts the bytes of the log before the piece.
CREATE TABLE ice_operation_logs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    operation TEXT NOT NULL REFERENCES ice_operations (id) ON DELETE CASCADE,
    start INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    text TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX ice_operation_logs_operation ON ice_operation_logs (operation, start);

-- A pause: since when, by whom, until when, and why. What an admin paused only an admin resumes.
ALTER TABLE ice_tokens ADD COLUMN pausedon TEXT;
ALTER TABLE ice_tokens ADD COLUMN pausedby TEXT;
ALTER TABLE ice_tokens ADD COLUMN pauseduntil TEXT;
ALTER TABLE ice_tokens ADD COLUMN pausednote TEXT;
ALTER TABLE ice_tokens ADD COLUMN pausedbyadmin INTEGER NOT NULL DEFAULT 0 CHECK (pausedbyadmin IN (0, 1));
CREATE INDEX ice_tokens_paused ON ice_tokens (pausedon) WHERE pausedon IS NOT NULL;

-- The ICE's last word about what others may send: a JSON list of kinds, or `null` for all; NULL: it has not said hello.
ALTER TABLE ice_tokens ADD COLUMN accepts TEXT;
-- No ICE could restrict that before.
UPDATE ice_tokens SET accepts = 'null' WHERE status = 'registered' AND last_address IS NOT NULL;
ALTER TABLE ice_sessions ADD COLUMN accepts TEXT;

-- As before, with the pause.
DROP INDEX ice_tokens_listing;
CREATE INDEX ice_tokens_listing ON ice_tokens (
    lower(ice_name), ice_name, status, ice_type, provisionedto, node, lastseen, expireson, refusedon,
    duplicateon, version_key, provisionedon, registeredon, pausedon, pauseduntil, labels, own_text, session_text
);

-- When work is requested of an ICE or a pool, and by whom. `next` is the next occurrence, NULL while there is none to
-- come; `last` is the newest one that was decided on.
CREATE TABLE ice_schedules (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    ice_name TEXT REFERENCES ice_tokens (ice_name),
    pool TEXT,
    params TEXT NOT NULL,
    cron TEXT NOT NULL,
    timezone TEXT NOT NULL,
    timeout INTEGER NOT NULL,
    grace INTEGER NOT NULL,
    enabled INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    requested_by TEXT NOT NULL,
    via TEXT NOT NULL,
    createdon TEXT NOT NULL,
    next TEXT,
    last TEXT,
    former_user TEXT,
    CHECK ((ice_name IS NULL) <> (pool IS NULL))
) STRICT;
CREATE INDEX ice_schedules_next ON ice_schedules (next, id) WHERE next IS NOT NULL;
CREATE INDEX ice_schedules_createdon ON ice_schedules (createdon, id);
CREATE INDEX ice_schedules_ice_name ON ice_schedules (lower(ice_name)) WHERE ice_name IS NOT NULL;
CREATE INDEX ice_schedules_pool ON ice_schedules (lower(pool)) WHERE pool IS NOT NULL;

-- What became of its occurrences: an operation, or the reason for which it was left out. `count` of them from `at` on
-- were missed.
CREATE TABLE ice_schedule_occurrences (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    schedule TEXT NOT NULL,
    at TEXT NOT NULL, -- the occurrence
    recordedon TEXT NOT NULL,
    operation TEXT,
    skipped TEXT,
    count INTEGER NOT NULL DEFAULT 1,
    CHECK ((operation IS NULL) <> (skipped IS NULL))
) STRICT;
CREATE INDEX ice_schedule_occurrences_schedule ON ice_schedule_occurrences (schedule, number);
