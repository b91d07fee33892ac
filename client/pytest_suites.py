"""The former name of `client.examples.pytest_suites`, which existing `--handlers` options use.

Tested in tests/client/test_client_handlers.py.
"""

from client.examples.pytest_suites import register

__all__ = ["register"]
