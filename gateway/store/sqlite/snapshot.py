"""A database file without an engine: copied while others write, read without changing it, checked, replaced.

Nothing here migrates or makes a database. The names of unfinished files begin with a dot.

Tested in tests/contract/test_sqlite.py and tests/gateway/services/test_backup.py.
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

from gateway.core.text import printable_line
from gateway.core.times import to_text
from gateway.runtime.files import copy_owner, sync
from gateway.store.engine import Row
from gateway.store.last_seen import stored
from gateway.store.sqlite.parameters import numbered
from gateway.store.tables import NOT_COPIED, Table

APPLICATION_ID: Final = 0x49434547
"""`PRAGMA application_id` of the files of a gateway: "ICEG"."""
_BUSY: Final = frozenset({"SQLITE_BUSY", "SQLITE_LOCKED"})


# --- files ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A path for an unfinished `target`, in a temporary folder beside it that is removed at the end."""
    folder = tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".unfinished", dir=target.parent)
    try:
        yield Path(folder) / target.name  # mkdtemp made it 0700
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(unfinished: Path, target: Path) -> None:
    """Rename a finished file to `target`, durably and atomically; it replaces a file of that name."""
    copy_owner(unfinished, target)
    sync(unfinished)
    unfinished.replace(target)
    sync(target.parent)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file while no process writes to it; `target` (0600) appears complete."""
    with temporary(target) as unfinished:
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        shutil.copyfile(source, unfinished)
        put_in_place(unfinished, target)


# --- copies --------------------------------------------------------------------------------------


def copy_database(source: Path, target: Path) -> None:
    """Copy a snapshot of the database, while others may write to it.

    SQLite's backup in one step reads one snapshot: no writer waits for it, and no writer makes it start again.
    `target` (0600), which must not exist, is one file without a log beside it. Raises `OSError` and
    `sqlite3.Error`.
    """
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with (
        contextlib.closing(sqlite3.connect(_uri(source, "rw"), uri=True)) as origin,
        contextlib.closing(sqlite3.connect(target, isolation_level=None)) as made,
    ):
        origin.backup(made)
        made.execute("PRAGMA journal_mode=DELETE")
    sync(target)


def mark_as_copy(path: Path, at: datetime) -> None:
    """Mark a database as a copy (`0005_restore.sql`), and delete the rows that no copy keeps.

    A database whose schema has no mark stays unchanged.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as made:
        there = {name for (name,) in made.execute("SELECT name FROM sqlite_schema")}
        if "restored" not in there:
            return
        made.execute("BEGIN")
        if "ice_confirmed" in there:
            made.execute(stored("TRUE"))
        if any(name == "node" for _, name, *_ in made.execute("PRAGMA table_info(ice_tokens)")):
            made.execute("UPDATE ice_tokens SET node = NULL WHERE node IS NOT NULL")
        for name in NOT_COPIED:
            if name in there:
                made.execute(f"DELETE FROM {name}")
        if "webhook_sender" in there:
            # The events of the copy will have other contents than those that have the same numbers elsewhere.
            made.execute("UPDATE webhook_sender SET log = lower(hex(randomblob(8))), node = NULL")
        # An earlier mark stays: the review needs the databases that it names.
        made.execute(
            "INSERT INTO restored (id, copied, seq)"
            " VALUES (1, ?, (SELECT coalesce(max(seq), 0) FROM ice_events))"
            " ON CONFLICT DO NOTHING",
            (to_text(at),),
        )
        made.execute("COMMIT")
    sync(path)


def into_one_file(path: Path) -> bool:
    """Bring a database into one file; False if another process has it open.

    Raises `sqlite3.Error` if it is damaged.
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


class ReadOnlyDatabase:
    """Reads a database without changing it. Every method raises `sqlite3.Error`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        """See `engine.Engine.fetch`."""
        return self._connection.execute(sql, numbered(params)).fetchall()

    def schema_info(self) -> SchemaInfo:
        """The identity of the database, from its header."""
        [tables] = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        return SchemaInfo(
            ours=pragma(self._connection, "application_id") == APPLICATION_ID,
            empty=not tables,
            schema=pragma(self._connection, "user_version"),
        )

    def count(self, table: Table) -> int:
        """How many rows a table has."""
        [count] = self._connection.execute(f"SELECT count(*) FROM {table.name}").fetchone()
        return int(count)

    def batches(self, table: Table, size: int) -> Iterator[tuple[list[str], list[Row]]]:
        """The column names and at most `size` rows at a time of a table, ordered by its key."""
        cursor = self._connection.execute(f"SELECT * FROM {table.name} ORDER BY {table.key}")
        columns = [name for name, *_ in cursor.description]
        while rows := cursor.fetchmany(size):
            yield columns, rows

    def find_damage(self, *, thorough: bool) -> str | None:
        """The first damage that a check finds; `thorough` checks the indexes, too."""
        check = "integrity_check" if thorough else "quick_check"
        [found] = self._connection.execute(f"PRAGMA {check}(1)").fetchone()
        if found != "ok":
            return printable_line(str(found))
        orphan = self._connection.execute("PRAGMA foreign_key_check").fetchone()
        if orphan is None:
            return None
        return printable_line(f"a row of {orphan[0]} refers to none of {orphan[2]}")


@dataclass(frozen=True, slots=True)
class SchemaInfo:
    """Whether a database is a gateway's (`ours`), or `empty`, and the number of its schema."""

    ours: bool
    empty: bool
    schema: int


@contextlib.contextmanager
def open_read_only(path: Path) -> Iterator[ReadOnlyDatabase]:
    """Open a database for reading only: no migration, no new file. Raises `sqlite3.Error`."""
    # A reader would leave the files of a log behind. If there are none, no process writes either.
    quiet = not any(Path(f"{path}{suffix}").exists() for suffix in ("-wal", "-journal"))
    uri = _uri(path, "ro") + ("&immutable=1" if quiet else "")
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        try:
            yield ReadOnlyDatabase(connection)
        except UnicodeDecodeError as error:
            # Python cannot decode SQLite's message, which quotes the damaged schema.
            raise sqlite3.DatabaseError("its schema is damaged") from error


def pragma(connection: sqlite3.Connection, name: str) -> int:
    """The value of a pragma that is a number."""
    [value] = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path))}?mode={mode}"
