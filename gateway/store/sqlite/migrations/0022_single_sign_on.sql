-- Where a user comes from: `local`, or `sso` with the issuer and its subject; NULL for users from before there was single
-- sign-on, of whom nobody has decided it.
ALTER TABLE users ADD COLUMN origin TEXT CHECK (origin IN ('local', 'sso'));
ALTER TABLE users ADD COLUMN issuer TEXT CHECK ((issuer IS NULL) = (origin IS NOT 'sso'));
ALTER TABLE users ADD COLUMN subject TEXT CHECK ((subject IS NULL) = (origin IS NOT 'sso'));
CREATE UNIQUE INDEX users_subject ON users (issuer, subject) WHERE subject IS NOT NULL;

-- The issuer's name of its own session (`sid`), by which it ends a login.
ALTER TABLE logins ADD COLUMN sid TEXT;
CREATE INDEX logins_sid ON logins (sid) WHERE sid IS NOT NULL;

-- Digests of what an issuer sent and is good once, until it has expired anyway.
CREATE TABLE sso_used (
    digest TEXT PRIMARY KEY NOT NULL,
    until TEXT NOT NULL
) STRICT;
CREATE INDEX sso_used_until ON sso_used (until);
