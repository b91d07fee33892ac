-- What an admin says of an ICE: labels are a JSON object with sorted keys and no spaces.
ALTER TABLE ice_tokens ADD COLUMN labels TEXT COLLATE "C" NOT NULL DEFAULT '{}';
ALTER TABLE ice_tokens ADD COLUMN note TEXT COLLATE "C" NOT NULL DEFAULT '';

-- When a genuine token of it was last refused.
ALTER TABLE ice_tokens ADD COLUMN refusedon TEXT COLLATE "C";

-- What was known of its newest session; `last_opened` is `opened` of that session.
ALTER TABLE ice_tokens ADD COLUMN last_opened DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE ice_tokens ADD COLUMN last_address TEXT COLLATE "C";
ALTER TABLE ice_tokens ADD COLUMN last_version TEXT COLLATE "C";
ALTER TABLE ice_tokens ADD COLUMN last_platform TEXT COLLATE "C";
ALTER TABLE ice_tokens ADD COLUMN last_hostname TEXT COLLATE "C";
ALTER TABLE ice_tokens ADD COLUMN version_key TEXT COLLATE "C"; -- sorts as PEP 440 does; NULL: not known, or no version

-- What a search looks through (gateway/core/search.py): what an admin says, and what the newest session said.
ALTER TABLE ice_tokens ADD COLUMN own_text TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE ice_tokens ADD COLUMN session_text TEXT COLLATE "C" NOT NULL DEFAULT '';
UPDATE ice_tokens SET own_text = lower(ice_name) || coalesce(
    chr(10) || (SELECT name_folded FROM users WHERE users.name = ice_tokens.provisionedto), ''
);

-- The user that the ICE was tagged to when an operation was requested, once it is tagged to another.
ALTER TABLE ice_operations ADD COLUMN former_user TEXT COLLATE "C";

-- SQLite reads an index that covers every filter; here a row of it could be too long. Where the server has
-- the extension, a search reads this one instead of all rows.
DO $$
BEGIN
    CREATE EXTENSION IF NOT EXISTS pg_trgm;
    CREATE INDEX ice_tokens_own_text ON ice_tokens USING gin (own_text gin_trgm_ops);
    CREATE INDEX ice_tokens_session_text ON ice_tokens USING gin (session_text gin_trgm_ops);
EXCEPTION WHEN insufficient_privilege OR undefined_file OR undefined_object OR feature_not_supported THEN
    RAISE NOTICE 'without the extension pg_trgm a search reads all ICEs';
END
$$;

-- SQLite's name for it.
CREATE FUNCTION instr(given text, part text) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT strpos(given, part)
$$;

-- Whether an ICE is connected is read from this alone.
DROP INDEX ice_sessions_ice_name;
CREATE INDEX ice_sessions_ice_name ON ice_sessions (ice_name, generation, number);
