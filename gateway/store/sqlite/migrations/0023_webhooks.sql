-- What webhooks share: the id of this log in the ids of messages (a restore makes another), and the instance of the node
-- that sends. The first webhook makes the row.
CREATE TABLE webhook_sender (
    number INTEGER PRIMARY KEY CHECK (number = 1),
    log TEXT NOT NULL,
    node TEXT
) STRICT;

-- `events` is a JSON list, `secret` is sealed with a token key, `position` is the last event that was sent or passed over,
-- and `failing` what is known of a message that was not taken.
CREATE TABLE webhooks (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    url TEXT NOT NULL,
    events TEXT NOT NULL,
    enabled INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    enabledon TEXT NOT NULL,
    secret TEXT NOT NULL,
    position INTEGER NOT NULL,
    failing TEXT,
    createdby TEXT NOT NULL,
    createdon TEXT NOT NULL,
    finished INTEGER NOT NULL CHECK (finished IN (0, 1)) -- whether `events` names finished operations
) STRICT;

CREATE TABLE webhook_deliveries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    webhook TEXT NOT NULL REFERENCES webhooks (id),
    message TEXT NOT NULL,
    type TEXT NOT NULL,
    at TEXT NOT NULL,
    status INTEGER,
    error TEXT,
    elapsed_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX webhook_deliveries_webhook ON webhook_deliveries (webhook, number);

CREATE TABLE webhook_set_aside (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    webhook TEXT NOT NULL REFERENCES webhooks (id),
    message TEXT NOT NULL,
    type TEXT NOT NULL,
    body TEXT NOT NULL,
    at TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    error TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX webhook_set_aside_message ON webhook_set_aside (webhook, message);

-- The notices that wait for a webhook. It is not referred to: an operation must finish also if one is deleted meanwhile.
CREATE TABLE webhook_notices (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    webhook TEXT NOT NULL,
    id TEXT NOT NULL,
    type TEXT NOT NULL,
    at TEXT NOT NULL,
    data TEXT NOT NULL
) STRICT;
CREATE INDEX webhook_notices_webhook ON webhook_notices (webhook, number);

-- The ICEs that are away, and since when. It is kept up while a webhook wants to know.
CREATE TABLE ice_away (
    ice_name TEXT PRIMARY KEY NOT NULL REFERENCES ice_tokens (ice_name),
    since TEXT NOT NULL
) STRICT;

-- In the transaction that finishes an operation, whichever that is.
CREATE TRIGGER ice_operations_notice AFTER UPDATE OF finished ON ice_operations
WHEN OLD.finished IS NULL AND NEW.finished IS NOT NULL
BEGIN
    INSERT INTO webhook_notices (webhook, id, type, at, data)
    SELECT w.id, s.log || '-' || NEW.id, 'operation.finished', NEW.finished, json_object(
        'id', NEW.id, 'ice_name', NEW.ice_name, 'pool', NEW.pool, 'schedule', NEW.schedule, 'kind', NEW.kind,
        'state', NEW.state, 'requested_by', NEW.requested_by, 'created', NEW.created, 'finished', NEW.finished)
    FROM webhooks w, webhook_sender s WHERE w.enabled = 1 AND w.finished = 1;
END;
