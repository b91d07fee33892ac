"""The one writer of a database. It groups the waiting units into one transaction and one fsync.

Each caller learns whether its unit is done and durable, not done, or that the outcome is unknown.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable
from typing import Any, Final

from gateway.store.engine import (
    Damaged,
    Part,
    StoreLocked,
    StoreUnavailable,
    T,
    Transaction,
    Undecodable,
    Unit,
)

_MAX_GROUP: Final = 512
"""Maximum units in one transaction, so that the first of many does not wait long."""


class Writer(abc.ABC):
    """Writes on its own connection; it calls `committed` after each commit.

    An engine implements `transact` and `commit_fault`.
    """

    def __init__(self, committed: Callable[[], None]) -> None:
        self._committed = committed
        self._waiting: list[tuple[Unit[Any], asyncio.Future[Any]]] = []
        self._writing: asyncio.Task[None] | None = None
        self.fault: str | None = None
        """Why the last attempt to write failed; None once one has succeeded."""

    @abc.abstractmethod
    async def transact(self, units: list[Unit[Any]]) -> list[Any]:
        """Run the units in one transaction, their events last; return their results once it is durable.

        Raises what a unit raises, and `StoreUnavailable`; the transaction is rolled back then.
        """

    @abc.abstractmethod
    async def commit_fault(self) -> str | None:
        """Why a commit that changes nothing fails now; None if it succeeds."""

    async def write(self, unit: Unit[T]) -> T:
        """See `Engine.write`."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((unit, future))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="store writer")
        # The unit runs as a whole even if its caller is cancelled; its result is lost then.
        return await future

    async def finish(self) -> None:
        """Wait until no unit waits or runs."""
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

    async def _transact_joined(self, units: list[Unit[Any]]) -> list[Any]:
        """`transact`, with the parts of a work joined to one unit at the place of the first."""
        joined: dict[object, _Joint] = {}
        for place, unit in enumerate(units):
            work = unit.work if isinstance(unit, Part) else place
            joined.setdefault(work, _Joint()).add(place, unit)
        joints = list(joined.values())
        results = [None] * len(units)
        for joint, found in zip(joints, await self.transact(list(joints)), strict=True):
            for place, result in zip(joint.places, found, strict=True):
                results[place] = result
        return results

    async def _write_group(self, group: list[tuple[Unit[Any], asyncio.Future[Any]]]) -> bool:
        """Commit all units or none; False asks the caller to try each alone."""
        try:
            results = await self._transact_joined([unit for unit, _ in group])
        except Exception as error:  # noqa: BLE001 - handed to the callers of the units
            if len(group) > 1 and _is_of_one(error):
                return False
            if isinstance(error, StoreLocked):
                self.fault = str(error)
            elif isinstance(error, StoreUnavailable):
                # A fault that has passed, or that only this group has, is no fault of the store.
                self.fault = await self.commit_fault()
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return True
        self.fault = None
        for (_, future), result in zip(group, results, strict=True):
            if not future.done():
                future.set_result(result)
        self._committed()
        return True


def _is_of_one(error: Exception) -> bool:
    """Whether other units of the group may succeed: one alone is at fault, or one alone reads a damaged row."""
    return not isinstance(error, StoreUnavailable) or isinstance(error, Damaged | Undecodable)


class _Joint:
    """The parts of one work, or any other unit alone; it has a result for each of their places in the group."""

    __slots__ = ("places", "units")

    def __init__(self) -> None:
        self.places: list[int] = []
        self.units: list[Unit[Any]] = []

    def add(self, place: int, unit: Unit[Any]) -> None:
        self.places.append(place)
        self.units.append(unit)

    async def __call__(self, transaction: Transaction) -> list[Any]:
        first = self.units[0]
        if not isinstance(first, Part):
            return [await first(transaction)]
        items = [unit.item for unit in self.units if isinstance(unit, Part)]
        results: list[Any] = await first.work(transaction, items)
        if len(results) != len(items):
            raise RuntimeError(f"{len(results)} results for {len(items)} parts of a transaction")
        return results
