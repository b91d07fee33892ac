"""Handlers to use as they are, or to start from: modules for `ice-client run --handlers`.

Each shows the whole of what a handler needs: settings, checked params, progress, a result, an error with a
code of its own, and cancellation. The client itself imports none of them.
"""
