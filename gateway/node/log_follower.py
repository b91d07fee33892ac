"""Follows the event log: the only way in which this node learns of a change.

A wake-up only shortens the wait and carries nothing that counts, so that a lost one loses no drop. A
tail that was cut off catches up from the last number it saw, then has every session compared with the
table; until then it is not `current`, and the node admits nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.core.audit_event import Entry
from gateway.runtime.clocks import boottime
from gateway.store.engine import Engine, StoreUnavailable
from gateway.store.events import Events

POLL_INTERVAL: Final = 0.05
"""Seconds between looks for commits of other processes."""
_BATCH: Final = 1000


class LogFollower:
    """Reads events after the last number it saw and hands each to `apply`, in order."""

    def __init__(
        self,
        engine: Engine,
        apply: Callable[[Entry], None],
        compare: Callable[[], Awaitable[None]],
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        """`heard` is called whenever somebody may have committed anything."""
        self._heard = heard
        self._engine = engine
        self._events = Events(engine.follow)
        self._apply = apply
        self._compare = compare
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._cut_off = True
        self._head: str | None = None
        self.position = 0
        """The number of the last event that was applied."""
        self._knew = -math.inf
        self._asked: list[tuple[float, asyncio.Future[float]]] = []
        self.fault: str | None = "the event log has not been read yet"
        """Why this node may lag behind the table; None while it is current."""

    @property
    def current(self) -> bool:
        """Whether the node knows of every change that was committed."""
        return self.fault is None

    async def start(self) -> None:
        """Begin at the end of the log: a node that has just started holds no session."""
        seq = await self._events.last()
        for entry in await self._events.after(seq - 1, 1):
            self._passed(entry)
        await self._look()

    async def run(self) -> None:
        """Follow the log until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL):
                    await self._engine.changed.wait()
            await self._look()

    async def _look(self) -> None:
        # A commit of this process needs no asking: one wait less between it and the drop.
        began, woken = boottime(), self._engine.changed.is_set()
        self._engine.changed.clear()
        try:
            if woken or self._cut_off or self._asked or await self._engine.has_changed():
                await self._catch_up()
                self._knew = began
                self._heard()
            if self._cut_off:
                await self._compare()
                self._cut_off = False
        except StoreUnavailable as error:
            self._cut_off, self.fault = True, str(error)
            self._tell(error)
            return
        self.fault = None
        self._tell(None)

    async def _catch_up(self) -> None:
        while True:
            # With the last one known, which has to be there as it was.
            found = await self._events.after(self.position - 1, _BATCH + 1)
            self._recognise(found[0] if found else None)
            entries = [entry for entry in found if entry.seq > self.position]
            for entry in entries:
                self._apply(entry)
                self._passed(entry)
            self._wake()
            if len(entries) < _BATCH:
                return
            await asyncio.sleep(0)

    def _passed(self, entry: Entry) -> None:
        self.position, self._head = entry.seq, entry.digest()

    def _recognise(self, first: Entry | None) -> None:
        """See whether this is still the log that was followed; `first` is not older than the last known.

        An older copy of the database, put in its place, would hide what it does not know of.
        """
        if first is not None and first.seq > self.position + 1:
            # Some were pruned before they were seen here: what they said stands in the table alone.
            self._cut_off, self.fault = True, "events were pruned before they were read"
        if self._head is None or (first is not None and first.seq > self.position):
            return  # nothing was known, or what was known has been pruned
        if first is None or first.digest() != self._head:
            reason = (
                f"the event log is not the one that was followed: event {self.position} is missing"
                " or another; stop the gateway, put the right database in place, start it again"
            )
            self._engine.condemn(reason)
            raise StoreUnavailable(reason)

    def _wake(self) -> None:
        waiting = []
        for seq, future in self._waiters:
            if seq > self.position:
                waiting.append((seq, future))
            elif not future.done():
                future.set_result(None)
        self._waiters = waiting

    async def know(self) -> float:
        """Wait until every change is known that was committed before now.

        Returns a time by `boottime`, not before this call, at which that began. Raises
        `StoreUnavailable`.
        """
        known: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._asked.append((boottime(), known))
        self._engine.changed.set()
        return await known

    def _tell(self, error: StoreUnavailable | None) -> None:
        asked, self._asked = self._asked, []
        for since, future in asked:
            if future.done():
                continue  # whoever asked has gone
            if error is not None:
                future.set_exception(error)
            elif self._knew >= since:
                future.set_result(self._knew)
            else:
                self._asked.append((since, future))

    async def reached(self, seq: int) -> None:
        """Wait until event `seq` has been applied here."""
        if self.position < seq:
            waiter = seq, asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter[1]
            finally:
                if waiter in self._waiters:  # whoever waited has gone away
                    self._waiters.remove(waiter)
