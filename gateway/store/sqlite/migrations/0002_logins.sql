-- A browser's login: the cookie itself is kept by the browser alone.
CREATE TABLE logins (
    token_hash TEXT PRIMARY KEY NOT NULL, -- SHA-256 of the cookie's value
    user_name TEXT NOT NULL REFERENCES users (name),
    address TEXT NOT NULL,
    createdon TEXT NOT NULL,
    seenon TEXT NOT NULL
) STRICT;

CREATE INDEX logins_user_name ON logins (user_name);
