"""The schema on SQLite, as numbered SQL files. A number means the same schema as on PostgreSQL."""
