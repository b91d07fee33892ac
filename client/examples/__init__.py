"""Example handlers, to use or to start from: modules for `ice-client run --handlers`.

Each shows everything that a handler needs: settings, checked params, progress, a result, an error with its
own code, and cancellation. The client itself imports none of them.

`web_page` does `scrape`, `pytest_debug` does `debug`, `pytest_suites` does `execute`, `remote-execute` and `schedule`.
`conformance` does what `ice-client conformance` asks of an ICE program.
"""
