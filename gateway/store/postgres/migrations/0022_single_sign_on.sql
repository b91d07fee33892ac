-- Where a user comes from: `local`, or `sso` with the issuer and its subject; NULL for users from before there was single
-- sign-on, of whom nobody has decided it.
ALTER TABLE users ADD COLUMN origin TEXT COLLATE "C" CHECK (origin IN ('local', 'sso'));
ALTER TABLE users ADD COLUMN issuer TEXT COLLATE "C" CHECK ((issuer IS NULL) = (origin IS DISTINCT FROM 'sso'));
ALTER TABLE users ADD COLUMN subject TEXT COLLATE "C" CHECK ((subject IS NULL) = (origin IS DISTINCT FROM 'sso'));
CREATE UNIQUE INDEX users_subject ON users (issuer, subject) WHERE subject IS NOT NULL;

-- The issuer's name of its own session (`sid`), by which it ends a login.
ALTER TABLE logins ADD COLUMN sid TEXT COLLATE "C";
CREATE INDEX logins_sid ON logins (sid) WHERE sid IS NOT NULL;

-- Digests of what an issuer sent and is good once, until it has expired anyway.
CREATE TABLE sso_used (
    digest TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    until TEXT COLLATE "C" NOT NULL
);
CREATE INDEX sso_used_until ON sso_used (until);
