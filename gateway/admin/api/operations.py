"""`/operations`, and an ICE's: requested, listed, followed, cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final

import msgspec
from aiohttp import web
from aiohttp_sse import EventSourceResponse

from client.protocol import OperationKind
from gateway.admin.access import route, visible_operations
from gateway.admin.api.requests import (
    DEFAULT_LIMIT,
    Limit,
    Query,
    Text,
    body_as,
    decode_cursor,
    encode_cursor,
    find_ice,
    no_members,
    unwrap,
)
from gateway.admin.auth import actor, recognise
from gateway.admin.context import CALLER, PARTS, AdminContext
from gateway.admin.event_streams import send_document
from gateway.core.operation import Operation, State
from gateway.core.problems import invalid, problem
from gateway.core.roles import Need
from gateway.services import schemas
from gateway.services.operation_requests import OperationRequest
from gateway.store.engine import StoreUnavailable
from gateway.store.ices import Listed
from gateway.store.operations import OperationFilter
from gateway.web.responses import RequestRefused, json_response

MAX_WAIT: Final = 60.0
"""Seconds that a request may wait for its operation to finish."""
_LOOK_EVERY: Final = 5.0
"""Seconds after which a waiter looks without having been woken."""
_MAX_DIGITS: Final = 18
_SHOWN_AT_ONCE: Final = 64 * 1024
"""Bytes of JSON that are looked through within 10 ms."""

Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class NewOperation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /ices/{ice_name}/operations."""

    kind: OperationKind
    params: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    run_at: Moment | None = None
    deadline: Moment | None = None
    idempotency_key: str | None = None


class RequestQuery(Query):
    """How long to wait for the end."""

    wait: Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT)] = 0.0


class OperationQuery(Query):
    """Filters of GET /operations."""

    ice_name: Text | None = None
    state: State | None = None
    kind: OperationKind | None = None
    limit: Limit = DEFAULT_LIMIT
    cursor: Text | None = None


def routes() -> list[web.RouteDef]:
    """The calls of this noun."""
    one = "/operations/{id}"
    return [
        route(
            "POST",
            "/ices/{ice_name}/operations",
            create,
            need=Need.OPERATE,
            reads=_wanted,
            finds=find_ice,
        ),
        route("GET", "/operations", listing, need=Need.CALLER, reads=_query),
        route("GET", one, show, need=Need.CALLER, finds=_find),
        route("GET", f"{one}/stream", stream, need=Need.CALLER, finds=_find, allow_head=False),
        route("POST", f"{one}/cancel", cancel, need=Need.OPERATE, reads=no_members, finds=_find),
    ]


async def _wanted(request: web.Request) -> tuple[float, Operation]:
    wait = RequestQuery.of(request).wait
    new = await body_as(request, NewOperation)
    wanted = OperationRequest(
        new.kind, bytes(new.params), new.run_at, new.deadline, new.idempotency_key
    )
    name = request.match_info["ice_name"]
    return wait, unwrap(
        await _parts(request).services.operations.prepare(actor(request), name, wanted)
    )


async def create(
    request: web.Request, wait: float, checked: Operation, listed: Listed
) -> web.Response:
    """Request an operation, and wait for its end if that is asked for."""
    parts = _parts(request)
    operation: Operation = unwrap(
        await parts.services.operations.queue(actor(request), listed.ice, checked)
    )
    operation = await _end_of(parts, operation, wait)
    base = request.path.rsplit("/", 3)[0]  # without /ices/NAME/operations
    [document] = await _documents([operation])
    return json_response(
        document,
        status=200 if operation.is_finished else 202,
        headers={"Location": f"{base}/operations/{operation.id}"},
    )


async def _end_of(parts: AdminContext, operation: Operation, wait: float) -> Operation:
    """The operation when it has finished, or as it is after `wait` seconds."""
    with (
        parts.node.waiters.watch(operation.ice_name, operation.id, end_only=True) as changed,
        contextlib.suppress(TimeoutError, StoreUnavailable),
    ):
        async with asyncio.timeout(wait):
            while not (operation.is_finished or parts.node.waiters.closed):
                changed.clear()
                # It is requested, whatever comes of looking.
                operation = await parts.services.operations.find(operation.id) or operation
                if not operation.is_finished:
                    await _news(changed, _LOOK_EVERY)
    if wait and not operation.is_finished:
        with contextlib.suppress(StoreUnavailable):
            operation = await parts.services.operations.find(operation.id) or operation
    return operation


async def _documents(found: Sequence[Operation]) -> list[schemas.OperationDocument]:
    """What is shown of operations; large ones are looked through in a thread, at up to 80 ms a MiB."""
    values = (
        value
        for one in found
        for value in (one.params, one.progress, one.result, one.error)
        if value
    )
    if sum(map(len, values)) <= _SHOWN_AT_ONCE:
        return list(map(schemas.operation_document, found))
    return await asyncio.to_thread(list, map(schemas.operation_document, found))


async def _news(changed: asyncio.Event, patience: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            await changed.wait()


async def _query(request: web.Request) -> tuple[OperationQuery, int | None]:
    query = OperationQuery.of(request)
    return query, _number(query.cursor)


async def listing(request: web.Request, query: OperationQuery, before: int | None) -> web.Response:
    """List operations, newest first."""
    where = visible_operations(
        request[CALLER], OperationFilter(query.ice_name, query.state, query.kind)
    )
    if where is None:
        return json_response(schemas.OperationPage([], None))
    page, more = await _parts(request).operations.page(where, query.limit, before)
    return json_response(
        schemas.OperationPage(
            await _documents([item.operation for item in page]),
            encode_cursor(str(page[-1].number)) if more else None,
        )
    )


def _number(cursor: str | None) -> int | None:
    text = decode_cursor(cursor)
    if text is not None and not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise RequestRefused(invalid("cursor", "take it from `next` of the page before"))
    return None if text is None else int(text)


async def show(request: web.Request, _: Listed, operation: Operation) -> web.Response:  # noqa: ARG001 - found for this caller
    """Show one operation."""
    return json_response(*await _documents([operation]))


async def cancel(request: web.Request, _: Listed, operation: Operation) -> web.Response:
    """End an operation."""
    done: Operation = unwrap(
        await _parts(request).services.operations.cancel(actor(request), operation.id)
    )
    return json_response(*await _documents([done]))


async def _find(request: web.Request) -> tuple[Listed, Operation]:
    """The operation of the path; one at an ICE that the caller may not see does not exist for them."""
    parts = _parts(request)
    operation = await parts.services.operations.find(request.match_info["id"])
    listed = None if operation is None else await parts.ices.find(operation.ice_name)
    if operation is None or listed is None or not request[CALLER].sees(listed.ice):
        raise RequestRefused(problem("not-found", "There is no such operation."))
    return listed, operation


async def stream(request: web.Request, _: Listed, operation: Operation) -> web.StreamResponse:
    """Send an operation's states, progress and result as they come; the stream ends with the result."""
    return await _parts(request).streams.serve(
        request, request[CALLER].user, lambda response: _send_all(request, response, operation)
    )


async def _send_all(
    request: web.Request, response: EventSourceResponse, operation: Operation
) -> None:
    parts = _parts(request)
    state: State | None = None
    progress: bytes | None = None
    with parts.node.waiters.watch(operation.ice_name, operation.id) as changed:
        while not parts.node.waiters.closed and request.transport is not None:
            changed.clear()
            caller = await recognise(request, used=False)
            found = await parts.services.operations.find(operation.id)
            if caller is None or found is None:
                return  # who has lost their right is told nothing more
            if found.state is not state:
                state = found.state
                await send_document(response, schemas.operation_state(found), event="state")
            if found.progress != progress:
                progress = found.progress
                news = schemas.progress_document(found)
                if news is not None:
                    await send_document(response, news, event="progress")
            if found.is_finished:
                await send_document(response, *await _documents([found]), event="result")
                return
            await _news(changed, _LOOK_EVERY)


def _parts(request: web.Request) -> AdminContext:
    return request.config_dict[PARTS]
