"""Finds ICEs of this node for the operations that wait in pools: one task for each pool, while something waits.

A claimer only chooses free ICEs and lets their lanes look (`Dispatcher`); the lane takes the oldest operation that
its ICE may run, by one compare-and-set, so two nodes never send the same one.

Tested in tests/gateway/node/test_pool_claimers.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from gateway.core.times import Clock
from gateway.runtime.eventloop import cancel_and_wait, wait_at_most
from gateway.store import work_queue
from gateway.store.engine import Engine, StoreUnavailable
from gateway.store.work_queue import Group

_PACE: Final = 0.02
"""Seconds between two looks at a pool, however often it is woken: many sessions may begin at once."""
_MAX_GROUPS: Final = 20
"""Groups of due operations for which one look finds ICEs; the next look goes on with the others."""
_NEXT_GROUPS: Final = 0.5
_RETRY: Final = 0.5
_LOOK_AGAIN: Final = 5.0
"""Seconds after which a claimer looks although nothing woke it: a pause ends, another node gives an operation back."""

_log = structlog.get_logger()


class PoolClaimers:
    """The pools in which an operation may wait. While there is none, nothing runs and nothing is read.

    Args:
        engine: the database.
        reads: bounds the reads that ICEs cause.
        node: the name of this node.
        clock: the present.
        offer: lets the lane of an ICE look for an operation of its pools.
        works: lets the lane of an ICE continue with an operation that an earlier session, or another node, has taken.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        reads: asyncio.Semaphore,
        node: str,
        clock: Clock,
        offer: Callable[[str], None],
        works: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._reads = reads
        self._node = node
        self._clock = clock
        self._offer = offer
        self._works = works
        self._in_use = True
        """Whether an operation of a pool may be unfinished."""
        self._arrived: set[str] = set()
        """ICEs that connected, and may have one."""
        self._finding: asyncio.Task[None] | None = None
        self._wakes: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        """However many pools wait, and however often ICEs wake them, one look at a time reads the database."""
        self._turns: dict[str, int] = {}
        """How many groups of a pool were looked at, if they are too many for one look."""
        self._closed = False

    @property
    def any_waits(self) -> bool:
        """Whether an operation of a pool may wait."""
        return bool(self._wakes)

    def requested(self, pool: str) -> None:
        """An operation of this pool waits, or may wait again."""
        self._in_use = True
        wake = self._wakes.get(pool)
        if wake is not None:
            wake.set()
        elif not self._closed:
            self._wakes[pool] = asyncio.Event()
            self._tasks[pool] = asyncio.create_task(self._run(pool), name=f"claimer of {pool}")

    def changed(self) -> None:
        """An ICE may have become free, or have come to a pool."""
        for wake in self._wakes.values():
            wake.set()

    def arrived(self, ice_name: str, node: str) -> None:
        """An ICE has connected to this node."""
        if self._in_use and node == self._node and not self._closed:
            self._arrived.add(ice_name)
            if self._finding is None:
                self._finding = asyncio.create_task(self._find_working(), name="ICEs of pools")

    async def _find_working(self) -> None:
        """Of ICEs that connected find those that have an operation of a pool: no event says who took one."""
        try:
            while self._arrived:
                names, self._arrived = self._arrived, set()
                self._in_use = False  # until something says otherwise, here or meanwhile
                try:
                    async with self._reads:
                        found = await work_queue.working(self._engine.fetch, names)
                    self._in_use |= self.any_waits or found is not None
                except StoreUnavailable:
                    self._in_use = True
                    self._arrived |= names
                    await asyncio.sleep(_RETRY)
                    continue
                for ice_name in found or ():
                    self._works(ice_name)
                await asyncio.sleep(_PACE)
        finally:
            self._finding = None

    async def refresh(self) -> None:
        """Read which pools have operations, after the start or an interruption of the log."""
        self._in_use = True
        for pool in await work_queue.waiting_pools(self._engine.fetch):
            self.requested(pool)

    async def close(self) -> None:
        """Look at nothing more."""
        self._closed = True
        finding = () if self._finding is None else (self._finding,)
        for task in (*self._tasks.values(), *finding):
            await cancel_and_wait(task)

    async def _run(self, pool: str) -> None:
        wake = self._wakes[pool]
        try:
            while not self._closed:
                wake.clear()
                try:
                    async with self._turn:
                        pause = await self._look(pool)
                except StoreUnavailable:
                    pause = _RETRY
                except Exception:  # noqa: BLE001 - one pool must not stop the gateway
                    _log.exception("claimer failed", pool=pool)
                    pause = _LOOK_AGAIN
                if pause is None and not wake.is_set():
                    return
                await asyncio.sleep(_PACE)
                await wait_at_most(wake, pause or 0)
                if not wake.is_set():
                    await self._find_sent(pool)
        finally:
            del self._wakes[pool], self._tasks[pool]
            self._turns.pop(pool, None)

    async def _find_sent(self, pool: str) -> None:
        """Let the lanes of ICEs of this node look for what was sent to them: by a node that lost them meanwhile.

        Such a node may commit its claim after the ICE was looked for here (`arrived`).
        """
        with contextlib.suppress(StoreUnavailable):
            async with self._reads:
                sent = await work_queue.sent_to(self._engine.fetch, pool, self._node)
            for ice_name in sent:
                self._works(ice_name)

    async def _look(self, pool: str) -> float | None:
        """Offer what is due to free ICEs; returns the seconds until the next look, or None if nothing waits."""
        now = self._clock()
        async with self._reads:
            queue = await work_queue.pool_queue(self._engine.fetch, pool, now)
        if queue is None:
            return None
        chosen: list[str] = []
        for group in self._in_turn(pool, queue.due):
            async with self._reads:
                free = await work_queue.free_ices(
                    self._engine.fetch,
                    pool,
                    group,
                    node=self._node,
                    now=now,
                    limit=group.count + len(chosen),
                )
            chosen += [name for name in free if name not in chosen][: group.count]
        for name in chosen:
            self._offer(name)
        pause = _NEXT_GROUPS if len(queue.due) > _MAX_GROUPS else _LOOK_AGAIN
        if queue.next_due is None:
            return pause
        return min(pause, max(0.0, (queue.next_due - now).total_seconds()))

    def _in_turn(self, pool: str, due: Sequence[Group]) -> Sequence[Group]:
        """The groups to look at now: those that no ICE may take must not keep the others waiting."""
        if len(due) <= _MAX_GROUPS:
            return due
        start = self._turns.get(pool, 0) % len(due)
        self._turns[pool] = start + _MAX_GROUPS
        return [*due, *due][start : start + _MAX_GROUPS]
