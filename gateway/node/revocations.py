"""What an action ended: the sessions that this node dropped because of its events.

An action's answer waits for this, so that an admin who reads it knows that the ICE is gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.core.audit_event import Entry
from gateway.core.revocation import Confirmation, Drop, drop
from gateway.core.times import Clock
from gateway.node.hub import ClosedSession
from gateway.store.acknowledgements import CONFIRMATION, Acknowledgements
from gateway.store.engine import Appended

_KEPT: Final = 30.0
"""Seconds for which the outcome of an event is kept for whoever asks."""


class _Hub(Protocol):
    def apply(self, entry: Entry) -> list[ClosedSession]: ...


class _Log(Protocol):
    async def reached(self, seq: int) -> None: ...


class Revocations:
    """Applies events to the hub and remembers for a while what each of them ended."""

    def __init__(
        self,
        hub: _Hub,
        log: _Log,
        *,
        node: str,
        clock: Clock,
        observe: Callable[[float], None],
        others: Acknowledgements | None = None,
        patience: float = CONFIRMATION,
    ) -> None:
        self._hub = hub
        self._log = log
        self._node = node
        self._clock = clock
        self._observe = observe
        self._others = others
        self._patience = patience
        self._of: dict[int, list[Drop]] = {}
        self._order: deque[tuple[float, int]] = deque()

    def apply(self, entry: Entry) -> list[ClosedSession]:
        """Let the hub act on an event; called by the tail."""
        dropped = self._hub.apply(entry)
        if not dropped:
            return []
        elapsed = self._clock() - entry.event.at
        self._of[entry.seq] = [
            drop(one.session, self._node, one.code, elapsed, one.ice_name) for one in dropped
        ]
        for one in self._of[entry.seq]:
            self._observe(one.elapsed_ms / 1000)
        now = asyncio.get_running_loop().time()
        self._order.append((now + _KEPT, entry.seq))
        while self._order[0][0] < now:
            del self._of[self._order.popleft()[1]]
        return dropped

    async def confirm(self, logged: Sequence[Appended]) -> Confirmation:
        """Wait until every node has acted on what an action has logged, at most `patience` seconds."""
        if not logged:
            return Confirmation([], [])
        seqs = [one.seq for one in logged]
        deadline = asyncio.get_running_loop().time() + self._patience
        late = []
        try:
            async with asyncio.timeout_at(deadline):
                await self._log.reached(max(seqs))
        except TimeoutError:
            late.append(self._node)
        dropped = [one for seq in seqs for one in self._of.get(seq, ())]
        if self._others is not None:
            late += await self._others.late(max(seqs), deadline)
            dropped += await self._others.dropped(logged)
        return Confirmation(dropped, late)
