"""What an action ended: the sessions that this node dropped because of its events.

An action's answer waits for this, so that an admin who reads it knows that the ICE is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.core.audit_event import Entry
from gateway.core.revocation import Confirmation, Drop
from gateway.core.times import Clock
from gateway.node.hub import ClosedSession
from gateway.store import nodes
from gateway.store.engine import Appended, StoreUnavailable

CONFIRMATION: Final = 2.0
"""Seconds that a node has to confirm, once per action."""
_LOOK_AFTER: Final = 0.002
"""Seconds until the other nodes are asked for again, twice as long each time,"""
_LOOK_EVERY: Final = 0.05
"""but no longer than this."""
_ONE_LOOK: Final = 0.2
"""Seconds for the other nodes to be asked for where there is no time left."""
_UNKNOWN: Final = "other nodes"
"""Where the store did not even say which there are."""
_KEPT: Final = 30.0
"""Seconds for which the outcome of an event is kept for whoever asks."""


class _Hub(Protocol):
    def apply(self, entry: Entry) -> list[ClosedSession]: ...


class _Tail(Protocol):
    async def reached(self, seq: int) -> None: ...


class _Others(Protocol):
    async def behind(self, seq: int) -> list[str]: ...

    async def dropped(self, seqs: Sequence[int]) -> list[nodes.Dropped]: ...


class Revocations:
    """Applies events to the hub and remembers for a while what each of them ended."""

    def __init__(
        self,
        hub: _Hub,
        node: str,
        clock: Clock,
        observe: Callable[[float], None],
        others: _Others | None = None,
    ) -> None:
        self._hub = hub
        self._node = node
        self._clock = clock
        self._observe = observe
        self._others = others
        self._of: dict[int, list[Drop]] = {}
        self._order: deque[tuple[float, int]] = deque()

    def apply(self, entry: Entry) -> list[ClosedSession]:
        """Let the hub act on an event; called by the tail."""
        dropped = self._hub.apply(entry)
        if not dropped:
            return []
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
        return dropped

    async def confirm(self, tail: _Tail, logged: Sequence[Appended]) -> Confirmation:
        """Wait until every node has acted on what an action has logged, at most `CONFIRMATION` seconds."""
        if not logged:
            return Confirmation([], [])
        seqs = [one.seq for one in logged]
        deadline = asyncio.get_running_loop().time() + CONFIRMATION
        late = []
        try:
            async with asyncio.timeout_at(deadline):
                await tail.reached(max(seqs))
        except TimeoutError:
            late.append(self._node)
        late += await self._late(max(seqs), deadline)
        dropped = [drop for seq in seqs for drop in self._of.get(seq, ())]
        return Confirmation(dropped + await self._elsewhere(logged), late)

    async def _late(self, seq: int, deadline: float) -> list[str]:
        """Wait for the other nodes until `deadline`, by the loop's time; those that are late."""
        if self._others is None:
            return []
        late, pause = [_UNKNOWN], _LOOK_AFTER
        # Once at the least, however late this node itself is: whoever is not named has confirmed.
        deadline = max(deadline, asyncio.get_running_loop().time() + _ONE_LOOK)
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout_at(deadline):
                while late := await self._others.behind(seq):
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LOOK_EVERY)
        return late

    async def _elsewhere(self, logged: Sequence[Appended]) -> list[Drop]:
        """What the other nodes have told; it took until now at the most, by this node's clock."""
        if self._others is None:
            return []
        now, began = self._clock(), {one.seq: one.event.at for one in logged}
        try:
            told = await self._others.dropped(list(began))
        except StoreUnavailable:
            return []
        drops = []
        for one in told:
            elapsed = max(0.0, (now - began[one.seq]).total_seconds())
            drops.append(
                Drop(one.session, one.node, one.code, round(elapsed * 1000, 3), one.ice_name)
            )
        return drops
