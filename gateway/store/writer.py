"""The one writer of an SQLite file: groups whatever waits into one transaction, all of it or none.

A storm so shares its fsync. Whoever asked is told the truth: done and durable, not done, or not known.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiosqlite

from gateway.store.engine import Row, StoreLocked, StoreUnavailable, T, Transaction, Unit
from gateway.store.guard import Guard, may_be_done

_MAX_GROUP: Final = 512
"""Units in one transaction at the most, so that the first of a storm is not kept waiting."""


class Writer:
    """Writes on a connection that nobody else uses; `committed` is called after each commit."""

    def __init__(
        self, connection: aiosqlite.Connection, guard: Guard, committed: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._guard = guard
        self._committed = committed
        self._waiting: list[tuple[Unit[Any], asyncio.Future[Any]]] = []
        self._writing: asyncio.Task[None] | None = None
        self.fault: str | None = None
        """Why the last attempt to write failed; None once one has succeeded."""

    async def write(self, unit: Unit[T]) -> T:
        """See `Engine.write`."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((unit, future))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="store writer")
        # Whoever asked may go away: the unit is then finished, or not begun, but never half-done.
        return await asyncio.shield(future)

    async def let_go(self) -> None:
        """Bring what stands in the write-ahead log into the file it belongs to, which was moved away.

        The log stays where it is: it would be taken for the log of whatever is put there, and ruin it.
        """
        with contextlib.suppress(sqlite3.Error, ValueError):  # or it is closed already
            await self._connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")

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
            results = await self._transact([unit for unit, _ in group])
        except Exception as error:  # noqa: BLE001 - handed to whoever asked for the unit
            if isinstance(error, StoreLocked):
                self.fault = str(error)
            elif isinstance(error, StoreUnavailable):
                # What is past, or is the fault of this group alone, is not the store's.
                self.fault = await self._obstacle()
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

    async def _transact(self, units: list[Unit[Any]]) -> list[Any]:
        with self._guard():
            await self._connection.execute("BEGIN IMMEDIATE")
            try:
                transaction = _SqliteTransaction(self._connection)
                results = [await unit(transaction) for unit in units]
            except BaseException:
                await self._roll_back()
                raise
            await self._commit()
        self._guard.check_committed()
        return results

    async def _commit(self) -> None:
        try:
            await self._connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            await self._roll_back()
            # The next commit takes the place of the failed one in the write-ahead log: from then on
            # it is as if it had never been.
            if may_be_done(error) and await self._obstacle() is not None:
                raise self._guard.unknown(error) from error
            raise

    async def _roll_back(self) -> None:
        if self._connection.in_transaction:  # SQLite may have done it by itself
            await self._connection.execute("ROLLBACK")

    async def _obstacle(self) -> str | None:
        """Why a commit that changes nothing fails now; None where it succeeds."""
        try:
            with self._guard():
                try:
                    await self._connection.execute("BEGIN IMMEDIATE")
                    await change_nothing(_SqliteTransaction(self._connection))
                    await self._connection.execute("COMMIT")
                finally:
                    await self._roll_back()
        except StoreUnavailable as error:
            return str(error)
        return None


async def change_nothing(transaction: Transaction) -> None:
    """A unit that writes what is there already."""
    [(version,)] = await transaction.fetch("PRAGMA user_version")
    await transaction.run(f"PRAGMA user_version={version}")


class _SqliteTransaction:
    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self.memo: dict[str, Any] = {}

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        return list(await self._connection.execute_fetchall(sql, numbered(params)))  # type: ignore[arg-type] # tuples

    async def run(self, sql: str, *params: object) -> int:
        cursor = await self._connection.execute(sql, numbered(params))
        return cursor.rowcount

    async def run_many(self, sql: str, params: Sequence[Sequence[object]]) -> int:
        cursor = await self._connection.executemany(sql, [numbered(row) for row in params])
        return cursor.rowcount


def numbered(params: Sequence[object]) -> dict[str, object]:
    """Parameters by number, so that `$1` names the first."""
    return dict(zip(_NUMBERS, params, strict=False))


_NUMBERS: Final = tuple(map(str, range(1, 33)))
"""More than any statement has: who adds one beyond is told so by SQLite, which misses its value."""
