"""One writer for a database: groups whatever waits into one transaction, all of it or none.

A storm so shares its fsync. Whoever asked is told the truth: done and durable, not done, or not known.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable
from typing import Any, Final

from gateway.store.engine import StoreLocked, StoreUnavailable, T, Unit

_MAX_GROUP: Final = 512
"""Units in one transaction at the most, so that the first of a storm is not kept waiting."""


class Writer(abc.ABC):
    """Writes on a connection that nobody else uses; `committed` is called after each commit.

    An engine says how it runs a transaction, and why it cannot.
    """

    def __init__(self, committed: Callable[[], None]) -> None:
        self._committed = committed
        self._waiting: list[tuple[Unit[Any], asyncio.Future[Any]]] = []
        self._writing: asyncio.Task[None] | None = None
        self.fault: str | None = None
        """Why the last attempt to write failed; None once one has succeeded."""

    @abc.abstractmethod
    async def transact(self, units: list[Unit[Any]]) -> list[Any]:
        """What the units give, run in one transaction, their events last; durable when this returns.

        Raises whatever a unit raises, and `StoreUnavailable`; nothing is done then.
        """

    @abc.abstractmethod
    async def obstacle(self) -> str | None:
        """Why a commit that changes nothing fails now; None where it succeeds."""

    async def write(self, unit: Unit[T]) -> T:
        """See `Engine.write`."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((unit, future))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="store writer")
        # Whoever asked may go away: the unit is then finished, or not begun, but never half-done.
        return await asyncio.shield(future)

    async def finish(self) -> None:
        """Wait until all that was asked for is done."""
        while self._writing is not None:
            await asyncio.wait([self._writing])

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:_MAX_GROUP], self._waiting[_MAX_GROUP:]
                if not await self._write_group(group):
                    for pair in group:
                        await self._write_group([pair])
        finally:
            self._writing = None

    async def _write_group(self, group: list[tuple[Unit[Any], asyncio.Future[Any]]]) -> bool:
        """Commit all units or none; False asks for each to be tried alone."""
        try:
            results = await self.transact([unit for unit, _ in group])
        except Exception as error:  # noqa: BLE001 - handed to whoever asked for the unit
            if isinstance(error, StoreLocked):
                self.fault = str(error)
            elif isinstance(error, StoreUnavailable):
                # What is past, or is the fault of this group alone, is not the store's.
                self.fault = await self.obstacle()
            elif len(group) > 1:
                return False
            for _, future in group:
                future.set_exception(error)
                future.exception()  # the asker may have gone
            return True
        self.fault = None
        for (_, future), result in zip(group, results, strict=True):
            if not future.done():
                future.set_result(result)
        self._committed()
        return True
