"""Everything durable: SQL, a noun in one file or in a few, and the key file. No other package holds SQL.

An ICE has five files: `ices` changes it and reads it in a transaction, `ice_loader` reads it for its admission,
`ice_listing` for people; `ice_filter` says which ICEs, `ice_order` in which order. `sessions` are those of ICEs,
`logins` those of the page.

`engine` defines what a database engine does; `sqlite/` and `postgres/` are the two engines, which share the SQL.
`tables` lists the tables. Functions here turn rows into frozen values, and an engine's errors into those of
`engine`.
"""
