-- When a user last logged in to the admin page.
ALTER TABLE users ADD COLUMN lastlogin TEXT COLLATE "C";

-- When an API token was last used, to a minute, and the token, login or command that made it (NULL: not known).
ALTER TABLE api_tokens ADD COLUMN lastused TEXT COLLATE "C";
ALTER TABLE api_tokens ADD COLUMN madeby TEXT COLLATE "C";

-- Whether it may change users and API tokens.
ALTER TABLE api_tokens ADD COLUMN accounts BIGINT NOT NULL DEFAULT 0 CHECK (accounts IN (0, 1));
