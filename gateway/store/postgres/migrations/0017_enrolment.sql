-- The keys by which machines enrol. The table holds the SHA-256 of a key's secret.
CREATE TABLE enrolment_keys (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    secret_hash TEXT COLLATE "C" NOT NULL,
    ice_type TEXT COLLATE "C" NOT NULL CHECK (ice_type IN ('normal', 'ci-cd')),
    provisionedto TEXT COLLATE "C",
    name_prefix TEXT COLLATE "C" NOT NULL,
    max_uses BIGINT NOT NULL CHECK (max_uses BETWEEN 1 AND 10000),
    uses BIGINT NOT NULL DEFAULT 0 CHECK (uses BETWEEN 0 AND max_uses),
    approval BIGINT NOT NULL CHECK (approval IN (0, 1)),
    createdby TEXT COLLATE "C" NOT NULL,
    createdon TEXT COLLATE "C" NOT NULL,
    expireson TEXT COLLATE "C" NOT NULL,
    revokedon TEXT COLLATE "C",
    labels TEXT COLLATE "C" NOT NULL DEFAULT '{}',
    CHECK ((provisionedto IS NULL) = (ice_type = 'ci-cd'))
);

-- What machines ask for: one row for each machine's key pair and name of an ICE.
CREATE TABLE enrolments (
    id TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    key_id TEXT COLLATE "C" NOT NULL REFERENCES enrolment_keys (id),
    ice_name TEXT COLLATE "C" NOT NULL,
    ice_type TEXT COLLATE "C" NOT NULL CHECK (ice_type IN ('normal', 'ci-cd')),
    provisionedto TEXT COLLATE "C",
    hostname TEXT COLLATE "C" NOT NULL,
    platform TEXT COLLATE "C" NOT NULL,
    address TEXT COLLATE "C" NOT NULL,
    thumbprint TEXT COLLATE "C" NOT NULL,
    state TEXT COLLATE "C" NOT NULL CHECK (state IN ('waiting', 'approved', 'rejected', 'enrolled', 'ended')),
    replaces BIGINT NOT NULL CHECK (replaces IN (0, 1)),
    generation BIGINT,
    createdon TEXT COLLATE "C" NOT NULL,
    expireson TEXT COLLATE "C" NOT NULL,
    decidedby TEXT COLLATE "C",
    decidedon TEXT COLLATE "C"
);

CREATE UNIQUE INDEX enrolments_machine ON enrolments (key_id, thumbprint, lower(ice_name));
CREATE INDEX enrolments_listing ON enrolments (createdon, id);
CREATE INDEX enrolments_waiting ON enrolments (key_id, state);
CREATE INDEX enrolments_name ON enrolments (lower(ice_name), state);
CREATE INDEX enrolments_expiry ON enrolments (expireson);
