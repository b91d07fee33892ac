"""What was committed last, in a small file beside the database, so that a lost commit is not overlooked.

SQLite takes a damaged write-ahead log for one that a crash cut short, and silently leaves out what follows the damage: a
deregistration that was acknowledged would never have happened. The record names the newest event and the place of the last
commit in the log. Before the database is opened, both must be found.

It is written after each commit and not flushed: it costs some microseconds, and what a power cut may leave is an older
record, which demands less. It never names what is not yet durable, since a commit is durable before it returns.

Source of the two formats: https://www.sqlite.org/walformat.html.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from gateway.core.audit_event import digest_of
from gateway.core.hash_chain import Head
from gateway.runtime.files import copy_owner, sync
from gateway.store.engine import StoreRefused
from gateway.store.events import Events
from gateway.store.sqlite.snapshot import ReadOnlyDatabase, open_read_only

_SIZE: Final = 160
"""Bytes of the record: always in one sector of the disk, so that it is never half an old and half a new one."""
_INDEX: Final = struct.Struct("=12xBxHII8x8s8x")
"""SQLite's header of the index: whether it is made, page size, number of frames, pages, salts."""


@dataclass(frozen=True, slots=True)
class LogPosition:
    """The frames of the write-ahead log up to the last commit; `salts` tell one log from the next in the same file."""

    salts: bytes
    frames: int


@dataclass(frozen=True, slots=True)
class Committed:
    """The newest event, and the place of a commit that was made with it or after it."""

    head: Head | None = None
    log: LogPosition | None = None

    def encode(self) -> bytes:
        """The file's content."""
        log = "- 0" if self.log is None else f"{self.log.salts.hex()} {self.log.frames}"
        text = f"{self.head or '-'} {log}"
        line = f"{text} {zlib.crc32(text.encode()):08x}"
        return line.ljust(_SIZE - 1).encode() + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> Committed:
        """Parse a file's content; a damaged one says nothing."""
        try:
            text, _, check = content.decode("ascii").strip().rpartition(" ")
            if int(check, 16) != zlib.crc32(text.encode()):
                return cls()
            head, salts, frames = text.split(" ")
            log = None if salts == "-" else LogPosition(bytes.fromhex(salts), int(frames))
            return cls(None if head == "-" else Head.parse(head), log)
        except ValueError:
            return cls()


class CommitRecord:
    """The record of an open database. No fault of it stops a commit."""

    def __init__(self, path: Path) -> None:
        self._index = LogIndex(path)
        self._file: int | None = None
        self._last = Committed()
        with contextlib.suppress(OSError):
            record = record_of(path)
            is_new = not record.exists()
            self._file = os.open(record, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if is_new:
                copy_owner(record, path)
            self._last = Committed.decode(os.pread(self._file, _SIZE, 0))

    def committed(self, head: Head | None) -> None:
        """Note a commit that has returned, with its newest event if it has any."""
        if self._file is None:
            return
        log = self._index.position() or self._last.log
        self._last = Committed(head or self._last.head, log)
        with contextlib.suppress(OSError):
            os.pwrite(self._file, self._last.encode(), 0)

    def close(self) -> None:
        """Close the files, once all connections of the engine are closed."""
        self._index.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def record_of(path: Path) -> Path:
    """The record of a database."""
    return path.with_name(f"{path.name}.head")


class LogIndex:
    """SQLite's index of a log, read beside SQLite.

    A process that closes any handle of this file loses all of SQLite's locks on it (POSIX), and another process
    would truncate it under this one. So all readers of a process share one handle, and the last one closes it, when its
    connections are closed.
    """

    _shared: ClassVar[dict[str, LogIndex._Handle]] = {}
    _turn: ClassVar = threading.Lock()

    @dataclass(slots=True)
    class _Handle:
        readers: int = 0
        descriptor: int | None = None

    def __init__(self, path: Path) -> None:
        self._name = f"{path}-shm"
        with self._turn:
            self._shared.setdefault(self._name, self._Handle()).readers += 1

    def header(self) -> bytes | None:
        """Both copies of the header, which every commit of any process changes; None if they cannot be read."""
        try:
            with self._turn:
                content = os.pread(self._descriptor(), 2 * _INDEX.size, 0)
        except OSError:
            return None
        return content if len(content) == 2 * _INDEX.size else None

    def position(self) -> LogPosition | None:
        """Where the log ends; None if there is no index, or while it is written."""
        content = self.header()
        # SQLite writes two copies, one after the other.
        if content is None or content[: _INDEX.size] != content[_INDEX.size :]:
            return None
        made, _, frames, _, salts = _INDEX.unpack_from(content)
        return LogPosition(salts, frames) if made else None

    def _descriptor(self) -> int:
        handle = self._shared[self._name]
        if handle.descriptor is not None and os.fstat(handle.descriptor).st_nlink == 0:
            # The last connection of all processes was closed, and removed the file.
            os.close(handle.descriptor)
            handle.descriptor = None
        if handle.descriptor is None:
            handle.descriptor = os.open(self._name, os.O_RDONLY | os.O_CLOEXEC)
        return handle.descriptor

    def close(self) -> None:
        """Read no more; the connections whose index it is must be closed."""
        with self._turn:
            handle = self._shared[self._name]
            handle.readers -= 1
            if not handle.readers:
                del self._shared[self._name]
                if handle.descriptor is not None:
                    os.close(handle.descriptor)


def forget(path: Path) -> None:
    """Remove the record, durably, before another database is put in place."""
    record_of(path).unlink(missing_ok=True)
    sync(path.parent)


async def check(path: Path) -> None:
    """Refuse a database that lacks what was committed; it stays as it is. Raises `StoreRefused` and `sqlite3.Error`."""
    try:
        # Read first: meanwhile another process may commit.
        committed = Committed.decode(record_of(path).read_bytes())
    except OSError:
        return
    # A connection that writes would apply the readable part of the log, and remove it, when it is closed.
    with contextlib.closing(LogIndex(path)) as index, open_read_only(path) as database:
        missing = await _missing(path, database, index, committed)
    if missing is not None:
        raise StoreRefused(
            f"the database {path} lacks changes that were acknowledged: {missing}; restore a backup"
            f" (`ice-gateway restore`), or remove {record_of(path)} to go on with what is left"
        )


async def _missing(
    path: Path, database: ReadOnlyDatabase, index: LogIndex, committed: Committed
) -> str | None:
    empty = database.schema_info().empty
    log = committed.log
    match index.position():
        case LogPosition(salts, frames) if log and salts == log.salts and frames < log.frames:
            return f"its log {path}-wal can be read up to frame {frames} of {log.frames}"
    head = committed.head
    if head is None:
        return None
    if empty:
        return f"it is empty, and event {head.seq} was written"
    events = Events(database.fetch)
    rows = await events.rows_after(head.seq - 1, 1)
    if rows and rows[0][0] == head.seq:
        same = digest_of(rows[0]) == head.digest
        return None if same else f"its event {head.seq} is another one"
    # Older events may have been pruned by a process that could not write the record.
    last = await events.last()
    return None if last > head.seq else f"it ends at event {last}, and event {head.seq} was written"
