"""Who may use a route, and what exists for a caller.

A route that does not declare who may use it is refused when the application is made.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from aiohttp import web

from gateway.admin.auth import forbidden, needed
from gateway.admin.context import CALLER
from gateway.core.accounts import fold_user
from gateway.core.ice import fold
from gateway.core.roles import Caller, Need
from gateway.store.ices import IceFilter
from gateway.store.operations import OperationFilter

Step = Callable[[web.Request], Awaitable[tuple[Any, ...]]]


def route(
    method: str,
    path: str,
    handler: Callable[..., Awaitable[web.StreamResponse]],
    *,
    need: Need,
    reads: Step | None = None,
    finds: Step | None = None,
    **options: Any,
) -> web.RouteDef:
    """A route whose caller is checked before its handler runs, in the contract's order of refusals.

    Args:
        method: the method; GET answers HEAD, too.
        path: the path below the application.
        handler: takes the request, then what `reads` and `finds` return.
        need: who may use it.
        reads: what the request brings, checked: raises 400, 413, 415 and 422.
        finds: what the path names, as this caller sees it: raises 404. The first is the ICE (`Listed`).
        options: those of aiohttp, such as `name` or `allow_head`.
    """
    if need is Need.OPERATE and finds is None:
        raise TypeError(f"{method} {path} needs an ICE, and finds none")

    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        read = await reads(request) if reads is not None else ()
        found = await finds(request) if finds is not None else ()
        if need is not Need.NOTHING:
            ice = found[0].ice if found else None
            if not request[CALLER].may(need, ice):
                raise forbidden(request)
        return await handler(request, *read, *found)

    guarded.need = need  # type: ignore[attr-defined]
    return web.route(method, path, guarded, **options)


def visible_ices(caller: Caller, where: IceFilter) -> IceFilter | None:
    """`where`, narrowed to the ICEs that exist for this caller; None where that leaves nothing."""
    if caller.grants.sees_all:
        return where
    mine = fold_user(caller.user)
    if where.provisionedto not in (None, mine):
        return None
    return replace(where, provisionedto=mine)


def visible_operations(caller: Caller, where: OperationFilter) -> OperationFilter | None:
    """`where`, narrowed to the operations of the ICEs that exist for this caller; None likewise."""
    if caller.ice is not None:
        if where.ice_name is not None and fold(where.ice_name) != fold(caller.ice):
            return None
        return replace(where, ice_name=caller.ice)
    return where if caller.grants.sees_all else replace(where, owner=caller.user)


def check_declared(app: web.Application) -> None:
    """Refuse an application with a route that was not made by `route`. Raises `TypeError`."""
    for each in app.router.routes():
        if needed(each.handler) is None:
            raise TypeError(f"{each.method} {each.resource} does not declare who may use it")
