"""The former name of `client.examples.pytest_suites`, which existing `--handlers` options use."""

from client.examples.pytest_suites import register

__all__ = ["register"]
