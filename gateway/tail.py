"""Follows the event log: the only way in which this node learns of a change.

A wake-up only shortens the wait and carries nothing that counts, so that a lost one loses no drop. A
tail that was cut off catches up from the last number it saw, then has every session compared with the
table; until then it is not `current`, and the node admits nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from gateway.event import Entry
from gateway.store.engine import Engine, StoreUnavailable
from gateway.store.events import Events

POLL_INTERVAL: Final = 0.05
"""Seconds between looks for commits of other processes."""
_BATCH: Final = 1000

_log = structlog.get_logger()


class Tail:
    """Reads events after the last number it saw and hands each to `apply`, in order."""

    def __init__(
        self,
        engine: Engine,
        apply: Callable[[Entry], None],
        compare: Callable[[], Awaitable[None]],
    ) -> None:
        self._engine = engine
        self._events = Events(engine.follow)
        self._apply = apply
        self._compare = compare
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._cut_off = True
        self.position = 0
        """The number of the last event that was applied."""
        self.fault: str | None = "the event log has not been read yet"
        """Why this node may lag behind the table; None while it is current."""

    @property
    def current(self) -> bool:
        """Whether the node knows of every change that was committed."""
        return self.fault is None

    async def start(self) -> None:
        """Begin at the end of the log: a node that has just started holds no session."""
        self.position = await self._events.last()
        await self._look()

    async def run(self) -> None:
        """Follow the log until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL):
                    await self._engine.changed.wait()
            await self._look()

    async def _look(self) -> None:
        self._engine.changed.clear()
        try:
            if await self._engine.has_changed() or self._cut_off:
                await self._catch_up()
            if self._cut_off:
                await self._compare()
                self._cut_off = False
        except StoreUnavailable as error:
            if self.fault is None:
                _log.error("event log lost", reason=str(error))
            self._cut_off, self.fault = True, str(error)
            return
        if self.fault is not None:
            _log.info("event log followed", position=self.position)
            self.fault = None

    async def _catch_up(self) -> None:
        while True:
            entries = await self._events.after(self.position, _BATCH)
            for entry in entries:
                self._apply(entry)
                self.position = entry.seq
            self._wake()
            if len(entries) < _BATCH:
                return
            await asyncio.sleep(0)

    def _wake(self) -> None:
        waiting = []
        for seq, future in self._waiters:
            if seq > self.position:
                waiting.append((seq, future))
            elif not future.done():
                future.set_result(None)
        self._waiters = waiting

    async def reached(self, seq: int) -> None:
        """Wait until event `seq` has been applied here."""
        if self.position < seq:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((seq, future))
            await future
