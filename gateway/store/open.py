"""Opens the database that a URL names with the engine for it.

Tested in tests/gateway/cli/test_cli.py and tests/gateway/services/test_store_migration.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from gateway.runtime.database_url import file_of
from gateway.store.engine import Engine, Tell, log
from gateway.store.sqlite.engine import open_sqlite


@contextlib.asynccontextmanager
async def open_store(
    url: str,
    *,
    node: str | None = None,
    create: bool = True,
    tell: Tell = log,
) -> AsyncIterator[Engine]:
    """Open a database, making and migrating it if necessary; see `open_sqlite`, `open_postgres`.

    `node` is the name of the gateway that serves it; a command passes none.

    Raises:
        StoreRefused: it cannot be used as it is; the text says what to change.
        StoreUnavailable: it cannot be used now.
    """
    path = file_of(url)
    if path is not None:
        serving = node is not None
        async with open_sqlite(path, serving=serving, create=create, tell=tell) as file:
            yield file
        return
    from gateway.store.postgres.engine import open_postgres  # noqa: PLC0415 - asyncpg is optional

    async with open_postgres(url, node=node, create=create, tell=tell) as server:
        yield server
