"""`/ices`: provision, list and act on ICEs."""

from __future__ import annotations

import functools
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
    decode_cursor,
    encode_cursor,
    etag,
    find_ice,
    if_match,
    no_members,
    split_page,
    unwrap,
)
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.core.accounts import fold_user
from gateway.core.ice import IceType, Status, fold
from gateway.core.problems import NAME_IS_FINAL, problem
from gateway.core.roles import Caller, Need
from gateway.services import schemas
from gateway.services.provisioning import MAX_BULK, Done, Issued, validate_new
from gateway.store.ices import IceFilter, Listed
from gateway.store.sessions import events_of
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


class IceFilters(Query):
    """The filters that the API and the page have in common."""

    status: Status | None = None
    ice_type: IceType | None = None
    connected: bool | None = None
    q: Text | None = None

    def visible_to(self, caller: Caller, owner: str | None) -> IceFilter | None:
        """The filter for ICEs of this owner that the caller may see; None if none can match."""
        where = IceFilter(
            status=self.status,
            ice_type=self.ice_type,
            provisionedto=None if owner is None else fold_user(owner),
            connected=self.connected,
            text=None if self.q is None else fold_user(self.q),
        )
        return visible_ices(caller, where)


class IceQuery(IceFilters):
    """Filters of GET /ices."""

    provisionedto: Text | None = None
    limit: Limit = DEFAULT_LIMIT
    cursor: Text | None = None


def routes() -> list[web.RouteDef]:
    """The routes of `/ices`."""
    one = "/ices/{ice_name}"
    return [
        route("POST", "/ices", provision, need=Need.ACT, reads=_new_ice),
        route("GET", "/ices", listing, need=Need.USER, reads=_query),
        route("POST", "/ices/bulk", bulk, need=Need.ACT, reads=_bulk),
        route("GET", one, show, need=Need.USER, finds=find_ice),
        *(route(method, one, final, need=Need.CALLER) for method in ("DELETE", "PUT", "PATCH")),
        *(
            route(
                "POST",
                f"{one}/{action}",
                functools.partial(act, action),
                need=Need.ACT,
                reads=no_members,
                finds=find_ice,
            )
            for action in ("reprovision", "reregister", "deregister", "disconnect")
        ),
        route("GET", f"{one}/connections", connections, need=Need.USER, finds=find_ice),
    ]


async def _new_ice(request: web.Request) -> tuple[NewIce]:
    new = await body_as(request, NewIce)
    # The user is looked up only after the caller's right is checked: others must not learn which users exist.
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
        await admin_context(request).services.provisioning.provision(
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
    where = query.visible_to(request[CALLER], query.provisionedto)
    if where is None:
        return json_response(schemas.IcePage([], None))
    found = await admin_context(request).ices.page(where, query.limit + 1, after)
    page, last = split_page(found, query.limit)
    return json_response(
        schemas.IcePage(
            [schemas.ice_document(listed) for listed in page],
            None if last is None else encode_cursor(fold(last.ice.ice_name)),
        )
    )


async def show(_: web.Request, listed: Listed) -> web.Response:
    """Show one ICE."""
    return json_response(schemas.ice_document(listed), headers=etag(listed.ice.generation))


async def final(request: web.Request) -> web.Response:  # noqa: ARG001 - the same for every ICE
    """Refuse to change or delete an ICE."""
    response = problem_response(problem("method-not-allowed", NAME_IS_FINAL))
    response.headers["Allow"] = "GET, HEAD"
    return response


async def connections(request: web.Request, listed: Listed) -> web.Response:
    """List an ICE's recent connections and refusals."""
    found = await events_of(admin_context(request).engine.fetch, listed.ice.ice_name)
    return json_response(
        schemas.ConnectionEvents(
            [schemas.connection_event_document(connection_event) for connection_event in found]
        )
    )


async def act(action: str, request: web.Request, listed: Listed) -> web.Response:
    """Reprovision, reregister, deregister or disconnect an ICE."""
    actions = admin_context(request).services.provisioning.actions
    done: Done = unwrap(await actions[action](actor(request), listed.ice, if_match(request)))
    ice, drops = _after(listed, done), (done.dropped, done.unconfirmed)
    return json_response(
        schemas.Renewed(ice, done.token.reveal(), *drops)
        if isinstance(done, Issued)
        else schemas.Ended(ice, *drops),
        headers=etag(done.ice.generation),
    )


def _after(before: Listed, done: Done) -> schemas.IceDocument:
    """The ICE after an action, without a connection that the action dropped."""
    connection = before.connection
    if connection is not None and connection.session in {drop.session for drop in done.dropped}:
        connection = None
    return schemas.ice_document(replace(before, ice=done.ice, connection=connection))


async def bulk(request: web.Request, wanted: Bulk) -> web.Response:
    """Deregister or disconnect many ICEs in one transaction."""
    provisioning = admin_context(request).services.provisioning
    done = await provisioning.bulk(actor(request), wanted.action, wanted.ice_names)
    items = [
        schemas.BulkItem(outcome.ice_name, 200)
        if outcome.problem is None
        else schemas.BulkItem(outcome.ice_name, outcome.problem.status, outcome.problem.code)
        for outcome in done.outcomes
    ]
    return json_response(schemas.BulkAnswer(items, done.dropped, done.unconfirmed))
