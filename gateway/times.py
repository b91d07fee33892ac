"""Times as text: RFC 3339 in UTC with a `Z`, always 27 characters, so that text sorts as time does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

Clock = Callable[[], datetime]
"""Gives the present as an aware time in UTC; tests give another."""


_WITHOUT_OFFSET: Final = 26
LONGEST: Final = 36_500 * 86_400.0
"""Seconds, a hundred years: what is longer is meant to be for ever, or does not fit a calendar."""


def utc_now() -> datetime:
    """The present."""
    return datetime.now(UTC)


@lru_cache(256)  # of one action or session the same moment is written several times
def to_text(moment: datetime) -> str:
    """`2026-11-22T09:30:00.000000Z`."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds")[:_WITHOUT_OFFSET] + "Z"


def from_text(text: str) -> datetime:
    """The reverse of `to_text`. Raises ValueError."""
    return datetime.fromisoformat(text)


def later(moment: datetime, seconds: float) -> datetime | None:
    """`moment` plus `seconds`, or None where 0 stands for never."""
    return moment + timedelta(seconds=seconds) if seconds else None


def to_text_or_none(moment: datetime | None) -> str | None:
    """`to_text` for a time that may be missing."""
    return None if moment is None else to_text(moment)


def from_text_or_none(text: str | None) -> datetime | None:
    """`from_text` for a time that may be missing."""
    return None if text is None else from_text(text)
