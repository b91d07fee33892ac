"""What an ICE must not forget of its operations: which it has accepted, and what each has come to.

It lies in the state folder and is written before anything is answered or sent, so that after a crash none
runs twice and no result is lost. Source: contract section 9, "in an ICE that remembers its ids".
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from client import platform
from client.errors import one_line

KEPT: Final = 30 * 86_400.0
"""Seconds for which the id of an operation is remembered once the gateway knows what it came to."""
_TRANSIENT: Final = (
    *("SQLITE_BUSY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_NOMEM"),
    "SQLITE_READONLY",
)
"""Errors that say nothing of the file's content."""
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS operations (
    id TEXT PRIMARY KEY NOT NULL,
    accepted REAL NOT NULL, -- when, in seconds since the epoch
    finish BLOB,            -- the message that tells what it came to, until it is answered
    answered INTEGER NOT NULL DEFAULT 0
)
"""


class JournalUnusable(Exception):
    """The journal cannot be read or written; the text says why."""


class JournalDamaged(JournalUnusable):
    """The file holds no journal, or not a whole one; the text says what a person should do."""


class Journal:
    """The operations of one ICE. Each method is durable when it returns, and raises `JournalUnusable`.

    Making it checks the file, and raises `JournalDamaged` where that fails.
    """

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        with self._told(), self._checked():
            platform.touch_private(path)
            # SQLite reports a busy file after this many seconds; the folder's lock keeps others away.
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=1.0)
            # EXTRA: a commit outlives a power cut also where the names in the folder are written late.
            self._connection.execute("PRAGMA synchronous=EXTRA")
            [[found]] = self._connection.execute("PRAGMA quick_check(1)")
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            self._connection.execute(_TABLE)
            self._connection.execute(
                "SELECT id, accepted, finish, answered FROM operations LIMIT 1"
            )
            self._connection.execute(
                "DELETE FROM operations WHERE answered AND accepted < ?", (now() - KEPT,)
            )

    def knows(self, operation: str) -> bool:
        """Whether this operation was accepted before."""
        return bool(self._rows("SELECT 1 FROM operations WHERE id = ?", operation))

    def accept(self, operation: str) -> None:
        """Remember an operation, before it is begun."""
        self._rows(
            "INSERT INTO operations (id, accepted) VALUES (?, ?) ON CONFLICT DO NOTHING",
            operation,
            self._now(),
        )

    def finish(self, operation: str, message: bytes) -> None:
        """Remember what to tell the gateway, before it is told."""
        self._rows("UPDATE operations SET finish = ? WHERE id = ?", message, operation)

    def answered(self, operation: str) -> None:
        """The gateway knows what it came to."""
        self._rows("UPDATE operations SET finish = NULL, answered = 1 WHERE id = ?", operation)

    def finish_of(self, operation: str) -> bytes | None:
        """What is to be told of this operation, if the gateway has not answered it."""
        rows = self._rows("SELECT finish FROM operations WHERE id = ?", operation)
        return rows[0][0] if rows else None

    def unanswered(self) -> list[str]:
        """The operations of which the gateway is to be told what they came to, oldest first."""
        return self._ids("SELECT id FROM operations WHERE finish IS NOT NULL ORDER BY accepted, id")

    def interrupted(self) -> list[str]:
        """Those that were accepted and have come to nothing yet."""
        return self._ids("SELECT id FROM operations WHERE finish IS NULL AND NOT answered")

    def unsettled(self) -> list[str]:
        """Those of which the gateway is still to be told, whatever they have come to."""
        return self._ids("SELECT id FROM operations WHERE NOT answered")

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def _ids(self, sql: str) -> list[str]:
        return [name for (name,) in self._rows(sql)]

    def _rows(self, sql: str, *params: object) -> list[Any]:
        with self._told():
            return self._connection.execute(sql, params).fetchall()

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
            if not name.startswith(_TRANSIENT):  # extended ones are SQLITE_IOERR_READ and the like
                reason = one_line(str(error))
                raise JournalDamaged(
                    f"the journal of operations {self._path} is damaged ({reason}): move it away and start"
                    " again; results that the gateway has not yet, and which operations have already"
                    " been run, are lost with it"
                ) from error
            raise

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise JournalUnusable(
                f"the journal of operations {self._path} cannot be used: {error}"
            ) from error
