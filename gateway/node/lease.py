"""A node's own lease, and the leases of its peers as it sees them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from gateway.runtime.clocks import boottime
from gateway.store.nodes import Renewal


class Lease:
    """How long this node may act on what it knows; other nodes rely on it to stop after that.

    It is valid for `seconds` from the last moment at which this node knew every committed change.
    """

    __slots__ = ("_monotonic", "seconds", "until")

    def __init__(self, seconds: float, monotonic: Callable[[], float] = boottime) -> None:
        self._monotonic = monotonic
        self.seconds = seconds
        self.until = -math.inf
        """When it expires, by `boottime`."""

    @property
    def valid(self) -> bool:
        """Whether this node may admit ICEs and act on their messages."""
        return self._monotonic() < self.until

    @property
    def left(self) -> float:
        """Seconds until it expires, negative once it has."""
        return self.until - self._monotonic()

    def renew(self, caught_up_at: float) -> None:
        """Extend the lease, counted from a time at which this node knew every committed change."""
        self.until = max(self.until, caught_up_at + self.seconds)

    @classmethod
    def forever(cls) -> Lease:
        """The lease of a gateway that is the only one on its database."""
        lease = cls(math.inf, lambda: 0.0)  # a cheap clock: every frame reads it
        lease.until = math.inf
        return lease


class Peers:
    """Finds nodes that have vanished: those that did not renew a lease before it expired.

    A lease is timed by this process's clock from the first sight of its last renewal, so a node may be found late
    but never early.
    """

    def __init__(self, monotonic: Callable[[], float] = boottime) -> None:
        self._monotonic = monotonic
        self._since: dict[Renewal, float] = {}

    def vanished(self, renewals: Iterable[Renewal]) -> list[Renewal]:
        """The nodes that have vanished, among the renewals just read.

        A node may renew at this very moment: the caller must compare `renewals` when it writes.
        """
        now, before = self._monotonic(), self._since
        self._since = {one: before.get(one, now) for one in renewals}
        return [one for one, since in self._since.items() if now - since > one.lease]
