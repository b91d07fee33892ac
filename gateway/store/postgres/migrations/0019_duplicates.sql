-- The instances that said hello for each ICE. `opened` and `seenon` are the reading and the time of the newest hello,
-- `newest` is JSON [instance, address, hostname], `superseded` a JSON list of instances, `returnedon` when one of
-- them last came back, `loggedon` the time of the last event `duplicate`.
CREATE TABLE ice_instances (
    ice_name TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    generation BIGINT NOT NULL,
    opened DOUBLE PRECISION NOT NULL,
    seenon TEXT COLLATE "C" NOT NULL,
    newest TEXT COLLATE "C" NOT NULL,
    superseded TEXT COLLATE "C" NOT NULL,
    returnedon TEXT COLLATE "C",
    loggedon TEXT COLLATE "C"
);

-- When two running copies of it were last found.
ALTER TABLE ice_tokens ADD COLUMN duplicateon TEXT COLLATE "C";
CREATE INDEX ice_tokens_duplicate ON ice_tokens (duplicateon) WHERE duplicateon IS NOT NULL;

-- With the status, so that the outdated ICEs are counted from it.
DROP INDEX ice_tokens_version;
CREATE INDEX ice_tokens_version ON ice_tokens (version_key, lower(ice_name), ice_name, status);
