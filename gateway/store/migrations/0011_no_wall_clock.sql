-- Peers watch `renewals` change: a node that has not renewed its lease for `lease` seconds has vanished.
ALTER TABLE ice_nodes ADD COLUMN renewals INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ice_nodes ADD COLUMN lease REAL NOT NULL DEFAULT 30;
