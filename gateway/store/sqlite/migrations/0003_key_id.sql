-- The key that sealed the current token. NULL: the token needs none, or was made before this column.
ALTER TABLE ice_tokens ADD COLUMN key_id TEXT;
