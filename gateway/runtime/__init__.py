"""The process and its machine: settings, logs, signals, clocks, files, sockets, TLS, and requests to other servers.

Nothing here knows what an ICE is.
"""
