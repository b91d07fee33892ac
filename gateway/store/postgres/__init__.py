"""The engine of a fleet: PostgreSQL, served by any number of nodes. Needs the `postgres` extra."""
