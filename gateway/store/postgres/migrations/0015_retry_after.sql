-- The seconds after which an ICE was told to reconnect, as its connection was closed.
ALTER TABLE ice_connections ADD COLUMN retry_after DOUBLE PRECISION;
