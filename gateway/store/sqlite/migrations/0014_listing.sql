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
