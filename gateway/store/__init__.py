"""Everything durable: SQL, one noun a file, and the key file. No other package holds SQL.

`engine` defines what a database engine does; `sqlite/` and `postgres/` are the two engines, which share the SQL.
`tables` lists the tables. Functions here turn rows into frozen values, and an engine's errors into those of
`engine`.
"""
