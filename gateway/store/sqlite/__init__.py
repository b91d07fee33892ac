"""The embedded engine: one SQLite file, served by one process."""
