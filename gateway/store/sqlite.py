"""The embedded engine: SQLite through aiosqlite, one connection (and thread) for each use.

Reads never wait for the writer (WAL). Source for the pragmas: https://www.sqlite.org/pragma.html.
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
from typing import Final

import aiosqlite

from gateway.store import migrations
from gateway.store.engine import Row, StoreRefused, StoreUnavailable, T, Unit
from gateway.store.guard import Guard, sentence
from gateway.store.writer import Writer, change_nothing, numbered

APPLICATION_ID: Final = 0x49434547
"""Marks a file as ours (`PRAGMA application_id`): "ICEG"."""
BUSY_TIMEOUT: Final = 2.0
"""Seconds to wait for another process that is writing."""
_COMMANDS_WAIT: Final = 5
"""Times as long: beside a busy gateway a command may not get its turn at once."""
_MAX_PAUSE: Final = 60.0
"""Seconds between two checks of a damaged file at the most."""
_SETUP_PATIENCE: Final = 60.0
"""Seconds to wait for another process that migrates."""


class SqliteEngine:
    """An open SQLite file. Make one with `open_sqlite`."""

    def __init__(self, path: Path, *, serving: bool) -> None:
        self.path = path
        self.changed = asyncio.Event()
        self._serving = serving
        self._guard = Guard(path)
        self._stack = contextlib.AsyncExitStack()
        self._version: int | None = None
        self._check_due = self._check_pause = 0.0

    async def start(self) -> None:
        """Open the connections. A command needs two, a gateway four."""
        try:
            self._writer = await self._connect()
            self._writes = Writer(self._writer, self._guard, self.changed.set)
            self._reader = await self._connect()
            if self._serving:
                self._lookups = await self._connect()
                self._watcher = await self._connect()
            await self.fetch("SELECT 1 FROM sqlite_schema")
            self._guard.watch_log()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _connect(self) -> aiosqlite.Connection:
        with self._guard():
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
        with self._guard():
            # One thread hop; it reads to the end, so that no half-read cursor pins an old snapshot.
            return list(await connection.execute_fetchall(sql, numbered(params)))  # type: ignore[arg-type] # tuples

    async def has_changed(self) -> bool:
        """See `Engine.has_changed`. Asks outside transactions, on a connection that never writes."""
        [(version,)] = await self._fetch(self._watcher, "PRAGMA data_version", ())
        known, self._version = self._version, version
        return bool(version != known)

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
            await self._writes.let_go()
        elif self._guard.damage is not None:
            await self._check()
        with contextlib.suppress(StoreUnavailable):
            await self.write(change_nothing)

    async def _check(self) -> None:
        """Use the file again if it is whole by now; a large one is not read again and again."""
        now = asyncio.get_running_loop().time()
        if now < self._check_due:
            return
        if await asyncio.to_thread(_is_whole, self.path):
            for connection in (self._writer, self._reader, self._lookups, self._watcher):
                # What they remember of it may be what was damaged.
                await connection.execute_fetchall("PRAGMA shrink_memory")
            self._guard.damage = None
            self._check_pause = 0.0
        else:
            self._check_pause = min(_MAX_PAUSE, max(0.5, 2 * self._check_pause))
        self._check_due = asyncio.get_running_loop().time() + self._check_pause

    def condemn(self, reason: str) -> None:
        """See `Engine.condemn`."""
        self._guard.condemn(reason)

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._writes.finish()
        if self._guard.moved:
            await self._writes.let_go()
        self._guard.condemn(f"the database {self.path} is being closed")
        await self._stack.aclose()


async def _prepare(connection: aiosqlite.Connection, busy_timeout: float) -> None:
    await connection.execute(f"PRAGMA busy_timeout={int(busy_timeout * 1000)}")
    # A change is durable before it is acknowledged: a deregistration that a power cut undoes would
    # be a hole.
    await connection.execute("PRAGMA synchronous=FULL")
    await connection.execute("PRAGMA foreign_keys=ON")


def _is_whole(path: Path) -> bool:
    """Whether the file, read anew from the disk, is as SQLite would have written it."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT)) as connection:
            return connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
    except sqlite3.Error:
        return False


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
            raise StoreUnavailable(sentence(path, error, "opened")) from error


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
