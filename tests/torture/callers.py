"""An admin who calls several nodes, and how they are told that an ICE is out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.support.harness import API
from tests.support.ice import Ice, Refused
from tests.support.node import Node
from tests.support.postgres import Postgres
from tests.torture.story import Call, Told

PATIENCE = 30.0
EVERY = 0.1
"""Seconds between two attempts."""
UNKNOWN = "other nodes"
"""Stands in `unconfirmed` for all nodes but the one that answers."""
_HANDSHAKE = 10.0
_TAKEN_BEFORE = (409, 412)
"""Answers to an action that was done by an earlier attempt, whose answer was lost."""


@dataclass
class Taken:
    """How an admin was told that an ICE is out: when, and who had not confirmed.

    `generation` is the last one that is out; `requested` is when the request began that was answered.
    """

    ice_name: str
    action: str
    generation: int
    requested: float
    at: float
    unconfirmed: list[str]
    token: str | None
    lease: float
    elapsed: list[float] = field(default_factory=list)

    def out_at(self, node: str) -> float:
        """From when on nothing may go on at a node by what was before."""
        late = node in self.unconfirmed or UNKNOWN in self.unconfirmed
        return self.at + (self.lease if late else 0.0)


@dataclass
class Callers:
    """The nodes, their database, and an admin.

    `patience` is in seconds, for one answer.
    """

    nodes: Sequence[Node]
    server: Postgres
    session: aiohttp.ClientSession
    token: str
    patience: float = PATIENCE
    told: list[Told] = field(default_factory=list)
    """What was answered to each attempt to take an ICE out."""

    async def call(
        self, node: Node, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        """A call of the API; status 0 where there was no answer."""
        try:
            async with self.session.request(
                method,
                f"{node.url}{API}{path}",
                json=body,
                headers={"Authorization": f"Bearer {self.token}", **headers},
                timeout=aiohttp.ClientTimeout(self.patience),
            ) as response:
                return response.status, await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0, None

    async def done(self, status: int, method: str, path: str, body: Any = None) -> Any:
        """A call that has to be answered with `status` by one node or another."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for node in self.nodes:
                    got, answer = await self.call(node, method, path, body)
                    if got == status:
                        return answer
                await asyncio.sleep(EVERY)

    async def take_out(
        self, acting: Node, name: str, action: str, lease: float, generation: int = 1
    ) -> Taken:
        """Take an ICE of this generation out at a node, as often as that is needed."""
        call = Call("root", action, (name,))
        async with asyncio.timeout(2 * PATIENCE):
            while True:
                requested = time.monotonic()
                status, answer = await self.call(
                    acting, "POST", f"/ices/{name}/{action}", **{"If-Match": f'"{generation}"'}
                )
                now = time.monotonic()
                # A store that failed may have made the change all the same.
                self.told.append(Told(call, status if 0 < status < 500 else None, answer))
                what = name, action, generation, requested, now
                if status == 200:
                    elapsed = [drop["elapsed_ms"] for drop in answer["dropped"]]
                    return Taken(*what, answer["unconfirmed"], answer.get("token"), lease, elapsed)
                if status in _TAKEN_BEFORE:
                    names = [node.name for node in self.nodes]
                    return Taken(*what, names, None, lease)
                await asyncio.sleep(EVERY)

    async def all_known(self, patience: float = PATIENCE) -> None:
        """Wait until every node is there and has acted on every event. Raises `TimeoutError`."""
        names = [f"{node.name}|0" for node in self.nodes]
        async with asyncio.timeout(patience):
            while True:
                if await self.lags() == names and await self._ready():
                    return
                await asyncio.sleep(EVERY)

    async def lags(self) -> list[str]:
        """The nodes that are not gone, each as `name|events that it has not acted on`."""
        try:
            rows = await asyncio.to_thread(
                self.server.sql,
                "SELECT n.name, h.seq - n.seen_seq FROM ice_nodes n, ice_head h"
                " WHERE n.gone = 0 ORDER BY n.name",
                database="ice",
            )
        except RuntimeError:
            return []
        return rows.split()

    async def _ready(self) -> bool:
        for node in self.nodes:
            try:
                patience = aiohttp.ClientTimeout(self.patience)
                async with self.session.get(f"{node.url}/readyz", timeout=patience) as response:
                    if response.status != 200:
                        return False
            except (aiohttp.ClientError, TimeoutError):
                return False
        return True


async def admitted(ice: Ice) -> bool | None:
    """Whether it is admitted now; None where there was no answer."""
    try:
        async with asyncio.timeout(_HANDSHAKE):
            connection = await ice.connect()
    except Refused:
        return False
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return None
    await connection.close()
    return True
