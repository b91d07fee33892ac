"""The embedded engine: SQLite by aiosqlite, one connection (and thread) for each use.

Reads never wait for the writer (WAL). Source for the pragmas: https://www.sqlite.org/pragma.html.

Tested in tests/contract/test_sqlite.py and tests/contract/test_sqlite_faults.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import aiosqlite

from gateway.runtime.clocks import boottime
from gateway.store import events
from gateway.store.engine import (
    AppendedEvent,
    Row,
    StoreUnavailable,
    T,
    Tell,
    Transaction,
    Unit,
    log,
)
from gateway.store.group_commit import Writer
from gateway.store.migration_files import Step
from gateway.store.sqlite.commit_record import CommitRecord, check
from gateway.store.sqlite.commit_watch import CommitWatch
from gateway.store.sqlite.guard import Guard, may_be_done
from gateway.store.sqlite.migrate import (
    BUSY_TIMEOUT,
    is_served,
    released,
    resolve,
    serving_lock,
    set_up,
)
from gateway.store.sqlite.parameters import numbered

_COMMANDS_WAIT: Final = 5
"""Factor of the timeout for a command, which may wait longer beside a busy gateway."""
_SWEEP_AFTER: Final = 1.0
"""Seconds from a commit to the checkpoint that copies it from the log into the file."""
_LOG_PAGES: Final = 8_000
"""At so many pages of the log (32 MiB) a commit makes a checkpoint itself, so that the log restarts."""
_MAX_PAUSE: Final = 60.0
"""Maximum seconds between two checks of a damaged file."""
READS: Final = 4
"""Reads at once; one of them runs. The loop that admits ICEs handles their results: if a thousand listings
came back together, no ICE would be admitted until the last one is sent."""


class SqliteEngine:
    """An open SQLite file. Make one with `open_sqlite`."""

    shared = False

    def __init__(self, path: Path, *, serving: bool, busy_timeout: float) -> None:
        self.path = path
        self.name = str(path)
        self.changed = asyncio.Event()
        self._serving = serving
        self._busy_timeout = busy_timeout
        self._guard = Guard(path)
        self._record = CommitRecord(path)
        self._stack = contextlib.AsyncExitStack()
        self._turns = asyncio.Semaphore(READS)
        self._watch = CommitWatch(path, self.changed)
        self._sweeping: asyncio.Task[None] | None = None
        self._check_due = self._check_pause = 0.0

    async def start(self) -> None:
        """Open the connections. A command needs two, a gateway five."""
        self._stack.callback(self._record.close)
        self._stack.callback(self._watch.close)
        try:
            self._writer = await self._connect()
            self._writes = SqliteWriter(self._writer, self._guard, self._record, self._committed)
            self._reader = await self._connect()
            if self._serving:
                self._lookups = await self._connect()
                self._watcher = await self._connect()
                self._sweeper = await self._connect()
                await self._writer.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
                self._watch.start()
            await self.fetch("SELECT 1 FROM sqlite_schema")
            self._guard.watch_log()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _connect(self) -> aiosqlite.Connection:
        with self._guard():
            connection = await aiosqlite.connect(
                self.path,
                timeout=self._busy_timeout * (1 if self._serving else _COMMANDS_WAIT),
                isolation_level=None,
                factory=_Connection,
            )
            self._stack.push_async_callback(connection.close)
            return connection

    def _committed(self) -> None:
        if self._writes.logged:
            # Only the follower of the log waits for this; readers of other tables poll.
            self.changed.set()
        if self._serving and self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep(), name="checkpoint")

    async def _sweep(self) -> None:
        """Make a checkpoint beside the writer; otherwise every hundredth commit would wait for one."""
        try:
            await asyncio.sleep(_SWEEP_AFTER)
            with contextlib.suppress(StoreUnavailable):
                await self._fetch(self._sweeper, "PRAGMA wal_checkpoint(PASSIVE)", ())
        finally:
            self._sweeping = None

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        """See `Engine.fetch`."""
        async with self._turns:
            return await self._fetch(self._reader, sql, params)

    async def look_up(self, sql: str, *params: object) -> list[Row]:
        """See `Engine.look_up`."""
        return await self._fetch(self._lookups, sql, params)

    async def follow(self, sql: str, *params: object) -> list[Row]:
        """See `Engine.follow`."""
        return await self._fetch(self._watcher, sql, params)

    async def _fetch(
        self, connection: aiosqlite.Connection, sql: str, params: Sequence[object]
    ) -> list[Row]:
        with self._guard():
            # One thread switch. It reads to the end: a half-read cursor would keep an old snapshot.
            return list(await connection.execute_fetchall(sql, numbered(params)))  # type: ignore[arg-type] # tuples

    def gather(self, key: str, columns: Iterable[str]) -> str:
        """See `Engine.gather`."""
        each = ", ".join(f"'{name}', {name}" for name in columns)
        return f"json_group_object({key}, json_object({each}))"

    async def has_changed(self) -> bool:
        """See `Engine.has_changed`."""
        with self._guard():
            return self._watch.has_changed()

    async def write(self, unit: Unit[T]) -> T:
        """See `Engine.write`."""
        return await self._writes.write(unit)

    @property
    def fault(self) -> str | None:
        """See `Engine.fault`."""
        return self._guard.fault or self._writes.fault

    async def try_out(self) -> None:
        """See `Engine.try_out`."""
        if self._guard.moved:
            await self._detach()
        elif self._guard.damage is not None:
            await self._check()
        with contextlib.suppress(StoreUnavailable):
            await self.write(_change_nothing)

    async def _detach(self) -> None:
        await self._stop_sweeping()  # of two simultaneous checkpoints one does nothing
        await self._writes.detach()

    async def _stop_sweeping(self) -> None:
        """Return when no checkpoint runs beside the writer."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])
        if self._serving:
            # A cancelled statement may still run in its thread: this one runs after it.
            with contextlib.suppress(sqlite3.Error, ValueError):
                await self._sweeper.execute_fetchall("SELECT 1")

    async def _check(self) -> None:
        """Use the file again if it is whole; the pause between two checks doubles."""
        now = asyncio.get_running_loop().time()
        if now < self._check_due:
            return
        if await asyncio.to_thread(_is_whole, self.path, self._busy_timeout):
            readers = (self._reader, self._lookups, self._watcher, self._sweeper)
            for connection in (self._writer, *readers):
                # Their caches may hold damaged pages.
                await connection.execute_fetchall("PRAGMA shrink_memory")
            self._guard.damage = None
            self._check_pause = 0.0
        else:
            self._check_pause = longer_pause(self._check_pause)
        self._check_due = asyncio.get_running_loop().time() + self._check_pause

    async def is_served(self) -> bool:
        """See `Engine.is_served`."""
        return is_served(self.path)

    def condemn(self, reason: str) -> None:
        """See `Engine.condemn`."""
        self._guard.condemn(reason)

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._writes.finish()
        if self._guard.moved:
            await self._detach()
        await self._stop_sweeping()
        self._guard.condemn(f"the database {self.path} is being closed")
        await self._stack.aclose()


# --- writing -----------------------------------------------------------------------------------


class SqliteWriter(Writer):
    """The one writer of an SQLite file."""

    def __init__(
        self,
        connection: aiosqlite.Connection,
        guard: Guard,
        record: CommitRecord,
        committed: Callable[[], None],
    ) -> None:
        super().__init__(committed)
        self._connection = connection
        self._guard = guard
        self._record = record
        self.logged = False
        """Whether the last transaction wrote events."""

    async def detach(self) -> None:
        """Copy the write-ahead log into its database file, which was moved away.

        The log stays at the path, and SQLite would apply it to another database that is put there and damage it.
        """
        with contextlib.suppress(sqlite3.Error, ValueError):  # or it is closed already
            await self._connection.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")

    async def transact(self, units: list[Unit[Any]]) -> list[Any]:
        """See `Writer.transact`."""
        with self._guard():
            results, self.logged = await self._in_thread(self._transact, units)
        return results

    async def commit_fault(self) -> str | None:
        """See `Writer.commit_fault`."""
        return self._guard.fault or await self._in_thread(self._commit_fault)

    async def _in_thread(self, do: Callable[..., T], *args: object) -> T:
        # One thread switch for the whole transaction. aiosqlite has no public method for that, so its minor
        # version is pinned.
        return await self._connection._execute(do, *args)  # type: ignore[no-any-return, no-untyped-call] # noqa: SLF001

    # --- in the connection's thread --------------------------------------------------------------------

    @property
    def _sqlite(self) -> sqlite3.Connection:
        return self._connection._conn  # noqa: SLF001

    def _transact(self, units: list[Unit[Any]]) -> tuple[list[Any], bool]:
        """The results of the units, and whether they logged events."""
        transaction = _SqliteTransaction(self._sqlite)
        try:
            results = [_finished(unit(transaction)) for unit in units]
            head = _finished(events.number(transaction))
        except BaseException:
            self._roll_back()
            raise
        if transaction.begun:
            self._commit()
        self._guard.check_committed()
        self._record.committed(head)
        return results, bool(transaction.appended)

    def _commit(self) -> None:
        try:
            self._sqlite.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            self._roll_back()
            # A next commit overwrites the failed one in the write-ahead log, which then never happened.
            if may_be_done(error) and self._commit_fault() is not None:
                raise self._guard.unknown(error) from error
            raise

    def _roll_back(self) -> None:
        if self._sqlite.in_transaction:  # SQLite may have done it by itself
            self._sqlite.execute("ROLLBACK")

    def _commit_fault(self) -> str | None:
        try:
            with self._guard():
                try:
                    _finished(_change_nothing(_SqliteTransaction(self._sqlite)))
                    self._sqlite.execute("COMMIT")
                finally:
                    self._roll_back()
        except StoreUnavailable as error:
            return str(error)
        return None


def _finished(work: Awaitable[T]) -> T:
    """The result of a unit that waits only for its transaction, which never suspends it.

    Raises:
        RuntimeError: the unit waits for something else.
    """
    steps = work.__await__()
    try:
        next(steps)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    steps.close()
    raise RuntimeError("a unit waits for something other than its transaction")


async def _change_nothing(transaction: Transaction) -> None:
    """A unit that writes an unchanged value."""
    [(version,)] = await transaction.fetch("PRAGMA user_version")
    await transaction.run(f"PRAGMA user_version={version}")


class _SqliteTransaction:
    """Begins with its first statement; used in the connection's thread, and none of its methods suspends."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.appended: list[AppendedEvent] = []
        self.begun = False

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        return self._do(sql, params).fetchall()

    async def hold(self, sql: str, *params: object) -> list[Row]:
        return await self.fetch(sql, *params)  # no other connection writes

    async def lock(self, sql: str, *params: object) -> None:
        pass  # no other connection writes

    async def run(self, sql: str, *params: object) -> int:
        cursor = self._do(sql, params)
        cursor.fetchall()  # a statement has changed its last row when it has returned its last
        return cursor.rowcount

    def _do(self, sql: str, params: Sequence[object]) -> sqlite3.Cursor:
        if not self.begun:
            self._connection.execute("BEGIN IMMEDIATE")
            self.begun = True
        return self._connection.execute(sql, numbered(params))


# --- opening -----------------------------------------------------------------------------------


class _Connection(sqlite3.Connection):
    """A connection that is set up where it is opened: each statement from the loop would be a thread switch."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        try:
            # A change is durable before it is acknowledged: a power cut must not undo a deregistration.
            self.execute("PRAGMA synchronous=FULL")
            self.execute("PRAGMA foreign_keys=ON")
            # PostgreSQL has functions of these names: the lease clock, and a number that grows with each read.
            # Here both are the machine's time since its start.
            for name, parameters in (("lease_clock", 0), ("lease_clock", 1), ("reading_number", 0)):
                self.create_function(name, parameters, lambda *_: boottime())
            # PostgreSQL's name; SQLite has it from 3.43 on.
            self.create_function("octet_length", 1, _octets, deterministic=True)
        except BaseException:
            self.close()
            raise


def _octets(text: str | None) -> int | None:
    return None if text is None else len(text.encode())


def longer_pause(pause: float) -> float:
    """Seconds until the next check of a damaged file, after a pause of so many."""
    return min(_MAX_PAUSE, max(0.5, 2 * pause))


def _is_whole(path: Path, busy_timeout: float) -> bool:
    """Whether SQLite finds no damage in the file on the disk."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=busy_timeout)) as connection:
            return connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
    except sqlite3.Error:
        return False


@contextlib.asynccontextmanager
async def open_sqlite(
    path: Path,
    *,
    serving: bool = False,
    create: bool = True,
    tell: Tell = log,
    steps: Sequence[Step] | None = None,
    busy_timeout: float = BUSY_TIMEOUT,
) -> AsyncIterator[SqliteEngine]:
    """Open `path`, making and migrating it if necessary.

    Args:
        path: the database file.
        serving: True for a gateway, which must be the only one on the file; False for a command.
        create: whether a missing file is made.
        tell: called with a sentence about a migration.
        steps: the migrations; without them, those of this version.
        busy_timeout: seconds to wait for another process that is writing; a command waits longer.

    Raises:
        StoreRefused: the file is newer than this program, of another program, already served, missing while
            `create` is False, or lacks what was committed.
        StoreUnavailable: it cannot be opened or written.
    """
    path = resolve(path)
    with contextlib.ExitStack() as locks:
        if serving:
            await asyncio.to_thread(lambda: locks.enter_context(serving_lock(path)))
        with contextlib.suppress(sqlite3.Error):  # opening it in earnest says what is wrong
            await check(path)
        # In a thread: it may wait for another process that is migrating.
        await asyncio.to_thread(
            set_up,
            path,
            serving=serving,
            create=create,
            tell=tell,
            steps=released() if steps is None else steps,
            busy_timeout=busy_timeout,
        )
        engine = SqliteEngine(path, serving=serving, busy_timeout=busy_timeout)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()
