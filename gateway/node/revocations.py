"""Remembers which sessions this node dropped because of which event, and confirms the drops to actions.

An action answers only after this confirmation, so that the admin knows that the ICE is gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.core.audit_event import LogEntry
from gateway.core.revocation import CONFIRMATION, Confirmation, Drop, drop
from gateway.core.times import Clock
from gateway.node.hub import ClosedSession, Hub
from gateway.node.log_follower import LogFollower
from gateway.store.acknowledgements import Acknowledgements
from gateway.store.engine import AppendedEvent

_KEEP: Final = 30.0
"""Seconds for which the drops of an event are kept."""


class Revocations:
    """Applies events to the hub, and remembers for a while which sessions each of them ended.

    Args:
        hub: the sessions of this node.
        log: the event log that this node follows.
        node: the name of this node.
        clock: the present.
        observe: is called with the seconds from an action to each of its drops.
        acknowledgements: of the other nodes, if several serve the database.
        timeout: seconds within which all nodes have to confirm.
    """

    def __init__(
        self,
        hub: Hub[Any],
        log: LogFollower,
        *,
        node: str,
        clock: Clock,
        observe: Callable[[float], None],
        acknowledgements: Acknowledgements | None = None,
        timeout: float = CONFIRMATION,
    ) -> None:
        self._hub = hub
        self._log = log
        self._node = node
        self._clock = clock
        self._observe = observe
        self._acknowledgements = acknowledgements
        self.timeout = timeout
        self._drops: dict[int, list[Drop]] = {}
        self._expiries: deque[tuple[float, int]] = deque()

    def apply(self, entry: LogEntry) -> list[ClosedSession]:
        """Drop the sessions that an event of the log ended; returns them."""
        dropped = self._hub.apply(entry)
        if not dropped:
            return []
        elapsed = self._clock() - entry.event.at
        self._drops[entry.seq] = [
            drop(one.session, self._node, one.code, elapsed, one.ice_name) for one in dropped
        ]
        for one in self._drops[entry.seq]:
            self._observe(one.elapsed_ms / 1000)
        now = asyncio.get_running_loop().time()
        self._expiries.append((now + _KEEP, entry.seq))
        while self._expiries[0][0] < now:
            del self._drops[self._expiries.popleft()[1]]
        return dropped

    async def confirm(self, logged: Sequence[AppendedEvent]) -> Confirmation:
        """Wait until every node has acted on the events of an action, or the timeout has passed."""
        if not logged:
            return Confirmation([], [])
        seqs = [one.seq for one in logged]
        deadline = asyncio.get_running_loop().time() + self.timeout
        late = []
        try:
            async with asyncio.timeout_at(deadline):
                await self._log.wait_for_event(max(seqs))
        except TimeoutError:
            late.append(self._node)
        dropped = [one for seq in seqs for one in self._drops.get(seq, ())]
        if self._acknowledgements is not None:
            late += await self._acknowledgements.late(max(seqs), deadline)
            dropped += await self._acknowledgements.dropped(logged)
        return Confirmation(dropped, late)
