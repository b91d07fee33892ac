"""`/pools`: list, make, change and delete pools.

Tested in tests/gateway/admin/api/test_pools.py.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.ices import LabelValue
from gateway.admin.api.requests import (
    DEFAULT_LIMIT,
    Limit,
    Query,
    Text,
    body_as,
    decode_cursor,
    encode_cursor,
    split_page,
    unwrap,
)
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.core.ice import IceType, fold
from gateway.core.labels import MAX_LABELS, MAX_NOTE
from gateway.core.pool import Pool, pool_fault
from gateway.core.problems import invalid
from gateway.core.roles import Need
from gateway.services.pool_schemas import PoolPage, pool_documents
from gateway.services.pools import PoolSet, WantedPool, no_pool
from gateway.web.responses import RequestRefused, json_response, no_content


class NewPool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of PUT /pools/{name}; a `name` in it must be that of the path. Without a type, ICEs of both belong to it."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    description: Annotated[str, msgspec.Meta(max_length=MAX_NOTE)] = ""
    ice_type: IceType | None = None
    labels: Annotated[dict[str, LabelValue], msgspec.Meta(min_length=1, max_length=MAX_LABELS)]

    def checked(self, name: str) -> WantedPool:
        """The pool to make at this place. Raises `RequestRefused`."""
        if not isinstance(self.name, msgspec.UnsetType) and fold(self.name) != fold(name):
            raise RequestRefused(invalid("name", "is not the name in the path"))
        unwrap(pool_fault(name, self.description, self.labels))
        return WantedPool(name, self.labels, self.description, self.ice_type)


class PoolQuery(Query):
    """Filter and page of GET /pools: `q` is a part of a name or a description."""

    q: Text | None = None
    limit: Limit = DEFAULT_LIMIT
    cursor: Text | None = None


def routes() -> list[web.RouteDef]:
    """The routes of `/pools`."""
    one = "/pools/{name}"
    return [
        route("GET", "/pools", listing, need=Need.SEE_ALL, reads=_query),
        route("GET", one, show, need=Need.SEE_ALL, finds=_find),
        route("PUT", one, change, need=Need.ACT, reads=_wanted),
        route("DELETE", one, delete, need=Need.ACT, finds=_find),
    ]


async def _query(request: web.Request) -> tuple[PoolQuery, str]:
    query = PoolQuery.of(request)
    return query, decode_cursor(query.cursor) or ""


async def _wanted(request: web.Request) -> tuple[WantedPool]:
    return ((await body_as(request, NewPool)).checked(request.match_info["name"]),)


async def _find(request: web.Request) -> tuple[Pool | None]:
    if not request[CALLER].grants.sees_all:  # nothing is shown, whatever the name
        return (None,)
    name = request.match_info["name"]
    pool = await admin_context(request).pools.find(name)
    if pool is None:
        raise RequestRefused(no_pool(name))
    return (pool,)


async def listing(request: web.Request, query: PoolQuery, after: str) -> web.Response:
    """List pools by name."""
    table = admin_context(request).pools
    found = await table.after(query.q or "", after, query.limit + 1)
    page, last = split_page(found, query.limit)
    cursor = None if last is None else encode_cursor(fold(last.name))
    return json_response(PoolPage(await pool_documents(table, page), cursor))


async def show(request: web.Request, pool: Pool) -> web.Response:
    """Show a pool."""
    return await _answer(request, pool, 200)


async def change(request: web.Request, wanted: WantedPool) -> web.Response:
    """Make a pool, or replace what the one of this name is."""
    done: PoolSet = unwrap(await admin_context(request).services.pools.set(actor(request), wanted))
    return await _answer(request, done.pool, 201 if done.created else 200)


async def _answer(request: web.Request, pool: Pool, status: int) -> web.Response:
    [document] = await pool_documents(admin_context(request).pools, [pool])
    return json_response(document, status=status)


async def delete(request: web.Request, pool: Pool) -> web.Response:
    """Delete a pool that is not in use, and revoke its API tokens."""
    unwrap(await admin_context(request).services.pools.delete(actor(request), pool.name))
    return no_content()
