-- Peers watch `renewals` change: a node that has not renewed its lease for `lease` seconds has vanished.
ALTER TABLE ice_nodes ADD COLUMN renewals BIGINT NOT NULL DEFAULT 0;
ALTER TABLE ice_nodes ADD COLUMN lease DOUBLE PRECISION NOT NULL DEFAULT 30;

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
