"""Clocks that no one can set: this machine's, and one that all nodes share.

Tested in tests/unit/node/test_lease.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

if sys.platform == "linux":

    def boottime() -> float:
        """Seconds of a monotonic clock that also counts time in suspend (clock_gettime(2), CLOCK_BOOTTIME)."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)
else:
    boottime = time.monotonic


class SharedClock:
    """The lease time: a count of seconds on which all nodes agree to within a few seconds.

    The database stores it and the nodes advance it. Between two readings from the database it follows
    `monotonic`; a single gateway uses only `monotonic`.
    """

    __slots__ = ("_monotonic", "_offset")

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._offset = 0.0

    def __call__(self) -> float:
        """The lease time now."""
        return self._monotonic() + self._offset

    def set(self, now: float) -> None:
        """Adopt a time just read from the database."""
        self._offset = now - self._monotonic()
