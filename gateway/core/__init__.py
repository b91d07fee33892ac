"""Rules and values: what an ICE, an operation, a token, a proof and an event are, and how each may change.

Pure: nothing here does I/O or reads a clock. `ice` has the state table of an ICE. Code that needs a file, a
database or a socket is in the packages above.
"""
