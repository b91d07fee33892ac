-- The newest failed logins are looked for before another is written.
CREATE INDEX ice_events_login_failed ON ice_events (at) WHERE action = 'login-failed';
