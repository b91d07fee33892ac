"""What an action ended: the sessions that this node dropped because of its events.

An action's answer waits for this, so that an admin who reads it knows that the ICE is gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.event import Entry
from gateway.hub import Dropped
from gateway.times import Clock

CONFIRMATION: Final = 2.0
"""Seconds that a node has to confirm, once per action."""
_KEPT: Final = 30.0
"""Seconds for which the outcome of an event is kept for whoever asks."""


class _Hub(Protocol):
    def apply(self, entry: Entry) -> list[Dropped]: ...


class _Tail(Protocol):
    async def reached(self, seq: int) -> None: ...


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


class Drops:
    """Applies events to the hub and remembers for a while what each of them ended."""

    def __init__(
        self,
        hub: _Hub,
        node: str,
        clock: Clock,
        observe: Callable[[float], None],
    ) -> None:
        self._hub = hub
        self._node = node
        self._clock = clock
        self._observe = observe
        self._of: dict[int, list[Drop]] = {}
        self._order: deque[tuple[float, int]] = deque()

    def apply(self, entry: Entry) -> None:
        """Let the hub act on an event; called by the tail."""
        dropped = self._hub.apply(entry)
        if not dropped:
            return
        elapsed = max(0.0, (self._clock() - entry.event.at).total_seconds())
        for _ in dropped:
            self._observe(elapsed)
        self._of[entry.seq] = [
            Drop(item.session, self._node, item.code, round(elapsed * 1000, 3), item.ice_name)
            for item in dropped
        ]
        now = asyncio.get_running_loop().time()
        self._order.append((now + _KEPT, entry.seq))
        while self._order[0][0] < now:
            del self._of[self._order.popleft()[1]]

    async def confirm(self, tail: _Tail, seqs: Sequence[int]) -> Confirmation:
        """Wait until the events `seqs` have been applied, at most `CONFIRMATION` seconds."""
        if not seqs:
            return Confirmation([], [])
        unconfirmed: list[str] = []
        try:
            async with asyncio.timeout(CONFIRMATION):
                await tail.reached(max(seqs))
        except TimeoutError:
            unconfirmed.append(self._node)
        return Confirmation([drop for seq in seqs for drop in self._of.get(seq, ())], unconfirmed)
