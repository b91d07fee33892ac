"""Reads bodies and filters by the API's own code, for commands that work on the database.

That code is imported where it is needed: it takes longer than most commands.

Tested in tests/gateway/cli/test_cli.py and tests/gateway/cli/test_schedules.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from gateway.cli.admin_port import Body, Refused

T = TypeVar("T")


@contextlib.contextmanager
def parsing() -> Iterator[None]:
    """Refuse what the API refuses, in its words."""
    from gateway.web.responses import RequestRefused

    try:
        yield
    except RequestRefused as error:
        raise Refused(error.problem.code, error.problem.detail) from None


def converted(body: Body, shape: type[T]) -> T:
    """A body of the API as `shape`, checked as there; call it within `parsing`."""
    from gateway.admin.api.requests import decode_as

    return decode_as(msgspec.json.encode(body), shape)
