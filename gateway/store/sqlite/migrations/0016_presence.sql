-- Each session changes `node` and `lastseen`, and so rewrites their indexes: as few as the listings need. That of
-- a connected ICE is its node's, so the order of this index is one of several parts of a listing.
DROP INDEX ice_tokens_lastseen;
CREATE INDEX ice_tokens_lastseen ON ice_tokens (
    lastseen, lower(ice_name), ice_name, node, status, ice_type
);

-- The few ICEs that need attention, instead of an index of all ICEs.
DROP INDEX ice_tokens_counts;
CREATE INDEX ice_tokens_refused ON ice_tokens (refusedon) WHERE refusedon IS NOT NULL;
CREATE INDEX ice_tokens_expires ON ice_tokens (expireson) WHERE expireson IS NOT NULL;
