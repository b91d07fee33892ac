"""The engine for several gateways on one database: PostgreSQL.

Importing it without the `postgres` extra raises `StoreRefused`, which says what to install.
"""

from gateway.store.engine import StoreRefused

try:
    import asyncpg as _  # noqa: F401 - the modules of this package need it
except ModuleNotFoundError as error:
    raise StoreRefused(
        f"a database on PostgreSQL needs {error.name}: pip install 'ice-gateway[postgres]'"
    ) from None
