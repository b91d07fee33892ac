"""Moves a gateway's database from its SQLite file to PostgreSQL: all of it, verified, or nothing.

The file stays, and says from then on that it is a copy: a gateway on it would admit nobody.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import asyncpg

from gateway.core.audit_event import GENESIS
from gateway.core.hash_chain import Head
from gateway.core.times import Clock
from gateway.runtime.database_url import shown
from gateway.services.audit import Audit
from gateway.store.engine import (
    Engine,
    Row,
    StoreRefused,
    StoreRefusedForNow,
    StoreUnavailable,
    Tell,
)
from gateway.store.last_seen import confirmed
from gateway.store.postgres.connection import connect
from gateway.store.postgres.migrate import SERVE, set_up, told
from gateway.store.sqlite.guard import sentence
from gateway.store.sqlite.migrate import alone, released, resolve
from gateway.store.sqlite.snapshot import AsItIs, as_it_is, mark

TABLES: Final = {
    "users": "name",
    "ice_tokens": "ice_name",
    "api_tokens": "id",
    "logins": "token_hash",
    "ice_events": "seq",
    "ice_connections": "id",
    "ice_operations": "number",
    "restored": "id",
}
"""What is moved, with the key of each; none refers to a later one. While this is done there are no sessions."""
_NUMBERED: Final = ("ice_connections", "ice_operations")
"""The tables whose keys the server gives."""
_BATCH: Final = 1000
_LONG: Final = 3600.0
"""Seconds for a statement that moves or counts rows."""

Progress = Callable[[str, int], None]
"""Is told a table, and how many rows more of it have arrived."""


@dataclass(frozen=True, slots=True)
class Moved:
    """How many rows of each table were moved, and the head of the log (None where it is empty)."""

    counts: dict[str, int]
    head: Head | None


async def move(path: Path, url: str, clock: Clock, tell: Tell, progress: Progress) -> Moved:
    """Move the database in the file `path` to that of `url`, whose tables must be empty.

    Raises:
        StoreRefused: one of them is in use or not fit for this, or what arrived is not what was sent.
        StoreUnavailable: one of them cannot be used now. In either case nothing was moved.
    """
    path = resolve(path)
    if not path.exists():
        raise StoreRefused(f"there is no database {path}")
    with alone(path, why="before its database is moved"):
        try:
            with as_it_is(path) as source:
                _check(source, path)
                await set_up(url, create=True, tell=tell)
                moved = await _move(source, url, clock, progress)
            # From here on the truth is on the server.
            await asyncio.to_thread(mark, path, clock())
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(sentence(path, error)) from error
    return moved


def count(path: Path) -> dict[str, int]:
    """How many rows of each table there are to move. Raises `StoreUnavailable`."""
    try:
        with as_it_is(path) as source:
            return {table: source.count(table) for table in TABLES}
    except sqlite3.Error as error:
        raise StoreUnavailable(sentence(path, error)) from error


def _check(source: AsItIs, path: Path) -> None:
    facts, newest = source.facts(), released()[-1][0]
    if not facts.ours or facts.schema != newest:
        raise StoreRefused(
            f"{path} is no database of this version; a command such as `ice-gateway ices list`"
            " migrates an older one"
        )
    damage = source.damage(thorough=True)
    if damage is not None:
        raise StoreRefused(f"{path} is damaged: {damage}")


async def _move(source: AsItIs, url: str, clock: Clock, progress: Progress) -> Moved:
    name = shown(url)
    with told(name):
        connection = await connect(url, _LONG)
        try:
            if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", SERVE):
                raise StoreRefusedForNow(f"a gateway serves {name}: stop it first")
            async with connection.transaction():
                for table in TABLES:
                    if await connection.fetchval(f"SELECT EXISTS (SELECT 1 FROM {table})"):
                        raise StoreRefused(f"{name} is not empty: there are rows in {table}")
                # The log was numbered where it was written, and may begin behind a pruning.
                await connection.execute("ALTER TABLE ice_events DISABLE TRIGGER USER")
                for table, key in TABLES.items():
                    for columns, rows in source.batches(table, key, _BATCH):
                        await connection.copy_records_to_table(table, records=rows, columns=columns)
                        progress(table, len(rows))
                await connection.execute("ALTER TABLE ice_events ENABLE TRIGGER USER")
                # A gateway that crashed has left sessions, which are not moved.
                await connection.executemany(
                    "UPDATE ice_tokens SET lastseen = $2"
                    " WHERE ice_name = $1 AND coalesce(lastseen, '') < $2",
                    await source.fetch(confirmed("TRUE")),
                )
                return await _verify(source, connection, name, clock)
        finally:
            await connection.close(timeout=1.0)


async def _verify(source: AsItIs, connection: asyncpg.Connection, name: str, clock: Clock) -> Moved:
    """See that all has arrived, and let numbers and chain go on behind it."""
    counts = {}
    for table in TABLES:
        counts[table] = int(await connection.fetchval(f"SELECT count(*) FROM {table}"))
        if counts[table] != source.count(table):
            raise StoreRefused(f"not all rows of {table} arrived in {name}: nothing was moved")
    for table in _NUMBERED:
        key = TABLES[table]
        await connection.execute(
            f"SELECT setval(pg_get_serial_sequence('{table}', '{key}'),"
            f" (SELECT coalesce(max({key}), 0) + 1 FROM {table}), false)"
        )
    kept = await _audit(source, clock).head()
    arrived = await _audit(_Server(connection), clock).verify(kept)
    if arrived.fault is not None:
        raise StoreRefused(f"the audit log is not whole: {arrived.fault}; nothing was moved")
    await connection.execute(
        "UPDATE ice_head SET seq = $1, digest = $2",
        *((0, GENESIS) if kept is None else (kept.seq, kept.digest)),
    )
    return Moved(counts, kept)


def _audit(readable: AsItIs | _Server, clock: Clock) -> Audit:
    """Of what can only be read: its head and its proof need no more."""
    return Audit(engine=cast("Engine", readable), clock=clock)


class _Server:
    """Reads within the transaction."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def fetch(self, sql: str, *params: object) -> list[Row]:
        """See `Engine.fetch`."""
        return [tuple(record) for record in await self._connection.fetch(sql, *params)]
