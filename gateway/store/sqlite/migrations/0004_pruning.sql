-- An event may be deleted behind a checkpoint: an event that names the last one pruned, and its digest.

CREATE INDEX ice_events_prune ON ice_events (seq) WHERE action = 'prune';

DROP TRIGGER ice_events_no_delete;

CREATE TRIGGER ice_events_no_delete BEFORE DELETE ON ice_events
WHEN NOT EXISTS (
    SELECT 1 FROM ice_events
    WHERE action = 'prune' AND seq > OLD.seq AND json_extract(detail, '$.pruned_to') >= OLD.seq
)
BEGIN
    SELECT RAISE(ABORT, 'ice_events is append-only');
END;
