"""Clocks that nobody sets: of this machine, and one that all nodes read alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

if sys.platform == "linux":

    def boottime() -> float:
        """Seconds of a clock that nobody sets and that no suspend stops (clock_gettime(2), CLOCK_BOOTTIME)."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)
else:
    boottime = time.monotonic


class SharedClock:
    """Seconds of a clock that nobody sets and that all nodes read alike, to some seconds: the lease clock.

    The database keeps it and the nodes push it on. Between two times that the database tells it goes by
    `monotonic`; a gateway that is alone has no other.
    """

    __slots__ = ("_monotonic", "_offset")

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._offset = 0.0

    def __call__(self) -> float:
        """The time now."""
        return self._monotonic() + self._offset

    def told(self, now: float) -> None:
        """The database has just told the time."""
        self._offset = now - self._monotonic()
