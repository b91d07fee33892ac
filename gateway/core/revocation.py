"""What an action ended, as its answer tells it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Drop:
    """A session that an action ended, on which node, and how long after the action began."""

    session: str
    node: str
    code: int
    elapsed_ms: float
    ice_name: str


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The sessions that were dropped, and the nodes that have not confirmed in time."""

    dropped: list[Drop]
    unconfirmed: list[str]


def drop(session: str, node: str, code: int, elapsed: timedelta, ice_name: str) -> Drop:
    """A drop that took `elapsed`; a clock that was set back makes no negative time."""
    milliseconds = round(max(0.0, elapsed.total_seconds()) * 1000, 3)
    return Drop(session, node, code, milliseconds, ice_name)
