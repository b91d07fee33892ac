-- Work sent to ICEs. The states are those of gateway/operation.py. JSON stands as it was sent.
CREATE TABLE ice_operations (
    number INTEGER PRIMARY KEY AUTOINCREMENT, -- in the order of the requests
    id TEXT NOT NULL UNIQUE,
    ice_name TEXT NOT NULL REFERENCES ice_tokens (ice_name),
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
    CHECK ((finished IS NULL) = (state IN ('queued', 'sent', 'running'))),
    CHECK (sent IS NULL OR state <> 'queued'),
    CHECK (sent IS NOT NULL OR state NOT IN ('sent', 'running', 'succeeded', 'failed', 'lost')),
    UNIQUE (ice_name, requested_by, idempotency_key)
) STRICT;

CREATE INDEX ice_operations_ice_name ON ice_operations (lower(ice_name), number);
CREATE INDEX ice_operations_unfinished ON ice_operations (ice_name, number)
WHERE state IN ('queued', 'sent', 'running');
-- One at a time: an ICE that works on two would be our fault.
CREATE UNIQUE INDEX ice_operations_active ON ice_operations (ice_name)
WHERE state IN ('sent', 'running');
CREATE INDEX ice_operations_deadline ON ice_operations (deadline)
WHERE state IN ('queued', 'sent', 'running');
CREATE INDEX ice_operations_finished ON ice_operations (finished) WHERE finished IS NOT NULL;
