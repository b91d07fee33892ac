"""How long a node may act on what it knows: others count on it to stop when its lease has run out."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

if sys.platform == "linux":

    def boottime() -> float:
        """Seconds of a clock that nobody sets and that no suspend stops (clock_gettime(2), CLOCK_BOOTTIME)."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)
else:
    boottime = time.monotonic


class Lease:
    """Valid for `seconds` from the moment at which this node last knew of every change."""

    __slots__ = ("_clock", "seconds", "until")

    def __init__(self, seconds: float, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self.seconds = seconds
        self.until = -math.inf
        """When it runs out, by `boottime`."""

    @property
    def valid(self) -> bool:
        """Whether this node may admit, and act on what its ICEs send."""
        return self._clock() < self.until

    def renewed(self, knew: float) -> None:
        """It was renewed by a node that at `knew` knew of every change: before it asked to renew it."""
        self.until = max(self.until, knew + self.seconds)

    @classmethod
    def forever(cls) -> Lease:
        """Of a gateway that is alone on its database: nobody else ends what it knows."""
        lease = cls(math.inf, lambda: 0.0)
        lease.until = math.inf
        return lease
