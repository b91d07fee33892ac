"""A gateway that lives long among ICEs and admins: `python -m tests.soak`."""
