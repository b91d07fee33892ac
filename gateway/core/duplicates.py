"""Detects that two copies of an ICE run, by the instances that its hellos name. Pure. Source: docs/protocol.md.

A client makes a random `instance` at each start. After a restart, or on a new machine, there is a new instance,
and the old one never comes back. Of two copies that run, each supersedes the session of the other, so superseded
instances come back again and again. A copied state folder and a cloned image do this.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec
from msgspec.structs import replace

WINDOW: Final = timedelta(minutes=15)
"""Two returns within this time mean that two copies run."""
EVENT_EVERY: Final = timedelta(days=1)
"""The least time between two events about one ICE."""
MAX_SUPERSEDED: Final = 8
"""Superseded instances that are remembered of an ICE, the newest ones."""


class Copy(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One running client of an ICE: its instance, and from where its newest session came."""

    instance: str
    address: str
    hostname: str | None


class History(msgspec.Struct, frozen=True, gc=False):
    """What is remembered of an ICE's hellos.

    `superseded` are instances that others have replaced, oldest first. `returned` is when one of them last
    came back.
    """

    newest: Copy
    superseded: tuple[str, ...] = ()
    returned: datetime | None = None


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Two copies of an ICE run: one came back, and superseded the other."""

    returned: Copy
    superseded: Copy


def follow(history: History | None, copy: Copy, at: datetime) -> tuple[History, Duplicate | None]:
    """The history after a hello of `copy` at `at`, and what it proves."""
    if history is None:
        return History(copy), None
    other = history.newest
    if copy.instance == other.instance:
        return replace(history, newest=copy), None
    others = [one for one in history.superseded if one != copy.instance]
    superseded = (*others, other.instance)[-MAX_SUPERSEDED:]
    if copy.instance not in history.superseded:
        return History(copy, superseded, history.returned), None
    # A clock that was set back must not hide the second return.
    twice = history.returned is not None and abs(at - history.returned) <= WINDOW
    return History(copy, superseded, at), Duplicate(copy, other) if twice else None


def event_is_due(logged: datetime | None, at: datetime) -> bool:
    """Whether a duplicate found at `at` is to be logged; `logged` is the time of the last such event."""
    return logged is None or abs(at - logged) >= EVENT_EVERY
