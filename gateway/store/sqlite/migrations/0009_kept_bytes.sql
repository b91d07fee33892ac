-- Bytes of params, result and error that are kept of an operation, and of its progress once it has finished;
-- 0 once they were given up (gateway/store/operations.py).
ALTER TABLE ice_operations ADD COLUMN kept INTEGER NOT NULL DEFAULT 0 CHECK (kept >= 0);
UPDATE ice_operations SET kept = length(CAST(params AS BLOB)) + coalesce(length(CAST(result AS BLOB)), 0)
    + coalesce(length(CAST(error AS BLOB)), 0)
    + CASE WHEN finished IS NULL THEN 0 ELSE coalesce(length(CAST(progress AS BLOB)), 0) END;

-- What an ICE keeps is counted, and the oldest found, without a look at the rows.
CREATE INDEX ice_operations_kept ON ice_operations (ice_name, finished, kept) WHERE kept > 0;
CREATE INDEX ice_operations_emptied ON ice_operations (finished) WHERE kept = 0;
