-- The newest failed logins are looked for before another is written.
CREATE INDEX ice_events_login_failed ON ice_events (at) WHERE action = 'login-failed';

-- When each node last confirmed the sessions that it holds: `lastseen` of the ICEs that are connected there.
CREATE TABLE ice_confirmed (
    node TEXT PRIMARY KEY NOT NULL,
    at TEXT NOT NULL
) STRICT;
