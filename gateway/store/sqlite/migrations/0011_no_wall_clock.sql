-- Peers watch `renewals` change, each by its own clock: a node that has not renewed its lease for `lease` seconds
-- is marked as gone, by a compare-and-set on `renewals`, and does not renew it any more.
ALTER TABLE ice_nodes DROP COLUMN lease_until;
ALTER TABLE ice_nodes ADD COLUMN renewals INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ice_nodes ADD COLUMN lease REAL NOT NULL DEFAULT 30;
ALTER TABLE ice_nodes ADD COLUMN gone INTEGER NOT NULL DEFAULT 0 CHECK (gone IN (0, 1));

-- `opened` is a number that grows with each reading of an entry, on whichever node: no clock.
UPDATE ice_sessions SET opened = 0;
