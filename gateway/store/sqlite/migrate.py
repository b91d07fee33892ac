"""The locks, the creation and the migrations of an SQLite file, before an engine opens it.

A migration first makes a copy of the database; where that fails, it does not start.

Tested in tests/contract/test_sqlite.py and tests/contract/test_schemas.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from gateway.core.times import utc_now
from gateway.runtime.files import copy_owner, network_file_system
from gateway.store.engine import StoreRefused, StoreRefusedForNow, StoreUnavailable, Tell
from gateway.store.migration_files import Step, in_order
from gateway.store.sqlite import migrations
from gateway.store.sqlite.commit_record import forget
from gateway.store.sqlite.guard import describe
from gateway.store.sqlite.snapshot import (
    APPLICATION_ID,
    copy_database,
    mark_as_copy,
    pragma,
    put_in_place,
    temporary,
)

BUSY_TIMEOUT: Final = 2.0
"""Seconds to wait for another process that is writing."""
_TAKE_OVER: Final = 0.5
"""Seconds to wait for a gateway that is stopping."""
_SETUP_PATIENCE: Final = 60.0
"""Seconds to wait for another process that migrates."""


# --- locks ---------------------------------------------------------------------------------------


def resolve(path: Path) -> Path:
    """The path without symbolic links: two names of one file must share their locks."""
    return path.resolve()


def is_served(path: Path) -> bool:
    """Whether a gateway serves this database now; makes no file. Raises `StoreUnavailable`."""
    try:
        descriptor = os.open(_lock_file(resolve(path), "serve"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # no gateway has ever served it
        return False
    except OSError as error:
        raise _no_folder(path, error) from error
    try:
        return not _acquire(descriptor, patience=0)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def serving_lock(path: Path) -> Iterator[None]:
    """Hold the database for the gateway that serves it. Raises `StoreRefused` if another gateway does."""
    with lock(path, "serve", patience=_TAKE_OVER) as mine:
        if not mine:
            raise StoreRefusedForNow(
                f"another gateway already serves {path}; stop it, or name another --database"
            )
        yield


@contextlib.contextmanager
def lock(path: Path, purpose: str, *, patience: float) -> Iterator[bool]:
    """Hold a lock beside the database; False if another process holds it for `patience` seconds.

    The lock is on a separate file: closing any handle of the database file would drop SQLite's own locks
    (https://www.sqlite.org/howtocorrupt.html, section 2.2).
    """
    try:
        descriptor = _open_lock(path, _lock_file(path, purpose))
    except OSError as error:
        raise _no_folder(path, error) from error
    try:
        yield _acquire(descriptor, patience)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusively(path: Path, *, why: str) -> Iterator[None]:
    """Keep gateways and commands from opening the database meanwhile. Raises `StoreRefused`."""
    with lock(path, "serve", patience=0) as unserved, lock(path, "setup", patience=1) as mine:
        if not unserved:
            raise StoreRefusedForNow(f"a gateway serves {path}: stop it {why}")
        if not mine:
            raise StoreRefusedForNow(f"another process is opening {path}: try again")
        yield


def _lock_file(path: Path, purpose: str) -> str:
    return f"{path}.{purpose}.lock"


def _open_lock(path: Path, name: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        # 0600 like all our files. A lock file stays: removing it would race with another process.
        descriptor = os.open(name, flags | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(name, flags, 0o600)
    copy_owner(Path(name), path)
    return descriptor


_NEEDS_A_PERSON: Final = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP)
"""Errors of a folder that a person must fix."""


def _no_folder(path: Path, error: OSError) -> StoreRefused | StoreUnavailable:
    kind = StoreRefused if error.errno in _NEEDS_A_PERSON else StoreUnavailable
    return kind(f"the folder of the database {path} cannot be used: {error.strerror or error}")


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


# --- migrations ----------------------------------------------------------------------------------


def released() -> list[Step]:
    """The migrations of this version."""
    return in_order(migrations)


def set_up(
    path: Path,
    *,
    serving: bool,
    create: bool,
    tell: Tell,
    steps: Sequence[Step],
    busy_timeout: float,
) -> None:
    """Make or migrate the file, forward only, while no other process does; see `open_sqlite`.

    Raises:
        StoreRefused: it is missing while `create` is False, or not a database of ours.
        StoreUnavailable: it cannot be read or written, or not be copied before its migration.
    """
    if not create and not path.exists():  # before a lock file is made
        raise StoreRefused(
            f"there is no database {path}: name another --database; `ice-gateway serve` makes one"
        )
    remote = network_file_system(path.parent)
    if remote is not None:
        raise StoreRefused(
            f"{path} lies on a network file system ({remote}), where SQLite's locks do not hold: put it on a"
            " disk of this machine, or use PostgreSQL"
        )
    with lock(path, "setup", patience=_SETUP_PATIENCE) as mine:
        if not mine:
            raise StoreUnavailable(f"another process is still migrating {path}")
        if path.is_dir():
            raise StoreRefused(f"the database {path} is a folder: name the file in it")
        try:
            if not path.exists():
                forget(path)  # it speaks of a database that was taken away
                # Only the owner may read hashes, names and addresses.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            with contextlib.closing(
                sqlite3.connect(path, isolation_level=None, timeout=busy_timeout)
            ) as connection:
                _bring_up(connection, path, steps, serving=serving, tell=tell)
        except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
            if getattr(error, "sqlite_errorname", None) == "SQLITE_NOTADB":
                raise StoreRefused(f"{path} is not an SQLite database") from error
            raise StoreUnavailable(describe(path, error, "opened")) from error


def _bring_up(
    connection: sqlite3.Connection, path: Path, steps: Sequence[Step], *, serving: bool, tell: Tell
) -> None:
    newest = steps[-1][0]
    version = _version(connection, path, newest)
    if version == newest:
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            connection.execute("PRAGMA journal_mode=WAL")  # a copy has another mode
        return
    if version and not serving and is_served(path):
        raise StoreRefusedForNow(
            f"a gateway of an older version serves {path} (schema {version}, this one has {newest}):"
            " stop it first"
        )
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("BEGIN IMMEDIATE")
    # From here on no other process writes: the copy is the state that is migrated.
    kept = _keep(path, newest) if version else None
    for number, sql in steps:
        if number > version:
            for statement in _statements(sql):
                connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={newest}")
    connection.execute("COMMIT")
    if kept is not None:
        tell(
            f"the database {path} was migrated from schema {version} to {newest};"
            f" as it was before it is kept in {kept}"
        )


def _version(connection: sqlite3.Connection, path: Path, newest: int) -> int:
    version = pragma(connection, "user_version")
    application = pragma(connection, "application_id")
    [tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (tables or version or application):
        raise StoreRefused(f"{path} is a database of another program")
    if version > newest:
        raise StoreRefused(
            f"{path} was written by a newer gateway (schema {version}, this one knows {newest}): "
            "upgrade the gateway"
        )
    return version


def _keep(path: Path, newest: int) -> Path:
    """Copy the database beside itself; this replaces the copy of an earlier attempt."""
    kept = path.with_name(f"{path.name}.before-schema-{newest}")
    try:
        with temporary(kept) as unfinished:
            copy_database(path, unfinished)
            mark_as_copy(unfinished, utc_now())
            put_in_place(unfinished, kept)
    except (OSError, sqlite3.Error) as error:
        raise StoreUnavailable(
            f"the database {path} was not migrated, since it cannot be copied to {kept} first: {error}"
        ) from error
    return kept


def _statements(sql: str) -> Iterator[str]:
    """The statements one by one; `executescript` would commit."""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement  # SQLite refuses an unfinished one
