"""Access control: what a route requires of its caller, and which ICEs a caller may see.

An application with a route that does not declare its `Need` fails to start.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from aiohttp import web

from gateway.admin.auth import declared_need, forbidden
from gateway.admin.context import CALLER, admin_context
from gateway.core.accounts import fold_user
from gateway.core.ice import fold
from gateway.core.roles import OF_ICE, Caller, Need
from gateway.store.ice_filter import IceFilter
from gateway.store.operations import OperationFilter
from gateway.store.pools import Pools

Reader = Callable[[web.Request], Awaitable[tuple[Any, ...]]]


def route(
    method: str,
    path: str,
    handler: Callable[..., Awaitable[web.StreamResponse]],
    *,
    need: Need,
    reads: Reader | None = None,
    finds: Reader | None = None,
    **options: Any,
) -> web.RouteDef:
    """A route that checks its caller before its handler runs, in the order of refusals of `admin.api`.

    Args:
        method: the HTTP method; GET answers HEAD, too.
        path: the path below the application.
        handler: takes the request, then the values that `reads` and `finds` return.
        need: the right that a caller needs.
        reads: validates the request's input; raises 400, 413, 415 and 422.
        finds: looks up what the path names, if the caller may see it; raises 404. With a need of `OF_ICE` its
            first value is the ICE (`Listed`).
        options: options of aiohttp, such as `name` or `allow_head`.

    Raises `TypeError` if `need` concerns an ICE and `finds` is missing.
    """
    if need in OF_ICE and finds is None:
        raise TypeError(f"{method} {path} needs an ICE, and finds none")

    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        read = await reads(request) if reads is not None else ()
        found = await finds(request) if finds is not None else ()
        if need is not Need.NOTHING:
            ice = found[0].ice if need in OF_ICE else None
            if not request[CALLER].may(need, ice):
                raise forbidden(request, need)
        return await handler(request, *read, *found)

    guarded.need = need  # type: ignore[attr-defined]
    return web.route(method, path, guarded, **options)


def visible_ices(caller: Caller, where: IceFilter) -> IceFilter | None:
    """The filter, narrowed to the ICEs that the caller may see; None if none can match."""
    if caller.grants.sees_all:
        return where
    owner = fold_user(caller.user)
    if where.provisionedto not in (None, owner):
        return None
    return replace(where, provisionedto=owner)


def visible_pools(request: web.Request) -> Pools | None:
    """The pools, for a caller who may see them."""
    return admin_context(request).pools if request[CALLER].grants.sees_all else None


def visible_operations(caller: Caller, where: OperationFilter) -> OperationFilter | None:
    """The filter, narrowed to operations of ICEs that the caller may see; None if none can match."""
    if caller.pool is not None:
        return replace(where, token=caller.token)
    if caller.ice is not None:
        if where.ice_name is not None and fold(where.ice_name) != fold(caller.ice):
            return None
        return replace(where, ice_name=caller.ice)
    return where if caller.grants.sees_all else replace(where, owner=caller.user)


def check_declared(app: web.Application) -> None:
    """Refuse an application with a route that was not made by `route`. Raises `TypeError`."""
    for one in app.router.routes():
        if declared_need(one.handler) is None:
            raise TypeError(f"{one.method} {one.resource} does not declare who may use it")
