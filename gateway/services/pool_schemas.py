"""The JSON objects of pools, beside those of `services.schemas`.

Tested in tests/gateway/admin/api/test_pools.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway.core.ice import IceType
from gateway.core.labels import Labels
from gateway.core.pool import Pool
from gateway.services.schemas import Time, described
from gateway.store.pools import PoolCounts, Pools


class PoolDocument(msgspec.Struct, kw_only=True):
    """A pool: the ICEs that have all its `labels`, and its type if it has one, but no deregistered ones.

    Of its `ices`, the busy ones work on an operation of any requester.
    """

    name: str
    description: str
    ice_type: IceType | None
    labels: Labels
    ices: PoolCounts
    createdby: str
    createdon: Time


class PoolPage(msgspec.Struct):
    """Pools by name; `next` is the cursor of the next page, null at the end."""

    items: list[PoolDocument]
    next: str | None


async def pool_documents(table: Pools, found: Sequence[Pool]) -> list[PoolDocument]:
    """Describe pools with the numbers of their ICEs now."""
    counts = await table.counts(found)
    return [
        described(PoolDocument, pool, ices=ices) for pool, ices in zip(found, counts, strict=True)
    ]
