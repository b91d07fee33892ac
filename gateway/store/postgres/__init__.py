"""The engine for several gateways on one database: PostgreSQL. Needs the `postgres` extra."""
