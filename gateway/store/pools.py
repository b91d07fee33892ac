"""SQL of `ice_pools`: pools, how many ICEs belong to them, and whether they are in use.

`ice_filter` has the SQL that says which ICEs belong to a pool.

Tested in tests/contract/test_pools.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from gateway.core.ice import Status, fold
from gateway.core.pool import Pool
from gateway.store import ice_filter
from gateway.store.engine import (
    Fetch,
    Row,
    Transaction,
    as_json,
    columns_of,
    containing,
    from_columns,
    is_in,
    places,
)
from gateway.store.ices import labels_from_text, labels_text, pair_text
from gateway.store.operations import IS_ACTIVE, MAY_WAIT

_NAMES: Final = tuple(Pool.__dataclass_fields__)
_COLUMNS: Final = ", ".join(_NAMES)
_BY_NAME: Final = f"SELECT {_COLUMNS} FROM ice_pools WHERE lower(name) = $1"

_FOUND: Final = "(lower(name) LIKE $1 ESCAPE '\\' OR lower(description) LIKE $1 ESCAPE '\\')"
_OF_USE: Final = f"status NOT IN ('{Status.DEREGISTERED}')"
_COUNTED: Final = f"""
    SELECT ice_type, labels, '{Status.REGISTERED}' AS status,
        1 AS total, CASE WHEN node IS NULL THEN 0 ELSE 1 END AS connected, 0 AS busy
    FROM ice_tokens WHERE {_OF_USE}
    UNION ALL
    SELECT i.ice_type, i.labels, '{Status.REGISTERED}', 0, 0, 1
    FROM ice_operations o JOIN ice_tokens i ON i.ice_name = o.ice_name
    WHERE o.{IS_ACTIVE} AND i.{_OF_USE}
"""
"""SQL for what is summed up for each pool: the ICEs, and once more those that work."""
_GROUPED: Final = f"""
    SELECT ice_type, labels, status,
        sum(total) AS total, sum(connected) AS connected, sum(busy) AS busy
    FROM ({_COUNTED}) each_ice GROUP BY ice_type, labels, status
"""
_FEW: Final = 8
"""More pools are counted on the sets of labels that there are: a fleet has few. To group 100,000 ICEs takes as long
as to count 8 pools without that."""


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """How many ICEs belong to a pool, are connected, and work on an operation."""

    total: int
    connected: int
    busy: int


@dataclass(frozen=True, slots=True)
class PoolUse:
    """What keeps a pool from being deleted: how many operations wait, and the name of a schedule of it."""

    waiting: int
    schedule: str | None


async def find(transaction: Transaction, name: str) -> Pool | None:
    """The pool of this name, case folded, locked until the transaction ends."""
    rows = await transaction.hold(_BY_NAME, fold(name))
    return _pool(rows[0]) if rows else None


async def add(transaction: Transaction, pool: Pool) -> bool:
    """Store a new pool; False if the name is taken."""
    return bool(
        await transaction.run(
            f"INSERT INTO ice_pools ({_COLUMNS}, pairs) VALUES ({places(len(_NAMES) + 1)})"
            " ON CONFLICT DO NOTHING",
            *_row(pool),
            _pairs(pool),
        )
    )


async def update(transaction: Transaction, pool: Pool) -> None:
    """Store what has changed of a pool that the caller has locked."""
    name, description, ice_type, labels, *_ = _row(pool)
    await transaction.run(
        "UPDATE ice_pools SET description = $2, ice_type = $3, labels = $4, pairs = $5"
        " WHERE name = $1",
        *(name, description, ice_type, labels, _pairs(pool)),
    )


async def delete(transaction: Transaction, name: str) -> None:
    """Delete a pool that the caller has locked."""
    await transaction.run("DELETE FROM ice_pools WHERE name = $1", name)


async def count(transaction: Transaction) -> int:
    """How many pools there are."""
    [(number,)] = await transaction.fetch("SELECT count(*) FROM ice_pools")
    return int(number)


async def use(transaction: Transaction, name: str) -> PoolUse:
    """What a pool, given by its exact name, is in use for."""
    [(waiting,)] = await transaction.fetch(
        f"SELECT count(*) FROM ice_operations WHERE pool = $1 AND {MAY_WAIT}", name
    )
    schedules = await transaction.fetch(
        "SELECT name FROM ice_schedules WHERE lower(pool) = $1 ORDER BY name, id LIMIT 1",
        fold(name),
    )
    return PoolUse(int(waiting), schedules[0][0] if schedules else None)


class Pools:
    """Reads pools."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    async def find(self, name: str) -> Pool | None:
        """The pool of this name, case folded."""
        rows = await self._fetch(_BY_NAME, fold(name))
        return _pool(rows[0]) if rows else None

    async def after(self, text: str, after: str, limit: int, offset: int = 0) -> list[Pool]:
        """Pools whose name or description contains `text` and whose folded name follows `after`, by name.

        The first `offset` of them are left out.
        """
        rows = await self._fetch(
            f"SELECT {_COLUMNS} FROM ice_pools WHERE lower(name) > $2 AND {_FOUND}"
            " ORDER BY lower(name) LIMIT $3 OFFSET $4",
            *(containing(fold(text)), after, limit, offset),
        )
        return [_pool(row) for row in rows]

    async def count(self, text: str) -> int:
        """How many pools have `text` in their name or description."""
        [(number,)] = await self._fetch(
            f"SELECT count(*) FROM ice_pools WHERE {_FOUND}", containing(fold(text))
        )
        return int(number)

    async def names(self) -> list[str]:
        """The names of all pools, in order."""
        rows = await self._fetch("SELECT name FROM ice_pools ORDER BY lower(name)")
        return [name for (name,) in rows]

    async def counts(self, pools: Sequence[Pool]) -> list[PoolCounts]:
        """How many ICEs belong to each of these pools; all are counted in one query."""
        if not pools:
            return []
        params: list[object] = []
        source = (
            f"NOT MATERIALIZED ({_COUNTED})" if len(pools) <= _FEW else f"MATERIALIZED ({_GROUPED})"
        )
        sums = ", ".join(f"coalesce(sum(t.{name}), 0)" for name in PoolCounts.__dataclass_fields__)
        counts = (
            f"SELECT {place}, {sums} FROM t WHERE {ice_filter.member(pool, params)}"
            for place, pool in enumerate(pools)
        )
        rows = await self._fetch(f"WITH t AS {source} {' UNION ALL '.join(counts)}", *params)
        return [PoolCounts(*map(int, numbers)) for _, *numbers in sorted(rows)]

    async def waiting(self, pools: Sequence[Pool]) -> dict[str, int]:
        """How many operations wait in each of these pools, by exact name; a pool without any is left out."""
        rows = await self._fetch(
            f"SELECT pool, count(*) FROM ice_operations WHERE {is_in('pool', 1)} AND {MAY_WAIT}"
            " GROUP BY pool",
            as_json([pool.name for pool in pools]),
        )
        return {name: int(number) for name, number in rows}


def _row(pool: Pool) -> Row:
    return columns_of(
        replace(pool, labels=labels_text(pool.labels)),  # type: ignore[arg-type]
        _NAMES,
    )


def _pairs(pool: Pool) -> str:
    return as_json([pair_text(*pair) for pair in sorted(pool.labels.items())])


def _pool(row: Row) -> Pool:
    values = dict(zip(_NAMES, row, strict=True))
    values["labels"] = labels_from_text(values["labels"])
    return from_columns(Pool, tuple(values.values()), f"the pool {row[0]}")
