"""The durable record of the operations that an ICE accepted, and of their finishes.

The client writes it in the state folder before it answers or sends anything, so that after a crash no
operation runs twice and no result is lost. Source: docs/protocol.md.

Tested in tests/client/test_client_operations.py.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from client import platform
from client.credentials import IdentityProblem
from client.errors import one_line
from client.identity import FolderUnusable

KEPT: Final = 30 * 86_400.0
"""Seconds that the id of an operation is kept after the gateway acknowledged its finish."""
_TRANSIENT: Final = (
    *("SQLITE_BUSY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_NOMEM"),
    "SQLITE_READONLY",
)
"""SQLite errors that do not mean that the file is damaged."""
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS operations (
    id TEXT PRIMARY KEY NOT NULL,
    accepted REAL NOT NULL, -- when, in seconds since the epoch
    finish BLOB,            -- the `operation.finish` message, until it is answered
    answered INTEGER NOT NULL DEFAULT 0
)
"""


class Journal:
    """The operations of one ICE. Each method is durable when it returns; all raise `FolderUnusable`.

    The constructor checks the file, and raises `IdentityProblem` if it is damaged or not a journal.
    """

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        with self._errors():
            platform.touch_private(path)
            try:
                self._connection = self._connect()
            except (
                sqlite3.Error,
                UnicodeDecodeError,
            ) as error:  # of a message that quotes the file
                name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
                if name.startswith(_TRANSIENT):  # extended ones are SQLITE_IOERR_READ and the like
                    raise
                raise IdentityProblem(
                    f"the journal of operations {path} is damaged ({one_line(str(error))}): move it away and"
                    " start again; unsent results and the record of past operations are lost with it"
                ) from error

    def _connect(self) -> sqlite3.Connection:
        # SQLite reports a busy file after so many seconds; the folder's lock excludes other clients.
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=1.0)
        # EXTRA: a commit survives a power cut even if the file system writes the folder's names late.
        connection.execute("PRAGMA synchronous=EXTRA")
        [[found]] = connection.execute("PRAGMA quick_check(1)")
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        connection.execute(_TABLE)
        connection.execute("SELECT id, accepted, finish, answered FROM operations LIMIT 1")
        expired = self._now() - KEPT
        connection.execute("DELETE FROM operations WHERE answered AND accepted < ?", (expired,))
        return connection

    def accept(self, operation: str) -> bool:
        """Record an operation, before it starts; false if it was accepted before."""
        sql = "INSERT INTO operations (id, accepted) VALUES (?, ?) ON CONFLICT DO NOTHING"
        with self._errors():
            return self._connection.execute(sql, (operation, self._now())).rowcount == 1

    def finish(self, operation: str, message: bytes) -> None:
        """Record a finish, before it is sent."""
        self._rows("UPDATE operations SET finish = ? WHERE id = ?", message, operation)

    def answered(self, operation: str) -> None:
        """Record that the gateway acknowledged the finish."""
        self._rows("UPDATE operations SET finish = NULL, answered = 1 WHERE id = ?", operation)

    def finish_of(self, operation: str) -> bytes | None:
        """The unanswered finish of an operation."""
        rows = self._rows("SELECT finish FROM operations WHERE id = ?", operation)
        return rows[0][0] if rows else None

    def unanswered(self) -> list[str]:
        """The operations whose finishes are unanswered, oldest first."""
        return self._ids("SELECT id FROM operations WHERE finish IS NOT NULL ORDER BY accepted, id")

    def interrupted(self) -> list[str]:
        """The accepted operations without a finish."""
        return self._ids("SELECT id FROM operations WHERE finish IS NULL AND NOT answered")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _ids(self, sql: str) -> list[str]:
        return [name for (name,) in self._rows(sql)]

    def _rows(self, sql: str, *params: object) -> list[Any]:
        with self._errors():
            return self._connection.execute(sql, params).fetchall()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise FolderUnusable(
                f"the journal of operations {self._path} cannot be used: {one_line(str(error))}"
            ) from error
