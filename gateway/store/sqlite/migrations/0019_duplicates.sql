-- The instances that said hello for each ICE. `opened` and `seenon` are the reading and the time of the newest hello,
-- `newest` is JSON [instance, address, hostname], `superseded` a JSON list of instances, `returnedon` when one of
-- them last came back, `loggedon` the time of the last event `duplicate`.
CREATE TABLE ice_instances (
    ice_name TEXT PRIMARY KEY NOT NULL,
    generation INTEGER NOT NULL,
    opened REAL NOT NULL,
    seenon TEXT NOT NULL,
    newest TEXT NOT NULL,
    superseded TEXT NOT NULL,
    returnedon TEXT,
    loggedon TEXT
) STRICT;

-- When two running copies of it were last found.
ALTER TABLE ice_tokens ADD COLUMN duplicateon TEXT;
CREATE INDEX ice_tokens_duplicate ON ice_tokens (duplicateon) WHERE duplicateon IS NOT NULL;

-- With the status, so that the outdated ICEs are counted from it.
DROP INDEX ice_tokens_version;
CREATE INDEX ice_tokens_version ON ice_tokens (version_key, lower(ice_name), ice_name, status);

-- As before, with `duplicateon`, and with `registeredon` for ICEs that were never seen.
DROP INDEX ice_tokens_listing;
CREATE INDEX ice_tokens_listing ON ice_tokens (
    lower(ice_name), ice_name, status, ice_type, provisionedto, node, lastseen, expireson, refusedon,
    duplicateon, version_key, provisionedon, registeredon, labels, own_text, session_text
);
