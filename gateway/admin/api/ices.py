"""`/ices`: provisioned, listed, acted on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Literal

import msgspec
from aiohttp import web

from gateway.admin.access import route, visible_ices
from gateway.admin.api.requests import (
    DEFAULT_LIMIT,
    Limit,
    Query,
    Text,
    body_as,
    cut,
    decode_cursor,
    encode_cursor,
    etag,
    find_ice,
    if_match,
    no_members,
    unwrap,
)
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, PARTS, AdminContext
from gateway.core.accounts import fold_user
from gateway.core.audit_event import Actor
from gateway.core.ice import Ice, IceType, Status, fold
from gateway.core.problems import NAME_IS_FINAL, Problem, problem
from gateway.core.roles import Need
from gateway.services import schemas
from gateway.services.provisioning import MAX_BULK, Done, Expected, Issued, validate_new
from gateway.store.ices import IceFilter, Listed
from gateway.web.responses import json_response, problem_response


class NewIce(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /ices."""

    ice_name: str
    ice_type: IceType
    provisionedto: str | None = None


class Bulk(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /ices/bulk."""

    action: Literal["deregister", "disconnect"]
    ice_names: Annotated[list[str], msgspec.Meta(max_length=MAX_BULK)]


class IceQuery(Query):
    """Filters of GET /ices."""

    status: Status | None = None
    ice_type: IceType | None = None
    provisionedto: Text | None = None
    connected: bool | None = None
    q: Text | None = None
    limit: Limit = DEFAULT_LIMIT
    cursor: Text | None = None


def routes() -> list[web.RouteDef]:
    """The calls of this noun."""
    one = "/ices/{ice_name}"
    return [
        route("POST", "/ices", provision, need=Need.ACT, reads=_new_ice),
        route("GET", "/ices", listing, need=Need.USER, reads=_query),
        route("POST", "/ices/bulk", bulk, need=Need.ACT, reads=_bulk),
        route("GET", one, show, need=Need.USER, finds=find_ice),
        *(route(method, one, final, need=Need.CALLER) for method in ("DELETE", "PUT", "PATCH")),
        *(
            route("POST", f"{one}/{name}", act, need=Need.ACT, reads=no_members, finds=find_ice)
            for name, act in (
                ("reprovision", reprovision),
                ("reregister", reregister),
                ("deregister", deregister),
                ("disconnect", disconnect),
            )
        ),
        route("GET", f"{one}/connections", connections, need=Need.USER, finds=find_ice),
    ]


async def _new_ice(request: web.Request) -> tuple[NewIce]:
    new = await body_as(request, NewIce)
    # The user is looked up later: a caller without the right must not learn which users exist.
    unwrap(validate_new(new.ice_name, new.ice_type, new.provisionedto))
    return (new,)


async def _query(request: web.Request) -> tuple[IceQuery, str | None]:
    query = IceQuery.of(request)
    return query, decode_cursor(query.cursor)


async def _bulk(request: web.Request) -> tuple[Bulk]:
    return (await body_as(request, Bulk),)


async def provision(request: web.Request, new: NewIce) -> web.Response:
    """Provision an ICE."""
    issued: Issued = unwrap(
        await _parts(request).services.provisioning.provision(
            actor(request), new.ice_name, new.ice_type, new.provisionedto
        )
    )
    document = schemas.ice_document(Listed(issued.ice, None, None))
    return json_response(
        schemas.Provisioned(document, issued.token.reveal()),
        status=201,
        headers={
            "Location": f"{request.path}/{issued.ice.ice_name}",
            **etag(issued.ice.generation),
        },
    )


async def listing(request: web.Request, query: IceQuery, after: str | None) -> web.Response:
    """List ICEs, filtered and paged."""
    where = visible_ices(
        request[CALLER],
        IceFilter(
            status=query.status,
            ice_type=query.ice_type,
            provisionedto=None if query.provisionedto is None else fold_user(query.provisionedto),
            connected=query.connected,
            text=None if query.q is None else fold_user(query.q),
        ),
    )
    if where is None:
        return json_response(schemas.IcePage([], None))
    found = await _parts(request).ices.page(where, query.limit + 1, after)
    page, last = cut(found, query.limit)
    return json_response(
        schemas.IcePage(
            [schemas.ice_document(listed) for listed in page],
            None if last is None else encode_cursor(fold(last.ice.ice_name)),
        )
    )


async def show(_: web.Request, listed: Listed) -> web.Response:
    """Show one ICE."""
    return json_response(schemas.ice_document(listed), headers=etag(listed.ice.generation))


async def final(request: web.Request) -> web.Response:  # noqa: ARG001 - whichever ICE it is
    """Refuse to change or delete a name."""
    response = problem_response(problem("method-not-allowed", NAME_IS_FINAL))
    response.headers["Allow"] = "GET, HEAD"
    return response


async def connections(request: web.Request, listed: Listed) -> web.Response:
    """Tell what became of an ICE's recent connections."""
    found = await _parts(request).happenings.of(listed.ice.ice_name)
    return json_response(
        schemas.Happenings([schemas.happening_document(happening) for happening in found])
    )


async def reprovision(request: web.Request, listed: Listed) -> web.Response:
    """Replace a token that was lost before registration."""
    return await _renew(request, listed, _parts(request).services.provisioning.reprovision)


async def reregister(request: web.Request, listed: Listed) -> web.Response:
    """Let an ICE register again."""
    return await _renew(request, listed, _parts(request).services.provisioning.reregister)


async def deregister(request: web.Request, listed: Listed) -> web.Response:
    """Deactivate an ICE and drop its session."""
    return await _end(request, listed, _parts(request).services.provisioning.deregister)


async def disconnect(request: web.Request, listed: Listed) -> web.Response:
    """Close an ICE's session; it may come back."""
    return await _end(request, listed, _parts(request).services.provisioning.disconnect)


async def _renew(
    request: web.Request,
    listed: Listed,
    act: Callable[[Actor, Ice, Expected], Awaitable[Issued | Problem]],
) -> web.Response:
    issued: Issued = unwrap(await act(actor(request), listed.ice, if_match(request)))
    return json_response(
        schemas.Renewed(
            _after(listed, issued), issued.token.reveal(), issued.dropped, issued.unconfirmed
        ),
        headers=etag(issued.ice.generation),
    )


async def _end(
    request: web.Request,
    listed: Listed,
    act: Callable[[Actor, Ice, Expected], Awaitable[Done | Problem]],
) -> web.Response:
    done: Done = unwrap(await act(actor(request), listed.ice, if_match(request)))
    return json_response(
        schemas.Ended(_after(listed, done), done.dropped, done.unconfirmed),
        headers=etag(done.ice.generation),
    )


def _after(before: Listed, done: Done) -> schemas.IceDocument:
    """The ICE after an action; what it dropped is no connection any more."""
    connection = before.connection
    if connection is not None and connection.session in {drop.session for drop in done.dropped}:
        connection = None
    return schemas.ice_document(replace(before, ice=done.ice, connection=connection))


async def bulk(request: web.Request, wanted: Bulk) -> web.Response:
    """Deregister or disconnect many ICEs in one transaction."""
    provisioning = _parts(request).services.provisioning
    done = await provisioning.bulk(actor(request), wanted.action, wanted.ice_names)
    items = [
        schemas.BulkItem(outcome.ice_name, 200)
        if outcome.problem is None
        else schemas.BulkItem(outcome.ice_name, outcome.problem.status, outcome.problem.code)
        for outcome in done.outcomes
    ]
    return json_response(schemas.BulkAnswer(items, done.dropped, done.unconfirmed))


def _parts(request: web.Request) -> AdminContext:
    return request.config_dict[PARTS]
