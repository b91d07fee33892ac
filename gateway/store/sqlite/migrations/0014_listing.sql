-- The node that holds its newest session; NULL: it is not connected.
ALTER TABLE ice_tokens ADD COLUMN node TEXT;
UPDATE ice_tokens SET node = (
    SELECT s.node FROM ice_sessions s
    WHERE s.ice_name = ice_tokens.ice_name AND s.generation = ice_tokens.generation
    ORDER BY s.number DESC LIMIT 1
);

-- As before, with the node and `lastseen`: every filter and every sort is read from it.
DROP INDEX ice_tokens_listing;
CREATE INDEX ice_tokens_listing ON ice_tokens (
    lower(ice_name), ice_name, status, ice_type, provisionedto, node, lastseen, expireson, refusedon,
    version_key, provisionedon, labels, own_text, session_text
);

-- The orders of the page's columns.
DROP INDEX ice_tokens_provisionedto;
CREATE INDEX ice_tokens_user ON ice_tokens (provisionedto, lower(ice_name), ice_name);
CREATE INDEX ice_tokens_type ON ice_tokens (ice_type, lower(ice_name), ice_name);
CREATE INDEX ice_tokens_status ON ice_tokens (status, lower(ice_name), ice_name);
CREATE INDEX ice_tokens_version ON ice_tokens (version_key, lower(ice_name), ice_name);
CREATE INDEX ice_tokens_provisionedon ON ice_tokens (provisionedon, lower(ice_name), ice_name);
-- For `lastseen` this is read whole: that of a connected ICE is its node's.
CREATE INDEX ice_tokens_lastseen ON ice_tokens (node, lastseen, lower(ice_name), ice_name);
-- The counts are read from this.
CREATE INDEX ice_tokens_counts ON ice_tokens (refusedon, expireson, status, node, provisionedto);
