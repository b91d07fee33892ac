-- The node that holds its newest session; NULL: it is not connected.
ALTER TABLE ice_tokens ADD COLUMN node TEXT COLLATE "C";
UPDATE ice_tokens SET node = (
    SELECT s.node FROM ice_sessions s
    WHERE s.ice_name = ice_tokens.ice_name AND s.generation = ice_tokens.generation
    ORDER BY s.number DESC LIMIT 1
);

-- The orders of the page's columns. An index on `node` or `lastseen` would make each admission dearer.
DROP INDEX ice_tokens_provisionedto;
CREATE INDEX ice_tokens_user ON ice_tokens (provisionedto, lower(ice_name), ice_name);
CREATE INDEX ice_tokens_type ON ice_tokens (ice_type, lower(ice_name), ice_name);
CREATE INDEX ice_tokens_status ON ice_tokens (status, lower(ice_name), ice_name);
CREATE INDEX ice_tokens_version ON ice_tokens (version_key, lower(ice_name), ice_name);
CREATE INDEX ice_tokens_provisionedon ON ice_tokens (provisionedon, lower(ice_name), ice_name);
