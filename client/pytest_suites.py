"""The former name of `client.examples.pytest_suites`, for those who have it in `--handlers`."""

from client.examples.pytest_suites import register

__all__ = ["register"]
