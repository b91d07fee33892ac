-- A database that is a copy says so: while this row is there nobody is admitted. `ice-gateway backup`
-- puts it into the copy it makes and `restore --confirm` takes it out, so that a file which was copied
-- back by hand admits nobody either.
CREATE TABLE restored (
    id INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
    copied TEXT NOT NULL, -- when the copy was made
    seq INTEGER NOT NULL, -- the last event in it
    aside TEXT NOT NULL DEFAULT '[]' -- JSON: the databases that were put aside for it, to compare with
) STRICT;
