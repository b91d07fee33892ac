"""The proofs that were used at any of the gateways on one SQLite file, in a file of their own beside it.

The file is made anew by whoever starts them, and proofs are as good as a gateway that is alone makes them: once
in the life of a process. So nothing waits for the disk here, and the database's own writer for nobody.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import aiosqlite

from gateway.files import own
from gateway.lease import boottime
from gateway.store.engine import as_json
from gateway.store.guard import Guard

_BUSY: Final = 2_000
"""Milliseconds to wait for another gateway that is writing."""
_SWEEP: Final = 5.0
"""Seconds between two sweeps of what is not good any more."""


class Proofs:
    """Takes proofs in the file, which `make` has made. Make one with `opened`."""

    def __init__(self, connection: aiosqlite.Connection, guard: Guard) -> None:
        self._connection = connection
        self._guard = guard
        self._swept = boottime()

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, database: Path) -> AsyncIterator[Proofs]:
        """Those of the gateways on `database`. Raises `StoreUnavailable`."""
        path = file_beside(database)
        guard = Guard(path)
        with guard():
            connection = await aiosqlite.connect(
                f"{path.as_uri()}?mode=rw", isolation_level=None, uri=True
            )
        try:
            with guard():
                await connection.execute(f"PRAGMA busy_timeout={_BUSY}")
                await connection.execute("PRAGMA synchronous=OFF")
            yield cls(connection, guard)
        finally:
            await connection.close()

    @property
    def fault(self) -> str | None:
        """Why no proof can be taken, for an operator; None as long as it can."""
        if self._guard.moved:
            return f"the file {self._guard.path} is gone or was replaced: restart the gateway"
        return self._guard.fault

    async def try_out(self) -> None:
        """Use a file again that was damaged, if it is whole by now; never raises."""
        if self._guard.damage is not None and not self._guard.moved:
            with contextlib.suppress(sqlite3.Error):
                await self._connection.execute("PRAGMA shrink_memory")
                rows = await self._connection.execute_fetchall("PRAGMA quick_check(1)")
                if list(rows) == [("ok",)]:
                    self._guard.damage = None

    async def take(self, proofs: Sequence[str], kept: float) -> frozenset[str]:
        """Remember `proofs` for `kept` seconds; those that nobody has taken before.

        Raises `StoreUnavailable`.
        """
        now = boottime()
        with self._guard():
            rows = await self._connection.execute_fetchall(
                "INSERT INTO ice_proofs (digest, until) SELECT atom, $2 FROM json_each($1) WHERE true"
                " ON CONFLICT DO NOTHING RETURNING digest",
                {"1": as_json(proofs), "2": now + kept},
            )
            if now - self._swept > _SWEEP:
                self._swept = now
                await self._connection.execute(
                    "DELETE FROM ice_proofs WHERE until < $1", {"1": now}
                )
        return frozenset(digest for (digest,) in rows)


def file_beside(database: Path) -> Path:
    """Where the proofs of the gateways on `database` are."""
    return database.with_name(f"{database.name}.proofs")


def make(database: Path) -> None:
    """Make the file anew, for gateways that are about to start. Raises `OSError`, `sqlite3.Error`."""
    path = file_beside(database)
    remove(database)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    own(path, database)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(
            "CREATE TABLE ice_proofs (digest TEXT PRIMARY KEY NOT NULL, until REAL NOT NULL)"
            " STRICT, WITHOUT ROWID"
        )
        connection.execute("CREATE INDEX ice_proofs_until ON ice_proofs (until)")


def remove(database: Path) -> None:
    """Remove the file, which nobody uses any more. Raises `OSError`."""
    path = file_beside(database)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
