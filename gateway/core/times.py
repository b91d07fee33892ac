"""Times as text: RFC 3339 in UTC with a `Z`, always 27 characters, so that text sorts as time does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

Clock = Callable[[], datetime]
"""Gives the present as an aware time in UTC; tests give another."""


_LENGTH: Final = 27
_TO_SECONDS: Final = 19
_encode: Final = msgspec.json.Encoder().encode
LONGEST: Final = 36_500 * 86_400.0
"""Seconds, a hundred years: what is longer is meant to be for ever, or does not fit a calendar."""


def utc_now() -> datetime:
    """The present."""
    return datetime.now(UTC)


def to_text(moment: datetime) -> str:
    """`2026-11-22T09:30:00.000000Z`."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    # As `isoformat`, at a tenth of its time; without a fraction where that is 0.
    text = _encode(moment)[1:-1].decode()
    return text if len(text) == _LENGTH else f"{text[:_TO_SECONDS]}.000000Z"


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
