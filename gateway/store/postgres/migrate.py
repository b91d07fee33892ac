"""The checks, the tables and the migrations of a PostgreSQL database, before an engine opens it.

An error names what to change, and never the password.

Tested in tests/contract/test_postgres.py and tests/contract/test_schemas.py.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Final

import asyncpg

from gateway.core.text import printable_line
from gateway.runtime.database_url import ENCODE, shown
from gateway.store.engine import (
    Fetch,
    StoreRefused,
    StoreRefusedForNow,
    StoreUnavailable,
    Tell,
)
from gateway.store.migration_files import in_order
from gateway.store.postgres import migrations
from gateway.store.postgres.connection import LOST, PATIENCE, connect, fetch_on

_LONG: Final = 600.0
"""Seconds for a statement of a migration, or for a count of all rows."""
OLDEST: Final = 14
"""The oldest maintained release of PostgreSQL."""
_SETUP: Final = 1_001
"""The advisory lock of a process that makes or migrates the tables,"""
SERVE: Final = 1_002
"""and of a gateway that serves the database."""


async def is_served(fetch: Fetch) -> bool:
    """Whether a gateway serves the database now."""
    [(held,)] = await fetch(
        "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        f" AND classid = 0 AND objid = {SERVE} AND objsubid = 1)"
    )
    return bool(held)


@contextlib.asynccontextmanager
async def open_read_only(url: str) -> AsyncIterator[tuple[Fetch, int]]:
    """Its `fetch` and its schema (0 if it has no tables of a gateway), without changing it.

    Raises `StoreRefused` and `StoreUnavailable`.
    """
    async with connected(url, _LONG) as (connection, name):
        yield fetch_on(connection), await _version(connection, name)


async def set_up(url: str, *, create: bool, tell: Tell) -> None:
    """Make or migrate the tables, forward only, while no other process does.

    Raises:
        StoreRefused: the database cannot be used as it is.
        StoreUnavailable: it cannot be reached or used now.
    """
    async with connected(url, _LONG) as (connection, name):
        await _check(connection, url)
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _SETUP)
            await _bring_up(connection, name, create=create, tell=tell)


@contextlib.asynccontextmanager
async def connected(url: str, patience: float) -> AsyncIterator[tuple[asyncpg.Connection, str]]:
    """A connection, and what an operator calls the database; see `connect`.

    Errors become `StoreRefused` and `StoreUnavailable` that name what to change.
    """
    name = shown(url)
    try:
        connection = await connect(url, patience)
        try:
            yield connection, name
        finally:
            await connection.close(timeout=1.0)
    except (ValueError, asyncpg.PostgresError, *LOST) as error:
        raise _unusable(name, error) from error


def _unusable(name: str, error: Exception) -> StoreRefused | StoreUnavailable:
    text = printable_line(str(error)) or f"no answer for {PATIENCE:.0f} s"
    if type(error) is ValueError:
        text = f"it cannot be taken apart: {ENCODE}"  # the error quotes it, with its password
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return StoreRefusedForNow(
            f"{name} is a read-only replica: name the primary in database.url, or all servers as"
            " postgresql://USER@HOST1,HOST2/NAME"
        )
    for kinds, advice in _REFUSALS:
        if isinstance(error, kinds):
            return StoreRefused(f"the database {name} refuses: {text}; {advice}")
    return StoreUnavailable(f"the database {name} cannot be reached: {text}")


_NO_PROXY: Final = "give the address of PostgreSQL itself, or of a proxy that pools sessions"
_REFUSALS: Final[tuple[tuple[tuple[type[Exception], ...], str], ...]] = (
    (
        (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError),
        "see the user and the password of database.url (or PGPASSWORD, or ~/.pgpass), and pg_hba.conf",
    ),
    (
        (asyncpg.InvalidCatalogNameError,),
        "make it with `createdb`, or name another in database.url",
    ),
    (
        (asyncpg.InsufficientPrivilegeError,),
        "grant it to the user of database.url, or make that user the owner of the database",
    ),
    ((asyncpg.ReadOnlySQLTransactionError,), "name the primary in database.url"),
    ((socket.gaierror,), "see the host of database.url"),
    ((ValueError, asyncpg.ClientConfigurationError), "see database.url"),
)


async def _check(connection: asyncpg.Connection, url: str) -> None:
    """Refuse a server or a database with which the engine cannot keep its promises."""
    name = shown(url)
    major = connection.get_server_version().major
    if major < OLDEST:
        raise StoreRefused(f"{name} is PostgreSQL {major}: {OLDEST} or newer is needed")
    if await connection.fetchval("SELECT current_setting('transaction_read_only')") == "on":
        raise StoreRefusedForNow(f"{name} is read-only: see default_transaction_read_only")
    encoding = await connection.fetchval("SELECT current_setting('server_encoding')")
    if encoding != "UTF8":
        raise StoreRefused(f"{name} has the encoding {encoding}: make one with UTF8")
    # Two connections are two sessions, unless a proxy pools them.
    other = await connect(url)
    try:
        if await connection.fetchval(_PID) == await other.fetchval(_PID):
            raise StoreRefused(f"{name} is behind a proxy that pools transactions: {_NO_PROXY}")
    finally:
        await other.close(timeout=1.0)


_PID: Final = "SELECT pg_backend_pid()"


_NODES: Final = 8
"""The schema that has `ice_nodes`,"""
_OTHER_LEASES: Final = 11
"""and the first in which peers time a node's lease by their own clocks."""


def released() -> list[tuple[int, str]]:
    """The migrations as (number, SQL), in order."""
    return in_order(migrations)


async def _bring_up(connection: asyncpg.Connection, name: str, *, create: bool, tell: Tell) -> None:
    steps = released()
    newest = steps[-1][0]
    version = await _version(connection, name)
    if version > newest:
        raise StoreRefused(
            f"{name} was written by a newer gateway (schema {version}, this one knows {newest}):"
            " upgrade the gateway"
        )
    if not version and not create:
        raise StoreRefused(
            f"{name} has no tables of a gateway: name another --database; `ice-gateway serve` makes them"
        )
    if _NODES <= version < _OTHER_LEASES:
        await _refuse_older_nodes(connection, name)
    for number, sql in steps:
        if number > version:
            await connection.execute(sql)
    if not version:
        await connection.execute("INSERT INTO ice_schema VALUES ($1)", newest)
    elif version < newest:
        await connection.execute("UPDATE ice_schema SET version = $1", newest)
        tell(f"the database {name} was migrated from schema {version} to {newest}")


async def _refuse_older_nodes(connection: asyncpg.Connection, name: str) -> None:
    """Refuse to migrate while nodes run that time leases by the server's clock."""
    serving = await connection.fetch(
        "SELECT name FROM ice_nodes WHERE lease_until > lease_clock() ORDER BY name"
    )
    if serving:
        names = ", ".join(row["name"] for row in serving)
        raise StoreRefusedForNow(
            f"{name} is served by nodes of an older version: {names}; stop them, then start this one"
            " (a node that was killed counts for as long as its lease)"
        )


async def _version(connection: asyncpg.Connection, name: str) -> int:
    """The number of its schema, 0 if there is none yet."""
    if await connection.fetchval("SELECT to_regclass('ice_schema')") is not None:
        return int(await connection.fetchval("SELECT version FROM ice_schema"))
    if await connection.fetchval("SELECT to_regclass('users')") is not None:
        raise StoreRefused(f"{name} is a database of another program: make one for the gateway")
    return 0
