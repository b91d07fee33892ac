"""SQL and nothing else: an engine a file, a noun a file.

`engine` is what an engine promises, `sqlite` the embedded one. Rows become frozen values here, and an
engine's errors become the few of `engine`; above this folder nobody sees SQL.
"""
