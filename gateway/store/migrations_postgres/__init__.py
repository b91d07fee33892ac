"""The schema on PostgreSQL. A number stands for the same schema as in `migrations`."""
