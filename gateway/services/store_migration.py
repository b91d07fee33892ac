"""Moves a gateway's database from its SQLite file to PostgreSQL: all of it, verified, or nothing.

The file stays, marked as a copy: a gateway on it admits no ICE until `restore --confirm`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from gateway.core.hash_chain import Head
from gateway.core.times import Clock
from gateway.services.audit import Audit
from gateway.store.engine import Engine, StoreRefused, StoreUnavailable, Tell
from gateway.store.last_seen import confirmed
from gateway.store.postgres.bulk_load import BulkLoad, bulk_load
from gateway.store.postgres.migrate import set_up
from gateway.store.sqlite.guard import describe
from gateway.store.sqlite.migrate import exclusively, released, resolve
from gateway.store.sqlite.snapshot import ReadOnlyDatabase, mark_as_copy, open_read_only
from gateway.store.tables import MOVED

_BATCH: Final = 1000
"""Rows that are read and sent at a time."""

Progress = Callable[[str, int], None]
"""Called with a table and the number of its rows that have just arrived."""


@dataclass(frozen=True, slots=True)
class Moved:
    """How many rows of each table were moved, and the head of the log (None if it is empty)."""

    counts: dict[str, int]
    head: Head | None


async def move(path: Path, url: str, clock: Clock, tell: Tell, progress: Progress) -> Moved:
    """Move the database in the file `path` to that of `url`, whose tables must be empty.

    Raises:
        StoreRefused: one of them is in use or unfit, or the rows that arrived differ from those sent.
        StoreUnavailable: one of them cannot be used now. In both cases nothing was moved.
    """
    path = resolve(path)
    if not path.exists():
        raise StoreRefused(f"there is no database {path}")
    with exclusively(path, why="before its database is moved"):
        try:
            with open_read_only(path) as source:
                _check(source, path)
                await set_up(url, create=True, tell=tell)
                moved = await _move(source, url, clock, progress)
            # Committed: from here on the server has the current data.
            await asyncio.to_thread(mark_as_copy, path, clock())
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(describe(path, error)) from error
    return moved


def count(path: Path) -> dict[str, int]:
    """The number of rows to move, by table. Raises `StoreUnavailable`."""
    try:
        with open_read_only(path) as source:
            return {table.name: source.count(table) for table in MOVED}
    except sqlite3.Error as error:
        raise StoreUnavailable(describe(path, error)) from error


def _check(source: ReadOnlyDatabase, path: Path) -> None:
    info, newest = source.schema_info(), released()[-1][0]
    if not info.ours or info.schema != newest:
        raise StoreRefused(
            f"{path} is no database of this version; a command such as `ice-gateway ices list`"
            " migrates an older one"
        )
    damage = source.find_damage(thorough=True)
    if damage is not None:
        raise StoreRefused(f"{path} is damaged: {damage}")


async def _move(source: ReadOnlyDatabase, url: str, clock: Clock, progress: Progress) -> Moved:
    async with bulk_load(url) as target:
        await target.check_empty()
        await target.guard_log(guarded=False)
        for table in MOVED:
            for columns, rows in source.batches(table, _BATCH):
                await target.add(table, columns, rows)
                progress(table.name, len(rows))
        await target.guard_log(guarded=True)
        # Sessions that a crashed gateway left are not moved, but their `lastseen` is.
        await target.end_sessions(await source.fetch(confirmed("TRUE")))
        return await _verify(source, target, clock)


async def _verify(source: ReadOnlyDatabase, target: BulkLoad, clock: Clock) -> Moved:
    """Check that everything has arrived, then let new numbers and the audit log continue after it."""
    counts = {}
    for table in MOVED:
        counts[table.name] = await target.count(table)
        if counts[table.name] != source.count(table):
            raise StoreRefused(
                f"not all rows of {table.name} arrived in {target.name}: nothing was moved"
            )
    await target.continue_numbers()
    head = await _audit(source, clock).head()
    arrived = await _audit(target, clock).verify(head)
    if arrived.fault is not None:
        raise StoreRefused(f"the audit log is not whole: {arrived.fault}; nothing was moved")
    await target.continue_log(head)
    return Moved(counts, head)


def _audit(readable: ReadOnlyDatabase | BulkLoad, clock: Clock) -> Audit:
    """The audit log of a database that can only be read: `head` and `verify` need no more."""
    return Audit(engine=cast("Engine", readable), clock=clock)
