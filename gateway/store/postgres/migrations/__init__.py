"""The schema on PostgreSQL, as numbered SQL files. A number means the same schema as on SQLite."""
