-- A listing reads the columns of a row from the first to the last that it needs, so those that filters compare come
-- first, and what few queries read comes last. Pages have room for new versions of their rows: otherwise each
-- session would write every index.

-- Nodes may serve meanwhile: none writes to the old table. In the order in which presence locks them.
LOCK TABLE ice_sessions, ice_operations, ice_schedules, api_tokens, ice_tokens IN ACCESS EXCLUSIVE MODE;

CREATE TABLE ice_tokens_ordered (
    status TEXT COLLATE "C" NOT NULL,
    node TEXT COLLATE "C",
    lastseen TEXT COLLATE "C",
    ice_type TEXT COLLATE "C" NOT NULL,
    ice_name TEXT COLLATE "C" NOT NULL,
    labels TEXT COLLATE "C" NOT NULL DEFAULT '{}',
    version_key TEXT COLLATE "C",
    provisionedto TEXT COLLATE "C",
    refusedon TEXT COLLATE "C",
    duplicateon TEXT COLLATE "C",
    expireson TEXT COLLATE "C",
    pausedon TEXT COLLATE "C",
    registeredon TEXT COLLATE "C",
    own_text TEXT COLLATE "C" NOT NULL DEFAULT '',
    session_text TEXT COLLATE "C" NOT NULL DEFAULT '',
    provisionedon TEXT COLLATE "C" NOT NULL,
    generation BIGINT NOT NULL,
    last_opened DOUBLE PRECISION NOT NULL DEFAULT 0,
    pausedbyadmin BIGINT NOT NULL DEFAULT 0,
    ice_token TEXT COLLATE "C" NOT NULL,
    key_thumbprint TEXT COLLATE "C",
    key_id TEXT COLLATE "C",
    deregisteredon TEXT COLLATE "C",
    last_address TEXT COLLATE "C",
    last_version TEXT COLLATE "C",
    last_platform TEXT COLLATE "C",
    last_hostname TEXT COLLATE "C",
    accepts TEXT COLLATE "C",
    pausedby TEXT COLLATE "C",
    pauseduntil TEXT COLLATE "C",
    pausednote TEXT COLLATE "C",
    note TEXT COLLATE "C" NOT NULL DEFAULT ''
) WITH (fillfactor = 85);

INSERT INTO ice_tokens_ordered SELECT
    status, node, lastseen, ice_type, ice_name, labels, version_key, provisionedto, refusedon, duplicateon, expireson,
    pausedon, registeredon, own_text, session_text, provisionedon, generation, last_opened, pausedbyadmin, ice_token,
    key_thumbprint, key_id, deregisteredon, last_address, last_version, last_platform, last_hostname, accepts,
    pausedby, pauseduntil, pausednote, note
FROM ice_tokens ORDER BY lower(ice_name);

ALTER TABLE api_tokens DROP CONSTRAINT api_tokens_ice_name_fkey;
ALTER TABLE ice_sessions DROP CONSTRAINT ice_sessions_ice_name_fkey;
ALTER TABLE ice_operations DROP CONSTRAINT ice_operations_ice_name_fkey;
ALTER TABLE ice_schedules DROP CONSTRAINT ice_schedules_ice_name_fkey;
DROP TABLE ice_tokens;
ALTER TABLE ice_tokens_ordered RENAME TO ice_tokens;

ALTER TABLE ice_tokens
    ADD PRIMARY KEY (ice_name),
    ADD UNIQUE (ice_token),
    ADD FOREIGN KEY (provisionedto) REFERENCES users (name),
    ADD CHECK (ice_type IN ('normal', 'ci-cd')),
    ADD CHECK (status IN ('provisioned', 'registered', 'deregistered')),
    ADD CHECK (generation >= 1),
    ADD CHECK (pausedbyadmin IN (0, 1)),
    ADD CHECK ((provisionedto IS NULL) = (ice_type = 'ci-cd')),
    ADD CHECK ((key_thumbprint IS NOT NULL) = (status = 'registered')),
    ADD CHECK ((deregisteredon IS NOT NULL) = (status = 'deregistered')),
    ADD CHECK (expireson IS NULL OR status = 'provisioned');
ALTER TABLE api_tokens ADD FOREIGN KEY (ice_name) REFERENCES ice_tokens (ice_name);
ALTER TABLE ice_sessions ADD FOREIGN KEY (ice_name) REFERENCES ice_tokens (ice_name);
ALTER TABLE ice_operations ADD FOREIGN KEY (ice_name) REFERENCES ice_tokens (ice_name);
ALTER TABLE ice_schedules ADD FOREIGN KEY (ice_name) REFERENCES ice_tokens (ice_name);

CREATE UNIQUE INDEX ice_tokens_name_folded ON ice_tokens (lower(ice_name));
CREATE INDEX ice_tokens_user ON ice_tokens (provisionedto, lower(ice_name), ice_name);
CREATE INDEX ice_tokens_type ON ice_tokens (ice_type, lower(ice_name), ice_name);
CREATE INDEX ice_tokens_status ON ice_tokens (status, lower(ice_name), ice_name);
CREATE INDEX ice_tokens_version ON ice_tokens (version_key, lower(ice_name), ice_name, status);
CREATE INDEX ice_tokens_provisionedon ON ice_tokens (provisionedon, lower(ice_name), ice_name);
CREATE INDEX ice_tokens_refused ON ice_tokens (refusedon) WHERE refusedon IS NOT NULL;
CREATE INDEX ice_tokens_expires ON ice_tokens (expireson) WHERE expireson IS NOT NULL;
CREATE INDEX ice_tokens_duplicate ON ice_tokens (duplicateon) WHERE duplicateon IS NOT NULL;
CREATE INDEX ice_tokens_paused ON ice_tokens (pausedon) WHERE pausedon IS NOT NULL;
DO $$
BEGIN
    CREATE EXTENSION IF NOT EXISTS pg_trgm;
    CREATE INDEX ice_tokens_own_text ON ice_tokens USING gin (own_text gin_trgm_ops);
    CREATE INDEX ice_tokens_session_text ON ice_tokens USING gin (session_text gin_trgm_ops);
EXCEPTION WHEN insufficient_privilege OR undefined_file OR undefined_object OR feature_not_supported THEN
    RAISE NOTICE 'without the extension pg_trgm a search reads all ICEs';
END
$$;
ANALYZE ice_tokens;
