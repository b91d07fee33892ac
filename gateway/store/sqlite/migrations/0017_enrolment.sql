-- The keys by which machines enrol. The table holds the SHA-256 of a key's secret.
CREATE TABLE enrolment_keys (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    secret_hash TEXT NOT NULL,
    ice_type TEXT NOT NULL CHECK (ice_type IN ('normal', 'ci-cd')),
    provisionedto TEXT,
    name_prefix TEXT NOT NULL,
    max_uses INTEGER NOT NULL CHECK (max_uses BETWEEN 1 AND 10000),
    uses INTEGER NOT NULL DEFAULT 0 CHECK (uses BETWEEN 0 AND max_uses),
    approval INTEGER NOT NULL CHECK (approval IN (0, 1)),
    createdby TEXT NOT NULL,
    createdon TEXT NOT NULL,
    expireson TEXT NOT NULL,
    revokedon TEXT,
    labels TEXT NOT NULL DEFAULT '{}',
    CHECK ((provisionedto IS NULL) = (ice_type = 'ci-cd'))
) STRICT;

-- What machines ask for: one row for each machine's key pair and name of an ICE.
CREATE TABLE enrolments (
    id TEXT PRIMARY KEY NOT NULL,
    key_id TEXT NOT NULL REFERENCES enrolment_keys (id),
    ice_name TEXT NOT NULL,
    ice_type TEXT NOT NULL CHECK (ice_type IN ('normal', 'ci-cd')),
    provisionedto TEXT,
    hostname TEXT NOT NULL,
    platform TEXT NOT NULL,
    address TEXT NOT NULL,
    thumbprint TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'approved', 'rejected', 'enrolled', 'ended')),
    replaces INTEGER NOT NULL CHECK (replaces IN (0, 1)),
    generation INTEGER,
    createdon TEXT NOT NULL,
    expireson TEXT NOT NULL,
    decidedby TEXT,
    decidedon TEXT
) STRICT;

CREATE UNIQUE INDEX enrolments_machine ON enrolments (key_id, thumbprint, lower(ice_name));
CREATE INDEX enrolments_listing ON enrolments (createdon, id);
CREATE INDEX enrolments_waiting ON enrolments (key_id, state);
CREATE INDEX enrolments_name ON enrolments (lower(ice_name), state);
CREATE INDEX enrolments_expiry ON enrolments (expireson);
