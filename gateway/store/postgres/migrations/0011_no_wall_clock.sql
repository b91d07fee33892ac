-- Peers watch `renewals` change, each by its own clock: a node that has not renewed its lease for `lease` seconds
-- is marked as gone, by a compare-and-set on `renewals`, and does not renew it any more.
ALTER TABLE ice_nodes DROP COLUMN lease_until;
ALTER TABLE ice_nodes ADD COLUMN renewals BIGINT NOT NULL DEFAULT 0;
ALTER TABLE ice_nodes ADD COLUMN lease DOUBLE PRECISION NOT NULL DEFAULT 30;
ALTER TABLE ice_nodes ADD COLUMN gone BIGINT NOT NULL DEFAULT 0 CHECK (gone IN (0, 1));

-- `opened` is a number that grows with each reading of an entry, on whichever node: no clock.
UPDATE ice_sessions SET opened = 0;
CREATE SEQUENCE ice_readings;
CREATE FUNCTION reading_number() RETURNS double precision LANGUAGE sql VOLATILE AS $$
    SELECT nextval('ice_readings')::double precision
$$;

-- The clock that all nodes read alike. They push it on by their own clocks, which nobody sets: that of this
-- machine may be stepped. It began with the server's, which the times that are kept were written by.
CREATE TABLE ice_clock (
    now DOUBLE PRECISION NOT NULL
);
INSERT INTO ice_clock SELECT extract(epoch FROM clock_timestamp());
CREATE OR REPLACE FUNCTION lease_clock() RETURNS double precision LANGUAGE sql VOLATILE AS $$
    SELECT now FROM ice_clock
$$;
CREATE FUNCTION lease_clock(at_least double precision) RETURNS double precision LANGUAGE sql VOLATILE AS $$
    UPDATE ice_clock SET now = greatest(now, at_least) RETURNING now
$$;

-- As in 0007, but it notifies nobody: with a full queue of notifications no transaction could commit. The
-- gateway notifies after the commit.
CREATE OR REPLACE FUNCTION ice_log(events text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    number bigint;
    link text;
    hashed text;
    c json;
BEGIN
    SELECT seq, digest INTO number, link FROM ice_head FOR UPDATE;
    FOREACH hashed IN ARRAY events LOOP
        number := number + 1;
        c := ('[' || hashed || ']')::json;
        INSERT INTO ice_events VALUES (
            number, c ->> 0, c ->> 1, c ->> 2, c ->> 3, c ->> 4, c ->> 5, (c ->> 6)::bigint, c ->> 7, link
        );
        link := encode(
            sha256(convert_to('[' || number || ',' || hashed || ',"' || link || '"]', 'UTF8')), 'hex'
        );
    END LOOP;
    UPDATE ice_head SET seq = number, digest = link;
    PERFORM set_config('ice.seq', number::text, false);
END
$$;
