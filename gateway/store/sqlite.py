"""The embedded engine: SQLite through aiosqlite, one connection (and thread) for each use.

One writer groups whatever waits into one transaction, so that a storm shares its fsync. Reads never
wait for it (WAL). Source for the pragmas: https://www.sqlite.org/pragma.html.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import aiosqlite

from gateway.store import migrations
from gateway.store.engine import Row, StoreRefused, StoreUnavailable, T, Unit

APPLICATION_ID: Final = 0x49434547
"""Marks a file as ours (`PRAGMA application_id`): "ICEG"."""
BUSY_TIMEOUT: Final = 2.0
"""Seconds to wait for another process that is writing."""
_COMMANDS_WAIT: Final = 5
"""Times as long: beside a busy gateway a command may not get its turn at once."""
_SETUP_PATIENCE: Final = 60.0
"""Seconds to wait for another process that migrates."""
_MAX_GROUP: Final = 512
"""Units in one transaction at the most, so that the first of a storm is not kept waiting."""


class SqliteEngine:
    """An open SQLite file. Make one with `open_sqlite`."""

    def __init__(self, path: Path, *, serving: bool) -> None:
        self.path = path
        self.changed = asyncio.Event()
        self._serving = serving
        self._identity = _identity(path)
        self._stack = contextlib.AsyncExitStack()
        self._waiting: list[tuple[Unit[Any], asyncio.Future[Any]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._version: int | None = None
        self._closed = False

    async def start(self) -> None:
        """Open the connections. A command needs two, a gateway four."""
        try:
            self._writer = await self._connect()
            self._reader = await self._connect()
            if self._serving:
                self._lookups = await self._connect()
                self._watcher = await self._connect()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _connect(self) -> aiosqlite.Connection:
        with self._translated():
            connection = await aiosqlite.connect(self.path, isolation_level=None)
            self._stack.push_async_callback(connection.close)
            await _prepare(connection, BUSY_TIMEOUT * (1 if self._serving else _COMMANDS_WAIT))
            return connection

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        """See `Engine.fetch`."""
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
        with self._translated():
            # One thread hop; it reads to the end, so that no half-read cursor pins an old snapshot.
            return list(await connection.execute_fetchall(sql, _numbered(params)))  # type: ignore[arg-type] # tuples

    async def has_changed(self) -> bool:
        """See `Engine.has_changed`. Asks outside transactions, on a connection that never writes."""
        [(version,)] = await self._fetch(self._watcher, "PRAGMA data_version", ())
        known, self._version = self._version, version
        return bool(version != known)

    async def write(self, unit: Unit[T]) -> T:
        """See `Engine.write`."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((unit, future))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="store writer")
        # Whoever asked may go away: the unit is then finished, or not begun, but never half-done.
        return await asyncio.shield(future)

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
            if len(group) > 1 and not isinstance(error, StoreUnavailable):
                return False
            for _, future in group:
                future.set_exception(error)
                future.exception()  # the asker may have gone
            return True
        for (_, future), result in zip(group, results, strict=True):
            if not future.done():
                future.set_result(result)
        self.changed.set()
        return True

    async def _transact(self, units: list[Unit[Any]]) -> list[Any]:
        with self._translated():
            await self._writer.execute("BEGIN IMMEDIATE")
            try:
                transaction = _SqliteTransaction(self._writer)
                results = [await unit(transaction) for unit in units]
                await self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    await self._writer.execute("ROLLBACK")
                raise
            return results

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Let only `StoreUnavailable` out, and notice a file that was taken away beneath us."""
        if self._closed:
            raise StoreUnavailable(f"the database {self.path} is being closed")
        if _identity(self.path) != self._identity:
            raise StoreUnavailable(
                f"the database file {self.path} is gone or was replaced; put it back, or restart"
            )
        try:
            yield
        except sqlite3.DatabaseError as error:
            # A broken rule or a mistake of ours is not the database's fault.
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise
            raise StoreUnavailable(f"the database {self.path} cannot be used: {error}") from error

    async def close(self) -> None:
        """See `Engine.close`."""
        while self._writing is not None:
            await asyncio.wait([self._writing])
        self._closed = True
        await self._stack.aclose()


class _SqliteTransaction:
    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self.memo: dict[str, Any] = {}

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        return list(await self._connection.execute_fetchall(sql, _numbered(params)))  # type: ignore[arg-type] # tuples

    async def run(self, sql: str, *params: object) -> int:
        cursor = await self._connection.execute(sql, _numbered(params))
        return cursor.rowcount

    async def run_many(self, sql: str, params: Sequence[Sequence[object]]) -> int:
        cursor = await self._connection.executemany(sql, [_numbered(row) for row in params])
        return cursor.rowcount


def _numbered(params: Sequence[object]) -> dict[str, object]:
    return {str(number): value for number, value in enumerate(params, 1)}


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - a microsecond before every query
    except OSError:
        return None
    return status.st_dev, status.st_ino


async def _prepare(connection: aiosqlite.Connection, busy_timeout: float) -> None:
    await connection.execute(f"PRAGMA busy_timeout={int(busy_timeout * 1000)}")
    # A change is durable before it is acknowledged: a deregistration that a power cut undoes would
    # be a hole.
    await connection.execute("PRAGMA synchronous=FULL")
    await connection.execute("PRAGMA foreign_keys=ON")


# --- opening -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def open_sqlite(path: Path, *, serving: bool = False) -> AsyncIterator[SqliteEngine]:
    """Open `path`, making and migrating it where needed.

    Args:
        path: the database file.
        serving: for a gateway, of which there is one per file; a command leaves it False.

    Raises:
        StoreRefused: the file is newer than this program, of another program, or served already.
        StoreUnavailable: it cannot be opened or written.
    """
    path = _resolve(path)
    with contextlib.ExitStack() as locks:
        if serving and not await asyncio.to_thread(
            lambda: locks.enter_context(_lock(path, "serve", patience=0.5))
        ):
            raise StoreRefused(
                f"another gateway already serves {path}; stop it, or name another --database"
            )
        # In a thread: it may wait for another process that is migrating.
        await asyncio.to_thread(_set_up, path)
        engine = SqliteEngine(path, serving=serving)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()


def is_served(path: Path) -> bool:
    """Whether a gateway runs on this database now."""
    with _lock(_resolve(path), "serve", patience=0) as free:
        return not free


def _resolve(path: Path) -> Path:
    """Two names of one file share their locks."""
    return path.resolve()


@contextlib.contextmanager
def _lock(path: Path, purpose: str, *, patience: float) -> Iterator[bool]:
    """Hold a lock beside the database; yields False where another holds it for `patience` seconds.

    It lies on a file of its own: to close any handle of the database file itself would drop
    SQLite's own locks (https://www.sqlite.org/howtocorrupt.html, section 2.2).
    """
    try:
        # 0600 as all our files; a lock file is left in place, since to remove it would race.
        descriptor = os.open(f"{path}.{purpose}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnavailable(
            f"the folder of the database {path} cannot be used: {error.strerror or error}"
        ) from error
    try:
        yield _acquire(descriptor, patience)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, patience: float) -> bool:
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        else:
            return True


def released() -> list[tuple[int, str]]:
    """The migrations as (number, SQL), in order."""
    files = [
        entry for entry in resources.files(migrations).iterdir() if entry.name.endswith(".sql")
    ]
    return sorted((int(file.name.split("_")[0]), file.read_text("utf-8")) for file in files)


def _set_up(path: Path) -> None:
    """Make or migrate the file, forward only, while no other process does."""
    with _lock(path, "setup", patience=_SETUP_PATIENCE) as mine:
        if not mine:
            raise StoreUnavailable(f"another process is still migrating {path}")
        try:
            if not path.exists():
                # Nobody but the owner reads hashes, names and addresses.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            with contextlib.closing(
                sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT)
            ) as connection:
                _migrate(connection, path)
        except (OSError, sqlite3.Error) as error:
            if getattr(error, "sqlite_errorname", None) == "SQLITE_NOTADB":
                raise StoreRefused(f"{path} is not an SQLite database") from error
            raise StoreUnavailable(f"the database {path} cannot be opened: {error}") from error


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = _pragma(connection, "user_version")
    application = _pragma(connection, "application_id")
    [tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (tables or version or application):
        raise StoreRefused(f"{path} is a database of another program")
    steps = released()
    newest = steps[-1][0]
    if version > newest:
        raise StoreRefused(
            f"{path} was written by a newer gateway (schema {version}, this one knows {newest}): "
            "upgrade the gateway"
        )
    if version == newest:
        return
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("BEGIN IMMEDIATE")
    for number, sql in steps:
        if number > version:
            for statement in _statements(sql):
                connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={newest}")
    connection.execute("COMMIT")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    [value] = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _statements(sql: str) -> Iterator[str]:
    """The single statements; `executescript` would commit by itself."""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement  # an unfinished one is for SQLite to refuse, not for us to skip
