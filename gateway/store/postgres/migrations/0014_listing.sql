-- The node that holds its newest session; NULL: it is not connected.
ALTER TABLE ice_tokens ADD COLUMN node TEXT COLLATE "C";
UPDATE ice_tokens SET node = (
    SELECT s.node FROM ice_sessions s
    WHERE s.ice_name = ice_tokens.ice_name AND s.generation = ice_tokens.generation
    ORDER BY s.number DESC LIMIT 1
);
