"""`/nodes`: the gateways that serve one database; drain and resume them.

Tested in tests/cluster/test_node_pages.py.
"""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import (
    DEFAULT_LIMIT,
    Limit,
    LongText,
    Query,
    decode_cursor,
    encode_cursor,
    no_members,
    optional_body_as,
    split_page,
    unwrap,
)
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.core.problems import problem, quoted
from gateway.core.roles import Need
from gateway.services import schemas
from gateway.services.nodes import DrainResult
from gateway.web.responses import RequestRefused, json_response

_SEPARATOR: Final = "\n"
"""Between the parts of a cursor; a name has no such character."""


class Drain(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Body of POST /nodes/{name}/drain; `force` drains the last node that serves, too."""

    force: bool = False


class NodeQuery(Query):
    """Page of GET /nodes."""

    limit: Limit = DEFAULT_LIMIT
    cursor: LongText | None = None


def routes() -> list[web.RouteDef]:
    """The routes of `/nodes`."""
    one = "/nodes/{name}"
    return [
        route("GET", "/nodes", listing, need=Need.SEE_ALL, reads=_query),
        route("POST", f"{one}/drain", drain, need=Need.ACT, reads=_drain, finds=_find),
        route("POST", f"{one}/resume", resume, need=Need.ACT, reads=no_members, finds=_find),
    ]


async def _query(request: web.Request) -> tuple[int, str]:
    query = NodeQuery.of(request)
    return query.limit, decode_cursor(query.cursor) or ""


async def _drain(request: web.Request) -> tuple[bool]:
    return ((await optional_body_as(request, Drain)).force,)


async def _find(request: web.Request) -> tuple[()]:
    """Check that there is a node of the path's name. Raises `RequestRefused`."""
    name = request.match_info["name"]
    if request[CALLER].grants.sees_all:
        found = await admin_context(request).services.nodes.all()
        if not any(node.name == name for node in found):
            raise RequestRefused(problem("not-found", f"There is no node {quoted(name)}."))
    return ()


async def listing(request: web.Request, limit: int, after: str) -> web.Response:
    """List the nodes by name; none for an SQLite file."""
    found = await admin_context(request).services.nodes.all()
    place = tuple(after.split(_SEPARATOR))
    rest = [node for node in found if not after or (node.name, node.instance) > place]
    page, last = split_page(rest, limit)
    cursor = None if last is None else encode_cursor(f"{last.name}{_SEPARATOR}{last.instance}")
    return json_response(schemas.NodePage([schemas.node_document(node) for node in page], cursor))


async def drain(request: web.Request, force: bool) -> web.Response:  # noqa: FBT001 - the body's
    """Send a node's ICEs to the others; answers with the node."""
    return await _set_draining(request, draining=True, force=force)


async def resume(request: web.Request) -> web.Response:
    """Let a drained node admit ICEs again; answers with the node."""
    return await _set_draining(request, draining=False, force=False)


async def _set_draining(request: web.Request, *, draining: bool, force: bool) -> web.Response:
    name = request.match_info["name"]
    nodes = admin_context(request).services.nodes
    done: DrainResult = unwrap(
        await nodes.set_draining(actor(request), name, draining=draining, force=force)
    )
    return json_response(schemas.node_document(done.node))
