-- What an admin says of an ICE: labels are a JSON object with sorted keys and no spaces.
ALTER TABLE ice_tokens ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE ice_tokens ADD COLUMN note TEXT NOT NULL DEFAULT '';

-- When a genuine token of it was last refused.
ALTER TABLE ice_tokens ADD COLUMN refusedon TEXT;

-- What was known of its newest session; `last_opened` is `opened` of that session.
ALTER TABLE ice_tokens ADD COLUMN last_opened REAL NOT NULL DEFAULT 0;
ALTER TABLE ice_tokens ADD COLUMN last_address TEXT;
ALTER TABLE ice_tokens ADD COLUMN last_version TEXT;
ALTER TABLE ice_tokens ADD COLUMN last_platform TEXT;
ALTER TABLE ice_tokens ADD COLUMN last_hostname TEXT;
ALTER TABLE ice_tokens ADD COLUMN version_key TEXT; -- sorts as PEP 440 does; NULL: not known, or no version

-- What a search looks through (gateway/core/search.py): what an admin says, and what the newest session said.
ALTER TABLE ice_tokens ADD COLUMN own_text TEXT NOT NULL DEFAULT '';
ALTER TABLE ice_tokens ADD COLUMN session_text TEXT NOT NULL DEFAULT '';
UPDATE ice_tokens SET own_text = lower(ice_name) || coalesce(
    char(10) || (SELECT name_folded FROM users WHERE users.name = ice_tokens.provisionedto), ''
);

-- The user that the ICE was tagged to when an operation was requested, once it is tagged to another.
ALTER TABLE ice_operations ADD COLUMN former_user TEXT;

-- A filter reads this in the order of names, and the table for the matches alone.
CREATE INDEX ice_tokens_listing ON ice_tokens (
    lower(ice_name), ice_name, status, ice_type, provisionedto, generation, expireson, refusedon,
    version_key, provisionedon, labels, own_text, session_text
);

-- Whether an ICE is connected is read from this alone.
DROP INDEX ice_sessions_ice_name;
CREATE INDEX ice_sessions_ice_name ON ice_sessions (ice_name, generation, number);
