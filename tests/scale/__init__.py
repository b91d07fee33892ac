"""Many ICEs at several nodes on one PostgreSQL: `python -m tests.scale`."""
