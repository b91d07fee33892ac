-- The one ICE that an API token may operate. NULL: the token may do what its user may.
ALTER TABLE api_tokens ADD COLUMN ice_name TEXT REFERENCES ice_tokens (ice_name);
