"""Follows the event log: this node learns of changes in no other way.

A wake-up only shortens the wait and carries no data, so a lost wake-up loses no drop. After an
interruption the follower first reads on from its last event and then has every session compared with the
table. Until that is done it is not `current`, and the node admits no ICE.

Tested in tests/contract/test_log_follower.py.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.core.audit_event import LogEntry
from gateway.runtime.clocks import boottime
from gateway.runtime.eventloop import wait_at_most
from gateway.store.engine import Engine, StoreUnavailable
from gateway.store.events import Events

POLL_INTERVAL: Final = 0.5
"""Maximum seconds between two checks for commits; `Engine.changed` makes one earlier."""
RETRY_INTERVAL: Final = 0.05
"""Seconds until the next attempt after an interruption."""


class LogFollower:
    """Reads events after the last one it saw and hands each to `apply`, in order.

    Args:
        engine: the database.
        apply: acts on one event.
        compare: compares every session with the table.
        on_change: is called after any process may have committed anything.
        batch: events that are read at once.
    """

    def __init__(
        self,
        engine: Engine,
        apply: Callable[[LogEntry], None],
        compare: Callable[[], Awaitable[None]],
        on_change: Callable[[], None] = lambda: None,
        *,
        batch: int = 1000,
    ) -> None:
        self._engine = engine
        self._batch = batch
        self._events = Events(engine.follow)
        self._apply = apply
        self._compare = compare
        self._on_change = on_change
        self._waiters: set[tuple[int, asyncio.Future[None]]] = set()
        self._interrupted = True
        self._last: LogEntry | None = None
        self.position = 0
        """The number of the last event that was applied."""
        self._caught_up_at = -math.inf
        self._catch_ups: list[tuple[float, asyncio.Future[float]]] = []
        self.fault: str | None = "the event log has not been read yet"
        """Why this node may lag behind the table; None while it is current."""

    @property
    def current(self) -> bool:
        """Whether the node follows the log without interruption."""
        return self.fault is None

    async def start(self) -> None:
        """Begin at the end of the log: a node that has just started holds no session."""
        seq = await self._events.last()
        for entry in await self._events.after(seq - 1, 1):
            self._advance(entry)
        await self.poll()

    async def run(self) -> None:
        """Follow the log until cancelled."""
        while True:
            pause = RETRY_INTERVAL if self._interrupted else POLL_INTERVAL
            await wait_at_most(self._engine.changed, pause)
            await self.poll()

    async def poll(self) -> None:
        """Read what is new, once; compare the sessions after an interruption."""
        # Once `changed` is set, `has_changed` is not called: the drop is faster without it.
        began, woken = boottime(), self._engine.changed.is_set()
        self._engine.changed.clear()
        try:
            if woken or self._interrupted or self._catch_ups or await self._engine.has_changed():
                await self._read_new()
                self._caught_up_at = began
                self._on_change()
            if self._interrupted:
                await self._compare()
                self._interrupted = False
        except StoreUnavailable as error:
            self._interrupted, self.fault = True, str(error)
            self._answer_catch_ups(error)
            return
        self.fault = None
        self._answer_catch_ups(None)

    async def _read_new(self) -> None:
        while True:
            # The last applied event is read again, to check that it is still there unchanged.
            found = await self._events.after(self.position - 1, self._batch + 1)
            self._check_continuity(found[0] if found else None)
            entries = [entry for entry in found if entry.seq > self.position]
            for entry in entries:
                self._apply(entry)
                self._advance(entry)
            self._wake()
            if len(entries) < self._batch:
                return
            await asyncio.sleep(0)

    def _advance(self, entry: LogEntry) -> None:
        self.position, self._last = entry.seq, entry

    def _check_continuity(self, first: LogEntry | None) -> None:
        """Check that this is still the log that was followed; `first` is the last applied event or a later one.

        If an older copy of the database took its place, deregistrations would be missing from it.
        """
        if first is not None and first.seq > self.position + 1:
            # Pruned before they were read here: only the table shows their effect.
            self._interrupted, self.fault = True, "events were pruned before they were read"
        if self._last is None or (first is not None and first.seq > self.position):
            return  # no event was applied yet, or the last applied one was pruned
        if first is None or first.digest() != self._last.digest():
            reason = (
                f"the event log is not the one that was followed: event {self.position} is missing"
                " or different; stop the gateway, put the right database in place, start it again"
            )
            self._engine.condemn(reason)
            raise StoreUnavailable(reason)

    def _wake(self) -> None:
        for seq, future in self._waiters:
            if seq <= self.position and not future.done():
                future.set_result(None)

    async def catch_up(self) -> float:
        """Wait until every event is applied that was committed before this call.

        Returns a time by `boottime`, not before this call, at which the reading began.

        Raises:
            StoreUnavailable: the log could not be read.
        """
        caught_up: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._catch_ups.append((boottime(), caught_up))
        self._engine.changed.set()
        return await caught_up

    def _answer_catch_ups(self, error: StoreUnavailable | None) -> None:
        waiting, self._catch_ups = self._catch_ups, []
        for since, future in waiting:
            if future.done():
                continue  # its caller was cancelled
            if error is not None:
                future.set_exception(error)
            elif self._caught_up_at >= since:
                future.set_result(self._caught_up_at)
            else:
                self._catch_ups.append((since, future))

    async def wait_for_event(self, seq: int) -> None:
        """Wait until event `seq` has been applied here."""
        if self.position < seq:
            waiter = seq, asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter[1]
            finally:
                self._waiters.remove(waiter)
