"""Checks an SQLite file before each use, and translates SQLite's errors.

Source of the codes: https://www.sqlite.org/rescode.html.

Tested in tests/contract/test_sqlite_faults.py.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gateway.core.text import printable_line
from gateway.store.engine import OutcomeUnknown, StoreLocked, StoreUnavailable, Undecodable

_DAMAGED: Final = (
    "it is damaged, or its disk fails: see the system's log; unless a check soon finds it whole,"
    " stop the gateway, restore a backup, start it again"
)
_ADVICE: Final = {
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_IOERR: "its disk is full or fails: make room, or read the system's log",
    sqlite3.SQLITE_READONLY: "make its file, its folder and their file system writable",
    sqlite3.SQLITE_BUSY: "another program holds it: let that finish, or stop it",
    sqlite3.SQLITE_CANTOPEN: "look at the owner and the mode of its file and folder",
    # A disk that cannot be read looks the same: SQLite turns EIO into SQLITE_CORRUPT.
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_UNDONE: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY})
_UNKNOWN: Final = "it is not known whether the last change was made: look before you try again"


def describe(path: Path, error: Exception, doing: str = "used") -> str:
    """A sentence for the operator: why the database cannot be used (or opened), and what to do."""
    if isinstance(error, UnicodeDecodeError):
        # Python cannot decode SQLite's message, which quotes the damaged schema.
        return f"the database {path} cannot be {doing}: its schema cannot be read; {_DAMAGED}"
    advice = _ADVICE.get(_code(error))
    return f"the database {path} cannot be {doing}: {printable_line(str(error))}" + (
        f"; {advice}" if advice else ""
    )


def may_be_done(error: sqlite3.Error) -> bool:
    """Whether a COMMIT that failed with `error` may be in effect after a crash.

    If the write-ahead log could not be written, its last frame, which commits, is missing. If it was written but
    could not be synced, the frame may have reached the disk: SQLite ignores it, but the recovery after a crash
    would apply it.
    """
    if _code(error) == sqlite3.SQLITE_IOERR:
        return error.sqlite_errorcode != sqlite3.SQLITE_IOERR_WRITE
    return _code(error) not in _UNDONE


def _code(error: Exception) -> int:
    """SQLite's primary result code; 0 for another error."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


class Guard:
    """Refuses the use of the file at `path` once it was replaced, removed or found damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.condemned: str | None = None
        """Why it must not be used any more."""
        self.damage: str | None = None
        """Why it must not be used until a check has found it whole."""
        self._names = [str(path)]
        self._files = self._look()

    def watch_log(self) -> None:
        """Watch the write-ahead log, too; it exists after the first read."""
        self._names = [str(self.path), f"{self.path}-wal"]
        self._files = self._look()

    @property
    def fault(self) -> str | None:
        """Why the file must not be used; None as long as it may."""
        if self.condemned is not None:
            return self.condemned
        if not self.moved:
            return self.damage
        return (
            f"the database file {self.path}, or its -wal file, is gone or was replaced;"
            " put both back, or restart the gateway"
        )

    @property
    def moved(self) -> bool:
        """Whether the file at the path is missing or a different one."""
        return self._look() != self._files

    def condemn(self, reason: str) -> None:
        """Refuse every use from now on; the first reason stays."""
        self.condemned = self.condemned or reason

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Refuse a use if there is a `fault`, and translate SQLite's errors into `StoreUnavailable`."""
        if self.fault is not None:
            raise StoreUnavailable(self.fault)
        try:
            yield
        except UnicodeDecodeError as error:
            self.damage = describe(self.path, error)
            raise StoreUnavailable(self.damage) from error
        except sqlite3.DatabaseError as error:
            # A violated constraint or a bug of ours is no fault of the database.
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise
            reason = describe(self.path, error)
            if _code(error) in _DAMAGE:
                # More may be damaged: further writes could destroy it.
                self.damage = reason
            if isinstance(error, sqlite3.OperationalError) and not hasattr(
                error, "sqlite_errorcode"
            ):
                # Python raised it, not SQLite: the text is not UTF-8.
                raise Undecodable(reason) from error
            locked = _code(error) == sqlite3.SQLITE_BUSY
            raise (StoreLocked if locked else StoreUnavailable)(reason) from error

    def check_committed(self) -> None:
        """Raise `OutcomeUnknown` if the file was moved: the commit went into the moved file."""
        if self.moved:
            raise OutcomeUnknown(f"{self.fault}; {_UNKNOWN}")

    def unknown(self, error: sqlite3.Error) -> OutcomeUnknown:
        """The error for a COMMIT that failed with `error` but `may_be_done`."""
        return OutcomeUnknown(f"{describe(self.path, error)}; {_UNKNOWN}")

    def _look(self) -> list[tuple[int, int] | None]:
        return [_identity(name) for name in self._names]


def _identity(name: str) -> tuple[int, int] | None:
    try:
        status = os.stat(name)  # noqa: PTH116 - a microsecond before every query
    except OSError:
        return None
    return status.st_dev, status.st_ino
