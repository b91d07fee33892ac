"""How long a node may act on what it knows: others count on it to stop when its lease has run out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from gateway.runtime.clocks import boottime
from gateway.store.nodes import Renewal


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
        lease = cls(math.inf, lambda: 0.0)  # it is asked at each frame
        lease.until = math.inf
        return lease


class Peers:
    """Finds the nodes that have vanished: they do not renew their lease for as long as it lasts.

    By this process's own clock, from when it first saw the last renewal. So it is late rather than early.
    """

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._since: dict[Renewal, float] = {}

    def look(self, seen: Iterable[Renewal]) -> list[Renewal]:
        """Those of the nodes just `seen` that have vanished.

        One may be renewing its lease at this moment: whoever acts on this compares `renewals` and swaps.
        """
        now, before = self._clock(), self._since
        self._since = {one: before.get(one, now) for one in seen}
        return [one for one, since in self._since.items() if now - since > one.lease]
