"""A database file from outside: copied while others write, read as it is, checked, put aside.

Nothing here migrates or makes a database. The names of files that are not finished begin with a dot.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

from gateway.core.times import from_text, to_text
from gateway.runtime.files import copy_owner, sync
from gateway.store.engine import Row
from gateway.store.last_seen import cleared

APPLICATION_ID: Final = 0x49434547
"""Marks a file as ours (`PRAGMA application_id`): "ICEG"."""
_BUSY: Final = frozenset({"SQLITE_BUSY", "SQLITE_LOCKED"})


# --- files ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A name for what will be `target`, in a folder of its own beside it that is removed at the end."""
    folder = tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".unfinished", dir=target.parent)
    try:
        yield Path(folder) / target.name  # mkdtemp made it 0700
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put(unfinished: Path, target: Path) -> None:
    """Give a finished file its name, durably and at once; whatever had the name is replaced."""
    copy_owner(unfinished, target)
    sync(unfinished)
    unfinished.replace(target)
    sync(target.parent)


def duplicate(source: Path, target: Path) -> None:
    """Copy a file that nobody writes to; `target` is for its owner alone, and appears whole."""
    with temporary(target) as unfinished:
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        shutil.copyfile(source, unfinished)
        put(unfinished, target)


# --- copies --------------------------------------------------------------------------------------


def copy(source: Path, target: Path) -> None:
    """Copy the database as it is at one moment, while others may write to it.

    SQLite's backup in a single step reads one snapshot: no writer waits for it, and none, however
    busy, makes it begin again. `target`, which must not exist, is one file without a log beside it,
    for its owner alone. Raises `OSError` and `sqlite3.Error`.
    """
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with (
        contextlib.closing(sqlite3.connect(_uri(source, "rw"), uri=True)) as origin,
        contextlib.closing(sqlite3.connect(target, isolation_level=None)) as made,
    ):
        origin.backup(made)
        made.execute("PRAGMA journal_mode=DELETE")
    sync(target)


def mark(path: Path, at: datetime) -> None:
    """Let a copy say that it is one (`0005_restore.sql`), without logins and sessions that are over.

    An older database, which knows nothing of it, is left as it is.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as made:
        if not made.execute("SELECT 1 FROM sqlite_schema WHERE name = 'restored'").fetchall():
            return
        made.execute("BEGIN")
        made.execute("DELETE FROM logins")
        newest = made.execute("SELECT 1 FROM sqlite_schema WHERE name = 'ice_confirmed'").fetchall()
        for statement in cleared("TRUE") if newest else ("DELETE FROM ice_sessions",):
            made.execute(statement)
        # What was put aside for a restored table that still waits stays worth comparing with.
        made.execute(
            "INSERT INTO restored (id, copied, seq)"
            " VALUES (1, ?, (SELECT coalesce(max(seq), 0) FROM ice_events))"
            " ON CONFLICT DO NOTHING",
            (to_text(at),),
        )
        made.execute("COMMIT")
    sync(path)


def single(path: Path) -> bool:
    """Bring a database into one file, which proves that nobody has it open; False where somebody has.

    Raises `sqlite3.Error` where it is damaged.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=1)) as connection:
        try:
            connection.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname in _BUSY:
                return False
            raise
    sync(path)
    return True


# --- reading -------------------------------------------------------------------------------------


class AsItIs:
    """Reads a database without changing a thing. Every method raises `sqlite3.Error`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        """See `engine.Engine.fetch`."""
        numbered = {str(number): value for number, value in enumerate(params, 1)}
        return self._connection.execute(sql, numbered).fetchall()

    def facts(self) -> Facts:
        """What the file says of itself."""
        [tables] = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        return Facts(
            ours=pragma(self._connection, "application_id") == APPLICATION_ID,
            empty=not tables,
            schema=pragma(self._connection, "user_version"),
        )

    def contents(self) -> Contents:
        """What a database of ours holds."""
        ices, events = self.count("ice_tokens"), self.count("ice_events")
        last = self._connection.execute(
            "SELECT at FROM ice_events ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        return Contents(ices, events, None if last is None else from_text(last[0]))

    def count(self, table: str) -> int:
        """How many rows a table has."""
        [count] = self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)

    def batches(self, table: str, key: str, size: int) -> Iterator[tuple[list[str], list[Row]]]:
        """All rows of a table by their key, at most `size` at a time, with the names of its columns."""
        cursor = self._connection.execute(f"SELECT * FROM {table} ORDER BY {key}")
        columns = [name for name, *_ in cursor.description]
        while rows := cursor.fetchmany(size):
            yield columns, rows

    def damage(self, *, thorough: bool) -> str | None:
        """The first thing that is wrong with it; thorough means every index, too."""
        check = "integrity_check" if thorough else "quick_check"
        [found] = self._connection.execute(f"PRAGMA {check}(1)").fetchone()
        if found != "ok":
            return " ".join(str(found).split())
        orphan = self._connection.execute("PRAGMA foreign_key_check").fetchone()
        return None if orphan is None else f"a row of {orphan[0]} refers to none of {orphan[2]}"


@dataclass(frozen=True, slots=True)
class Facts:
    """Whether a file is a database of ours, or of nobody yet, and the number of its schema."""

    ours: bool
    empty: bool
    schema: int


@dataclass(frozen=True, slots=True)
class Contents:
    """How many ICEs and events there are, and of when the last event is."""

    ices: int
    events: int
    last: datetime | None


@contextlib.contextmanager
def as_it_is(path: Path) -> Iterator[AsItIs]:
    """Open a database to be read alone: no migration, no new file. Raises `sqlite3.Error`."""
    # A reader would leave the files of the log behind; where there are none nobody writes either.
    quiet = not any(Path(f"{path}{suffix}").exists() for suffix in ("-wal", "-journal"))
    uri = _uri(path, "ro") + ("&immutable=1" if quiet else "")
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        yield AsItIs(connection)


def pragma(connection: sqlite3.Connection, name: str) -> int:
    """The number that a pragma gives."""
    [value] = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path))}?mode={mode}"
