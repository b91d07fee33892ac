"""Rules and values: what an ICE, an operation, a token, a proof and an event are, and what may become of each.

Pure: nothing here does I/O or reads a clock. The state table of an ICE is `ice`. What needs a file, a
database or a socket lives in the packages above.
"""
