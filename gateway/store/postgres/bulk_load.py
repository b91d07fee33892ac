"""Fills an empty PostgreSQL database with rows that another gateway's database holds, in one transaction.

Tested in tests/gateway/services/test_store_migration.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

import asyncpg

from gateway.core.audit_event import GENESIS
from gateway.core.hash_chain import Head
from gateway.store.engine import Row, StoreRefused, StoreRefusedForNow
from gateway.store.postgres.connection import fetch_on
from gateway.store.postgres.migrate import SERVE, connected
from gateway.store.tables import MOVED, Table

_LONG: Final = 3600.0
"""Seconds for a statement that moves or counts rows."""


class BulkLoad:
    """The transaction; `fetch` reads within it. Make one with `bulk_load`."""

    def __init__(self, connection: asyncpg.Connection, name: str) -> None:
        self._connection = connection
        self.name = name
        self.fetch = fetch_on(connection)

    async def check_empty(self) -> None:
        """Raise `StoreRefused` if a table that is to be filled has rows."""
        for table in MOVED:
            if await self._connection.fetchval(f"SELECT EXISTS (SELECT 1 FROM {table.name})"):
                raise StoreRefused(f"{self.name} is not empty: there are rows in {table.name}")

    async def guard_log(self, *, guarded: bool) -> None:
        """Turn the triggers of the audit log on or off: a pruned log does not begin with event 1."""
        await self._connection.execute(
            f"ALTER TABLE ice_events {'ENABLE' if guarded else 'DISABLE'} TRIGGER USER"
        )

    async def add(self, table: Table, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Add rows as they are."""
        await self._connection.copy_records_to_table(table.name, records=rows, columns=columns)

    async def end_sessions(self, seen: Sequence[Row]) -> None:
        """Store that no ICE is connected, and a later `lastseen` of ICEs, given as (name, time) pairs."""
        await self._connection.execute("UPDATE ice_tokens SET node = NULL WHERE node IS NOT NULL")
        await self._connection.executemany(
            "UPDATE ice_tokens SET lastseen = $2"
            " WHERE ice_name = $1 AND coalesce(lastseen, '') < $2",
            seen,
        )

    async def count(self, table: Table) -> int:
        """How many rows a table has."""
        return int(await self._connection.fetchval(f"SELECT count(*) FROM {table.name}"))

    async def continue_numbers(self) -> None:
        """Let the server number new rows after those that were added."""
        for table in MOVED:
            if table.numbered:
                await self._connection.execute(
                    f"SELECT setval(pg_get_serial_sequence('{table.name}', '{table.key}'),"
                    f" (SELECT coalesce(max({table.key}), 0) + 1 FROM {table.name}), false)"
                )

    async def continue_log(self, head: Head | None) -> None:
        """Let the audit log continue after `head`; None if it is empty."""
        await self._connection.execute(
            "UPDATE ice_head SET seq = $1, digest = $2",
            *((0, GENESIS) if head is None else (head.seq, head.digest)),
        )


@contextlib.asynccontextmanager
async def bulk_load(url: str) -> AsyncIterator[BulkLoad]:
    """Commit what was loaded when the block ends, or nothing if it raises.

    Raises:
        StoreRefused: a gateway serves the database, or it cannot be used as it is.
        StoreUnavailable: it cannot be used now.
    """
    async with connected(url, _LONG) as (connection, name):
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", SERVE):
            raise StoreRefusedForNow(f"a gateway serves {name}: stop it first")
        async with connection.transaction():
            yield BulkLoad(connection, name)
