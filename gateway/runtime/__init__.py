"""The process and its machine: settings, logs, signals, clocks, files, sockets, TLS.

Nothing here knows what an ICE is.
"""
