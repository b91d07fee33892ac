"""What an ICE sees that comes to nodes: its admissions, and which of its requests are answered until when."""

from __future__ import annotations

import asyncio
import contextlib
import time

from tests.support.ice import Connection, Nomad, Refused
from tests.support.node import Node
from tests.torture.field import HANDSHAKE
from tests.torture.sightings import Sightings, Visit

_PROBE = 0.1
"""Seconds between two requests of an ICE over each of its sessions."""


class Observer:
    """Has ICEs connect, and notes what they see; `over` ends it."""

    def __init__(self, seen: Sightings) -> None:
        self.seen = seen
        self.over = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    async def visit(self, name: str, ice: Nomad, node: Node, generation: int = 1) -> Visit:
        """Connect once, and use the session until it ends."""
        visit = Visit(name, node.name, generation, time.monotonic())
        self.seen.visits.append(visit)
        try:
            async with asyncio.timeout(HANDSHAKE):
                connection = await ice.at(node).connect()
        except Refused as refused:
            visit.refused, visit.ended = refused.code, time.monotonic()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        else:
            visit.welcomed, visit.session = time.monotonic(), connection.welcome["session"]
            connection.patience = None
            self.tasks.add(asyncio.create_task(self._use(visit, connection)))
        return visit

    async def _use(self, visit: Visit, connection: Connection) -> None:
        probing = asyncio.create_task(self._probe(visit, connection))
        ending = asyncio.create_task(self.over.wait())
        listening = asyncio.create_task(self._listen(visit, connection))
        await asyncio.wait((ending, listening), return_when=asyncio.FIRST_COMPLETED)
        for task in (probing, ending, listening):
            task.cancel()
        await asyncio.gather(probing, ending, listening, return_exceptions=True)
        connection.writer.transport.abort()

    async def _probe(self, visit: Visit, connection: Connection) -> None:
        while True:
            request = {"jsonrpc": "2.0", "method": "no.such.method", "id": str(time.monotonic())}
            connection.send(request)
            await asyncio.sleep(_PROBE)

    async def _listen(self, visit: Visit, connection: Connection) -> None:
        """Note what was answered, by when it was sent; returns at the end of the session."""
        with contextlib.suppress(AssertionError, OSError):  # it was closed
            while True:
                answer = await connection.message()
                if "id" in answer and "method" not in answer:
                    visit.acted = max(visit.acted, float(answer["id"]))
        visit.ended = time.monotonic()
        close = connection.core.close_rcvd
        visit.closed = None if close is None else close.code

    async def stop(self) -> None:
        self.over.set()
        await asyncio.gather(*self.tasks)
