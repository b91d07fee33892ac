-- The audit log by action, newest first, without reading it to its end for a rare action.
CREATE INDEX ice_events_action ON ice_events (action, seq);
