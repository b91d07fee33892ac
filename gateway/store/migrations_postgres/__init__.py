"""The schema on PostgreSQL. Its numbers are those of `migrations`: a number is one schema on both."""
