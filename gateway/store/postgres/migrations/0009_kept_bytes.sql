-- Bytes of params, result and error that are kept of an operation, and of its progress once it has finished;
-- 0 once they were given up (gateway/store/operations.py).
ALTER TABLE ice_operations ADD COLUMN kept BIGINT NOT NULL DEFAULT 0 CHECK (kept >= 0);
UPDATE ice_operations SET kept = octet_length(params) + coalesce(octet_length(result), 0)
    + coalesce(octet_length(error), 0)
    + CASE WHEN finished IS NULL THEN 0 ELSE coalesce(octet_length(progress), 0) END;

-- What an ICE keeps is counted, and the oldest found, without a look at the rows.
CREATE INDEX ice_operations_kept ON ice_operations (ice_name, finished, kept) WHERE kept > 0;
CREATE INDEX ice_operations_emptied ON ice_operations (finished) WHERE kept = 0;
