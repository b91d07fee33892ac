"""Waits until the nodes of a database have acted on the events of an action.

Only where several gateways serve the database: the only gateway of a file waits for no other node.

Tested in tests/unit/node/test_revocations.py and tests/cluster/test_cluster.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from gateway.core.revocation import CONFIRMATION, Confirmation, Drop, drop
from gateway.core.times import Clock
from gateway.store.engine import AppendedEvent, StoreUnavailable
from gateway.store.nodes import Nodes

_LOOK_AFTER: Final = 0.002
"""Seconds until the table of nodes is read again; twice as long each time,"""
_LOOK_EVERY: Final = 0.05
"""but at most this."""
_ONE_LOOK: Final = 0.2
"""Seconds for one read of the table of nodes if no time is left."""
_UNKNOWN: Final = "other nodes"
"""The name to report if the store could not be read."""


class Acknowledgements:
    """Waits for the nodes; `instance` and `name` are those of the node that waits, empty for a command."""

    def __init__(self, nodes: Nodes, clock: Clock, instance: str = "", name: str = "") -> None:
        self._nodes = nodes
        self._clock = clock
        self._instance = instance
        self._name = name

    async def confirm(self, logged: Sequence[AppendedEvent]) -> Confirmation:
        """Wait until every node has acted on these events, at most `CONFIRMATION` seconds."""
        if not logged:
            return Confirmation([], [])
        deadline = asyncio.get_running_loop().time() + CONFIRMATION
        late = await self.late(max(one.seq for one in logged), deadline)
        return Confirmation(await self.dropped(logged), late)

    async def late(self, seq: int, deadline: float) -> list[str]:
        """Wait until `deadline`, in the loop's time; returns the names of the nodes that are late."""
        late, pause = [_UNKNOWN], _LOOK_AFTER
        # Read at least once, even after the deadline: a node that is not named counts as confirmed.
        deadline = max(deadline, asyncio.get_running_loop().time() + _ONE_LOOK)
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout_at(deadline):
                while late := await self._nodes.behind(seq, self._instance):
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LOOK_EVERY)
        return late

    async def dropped(self, logged: Sequence[AppendedEvent]) -> list[Drop]:
        """The sessions that other nodes have dropped because of these events, each with an upper bound of its time."""
        now = self._clock()
        began: dict[int, datetime] = {one.seq: one.event.at for one in logged}
        try:
            found = await self._nodes.dropped(list(began), self._name)
        except StoreUnavailable:
            return []
        return [
            drop(one.session, one.node, one.code, now - began[one.seq], one.ice_name)
            for one in found
        ]
