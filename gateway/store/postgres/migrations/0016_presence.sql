-- The few ICEs that need attention.
CREATE INDEX ice_tokens_refused ON ice_tokens (refusedon) WHERE refusedon IS NOT NULL;
CREATE INDEX ice_tokens_expires ON ice_tokens (expireson) WHERE expireson IS NOT NULL;
