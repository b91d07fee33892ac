"""The sessions that an action dropped, as its response reports them. Pure.

Tested in tests/unit/node/test_revocations.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

CONFIRMATION: Final = 2.0
"""Seconds for the nodes to confirm an action."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A session that an action ended, its node, and the milliseconds from the start of the action."""

    session: str
    node: str
    code: int
    elapsed_ms: float
    ice_name: str


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The sessions that were dropped, and the nodes that did not confirm in time."""

    dropped: list[Drop]
    unconfirmed: list[str]


def drop(session: str, node: str, code: int, elapsed: timedelta, ice_name: str) -> Drop:
    """A drop that took `elapsed`; a negative duration, of a clock that was set back, counts as 0."""
    milliseconds = round(max(0.0, elapsed.total_seconds()) * 1000, 3)
    return Drop(session, node, code, milliseconds, ice_name)
