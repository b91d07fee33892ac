"""`/operations` and those of an ICE or a pool: request, list, follow and cancel operations."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
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
    Moment,
    Query,
    Text,
    body_as,
    encode_cursor,
    find_ice,
    is_number,
    moment,
    no_members,
    number_of,
    unwrap,
)
from gateway.admin.auth import actor, authenticate, forbidden
from gateway.admin.context import CALLER, AdminContext, admin_context
from gateway.admin.event_streams import send_document
from gateway.core import operation_access
from gateway.core.ice import Ice
from gateway.core.operation import Operation, State, Waits
from gateway.core.operation_access import operates_pools
from gateway.core.pool import Pool
from gateway.core.problems import invalid
from gateway.core.roles import Caller, Need
from gateway.runtime.eventloop import wait_at_most
from gateway.services import operation_schemas, schemas
from gateway.services.operation_requests import NO_OPERATION, OperationRequest
from gateway.services.pools import no_pool
from gateway.store.accounts import Accounts
from gateway.store.engine import StoreUnavailable
from gateway.store.ice_listing import Listed
from gateway.store.operations import OperationFilter
from gateway.store.waits import waits
from gateway.web.responses import DATA_HEADERS, RequestRefused, json_response, send_parts

MAX_WAIT: Final = 60.0
"""Seconds that a request may wait for its operation to finish."""
_POLL_INTERVAL: Final = 5.0
"""Seconds after which a waiter reads the operation although nothing woke it."""
_LOG_HEADERS: Final = {**DATA_HEADERS, "Content-Type": "text/plain; charset=utf-8"}
_MAX_EVENT: Final = 16 * 1024
"""Characters of a log in one event: common readers take no line of more than 512 KiB."""
_MAX_INLINE: Final = 64 * 1024
"""Bytes of JSON that are converted within 10 ms, so in the event loop."""

Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class NewOperation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /ices/{ice_name}/operations and POST /pools/{name}/operations."""

    kind: OperationKind
    params: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    run_at: Instant | None = None
    deadline: Instant | None = None
    idempotency_key: str | None = None


class RequestQuery(Query):
    """Query parameters of a request for an operation: seconds to wait for the end."""

    wait: Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT)] = 0.0


class OperationFilters(Query):
    """Which operations to list: of GET /operations, and of the page's address."""

    ice_name: Text | None = None
    pool: Text | None = None
    schedule: Text | None = None
    state: State | None = None
    kind: OperationKind | None = None
    requested_by: Text | None = None
    since: Moment | None = None

    async def filter(self, users: Accounts) -> OperationFilter:
        """The filter, with the exact name of the requester. Raises `RequestRefused`."""
        requester = self.requested_by
        if requester is not None:
            user = await users.user(requester)
            requester = requester if user is None else user.name
        return OperationFilter(
            self.ice_name,
            self.state,
            self.kind,
            requester,
            moment("since", self.since),
            pool=self.pool,
            schedule=self.schedule,
        )


class OperationQuery(OperationFilters):
    """Query parameters of GET /operations."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Text | None = None


class LogDocument(msgspec.Struct):
    """What an ICE logged of an operation, as an event of its stream."""

    text: str


def routes() -> list[web.RouteDef]:
    """The routes of operations."""
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
        route(
            "POST",
            "/pools/{name}/operations",
            create_in_pool,
            need=Need.CALLER,
            reads=_wanted,
            finds=find_operable_pool,
        ),
        route("GET", "/operations", listing, need=Need.CALLER, reads=_query),
        route("GET", one, show, need=Need.CALLER, finds=find_operation),
        route(
            "GET",
            f"{one}/stream",
            stream,
            need=Need.CALLER,
            reads=_place,
            finds=find_operation,
            allow_head=False,
        ),
        route("GET", f"{one}/log", show_log, need=Need.CALLER, finds=_find_logged),
        route(
            "POST",
            f"{one}/cancel",
            cancel,
            need=Need.CALLER,
            reads=no_members,
            finds=find_cancellable,
        ),
    ]


async def _wanted(request: web.Request) -> tuple[float, Operation]:
    wait = RequestQuery.of(request).wait
    new = await body_as(request, NewOperation)
    wanted = OperationRequest(
        new.kind, bytes(new.params), new.run_at, new.deadline, new.idempotency_key
    )
    target, caller = request.match_info, request[CALLER]
    return wait, unwrap(
        await admin_context(request).services.operations.prepare(
            actor(request),
            target.get("ice_name"),
            wanted,
            pool=target.get("name"),
            token=caller.token,
            own_keys=caller.pool is not None,
        )
    )


async def find_operable_pool(request: web.Request) -> tuple[Pool]:
    """The pool of the path, if the caller may send operations to it. Raises `RequestRefused`."""
    context, caller, name = admin_context(request), request[CALLER], request.match_info["name"]
    if caller.pool is None and not caller.grants.sees_all:
        raise forbidden(request, Need.OPERATE)
    pool = await context.pools.find(name)
    if pool is None or caller.pool not in (None, pool.name):
        raise RequestRefused(no_pool(name))
    if caller.pool is None and not operates_pools(caller):
        raise forbidden(request, Need.OPERATE)
    return (pool,)


async def create_in_pool(
    request: web.Request, wait: float, checked: Operation, pool: Pool
) -> web.Response:
    """Request an operation of any ICE of a pool and wait for its end if the caller asks for that."""
    operations = admin_context(request).services.operations
    return await created(
        request, unwrap(await operations.queue_in_pool(actor(request), pool, checked)), wait
    )


async def create(
    request: web.Request, wait: float, checked: Operation, listed: Listed
) -> web.Response:
    """Request an operation and wait for its end if the caller asks for that."""
    operations = admin_context(request).services.operations
    return await created(
        request, unwrap(await operations.queue(actor(request), listed.ice, checked)), wait
    )


async def created(request: web.Request, operation: Operation, wait: float) -> web.Response:
    """Answer with an operation that was requested, after its end if that comes within `wait` seconds."""
    context = admin_context(request)
    operation = await _wait_for_end(context, operation, wait)
    base = request.path.rsplit("/", 3)[0]  # without /ices/NAME/operations or its like
    [document] = await _documents(context, [operation])
    return json_response(
        document,
        status=200 if operation.is_finished else 202,
        headers={"Location": f"{base}/operations/{operation.id}"},
    )


async def _wait_for_end(context: AdminContext, operation: Operation, wait: float) -> Operation:
    """The operation once it has finished, or as it is after `wait` seconds."""
    if not wait:
        return operation
    with (
        context.node.waiters.watch(operation, end_only=True) as changed,
        contextlib.suppress(TimeoutError, StoreUnavailable),
    ):
        async with asyncio.timeout(wait):
            while not (operation.is_finished or context.node.waiters.closed):
                changed.clear()
                # If it has been deleted meanwhile, keep what was requested.
                operation = await context.operations.find(operation.id) or operation
                if not operation.is_finished:
                    await wait_at_most(changed, _POLL_INTERVAL)
    if not operation.is_finished:
        with contextlib.suppress(StoreUnavailable):
            operation = await context.operations.find(operation.id) or operation
    return operation


async def _documents(
    context: AdminContext, found: Sequence[Operation]
) -> list[operation_schemas.OperationDocument]:
    """The documents of operations; large ones are converted in a thread, at up to 80 ms a MiB."""
    why = await waits(context.engine.fetch, found, context.clock())

    def documents() -> list[operation_schemas.OperationDocument]:
        return [operation_schemas.operation_document(each, why.get(each.id)) for each in found]

    values = (
        value
        for operation in found
        for value in (operation.params, operation.progress, operation.result, operation.error)
        if value
    )
    if sum(map(len, values)) <= _MAX_INLINE:
        return documents()
    return await asyncio.to_thread(documents)


async def _query(request: web.Request) -> tuple[OperationQuery, OperationFilter, int | None]:
    query = OperationQuery.of(request)
    where = await query.filter(admin_context(request).services.accounts)
    return query, where, number_of(query.cursor)


async def listing(
    request: web.Request, query: OperationQuery, wanted: OperationFilter, before: int | None
) -> web.Response:
    """List operations, newest first."""
    where = visible_operations(request[CALLER], wanted)
    if where is None:
        return json_response(operation_schemas.OperationPage([], None))
    context = admin_context(request)
    page, more = await context.operations.page(where, query.limit, before)
    shown = [operation_access.listed(request[CALLER], item.operation) for item in page]
    return json_response(
        operation_schemas.OperationPage(
            await _documents(context, shown),
            encode_cursor(str(page[-1].number)) if more else None,
        )
    )


async def show(request: web.Request, operation: Operation) -> web.Response:
    """Show one operation."""
    return json_response(*await _documents(admin_context(request), [operation]))


async def cancel(request: web.Request, operation: Operation) -> web.Response:
    """Cancel an operation."""
    context = admin_context(request)
    done: Operation = unwrap(await context.services.operations.cancel(actor(request), operation.id))
    return json_response(*await _documents(context, [done]))


async def find_operation(request: web.Request) -> tuple[Operation]:
    """What the caller sees of the operation of the path. Raises `RequestRefused`."""
    found = await _visible(admin_context(request), request[CALLER], request.match_info["id"])
    if found is None:
        raise RequestRefused(NO_OPERATION)
    return (found[0],)


async def find_cancellable(request: web.Request) -> tuple[Operation]:
    """The operation of the path, if the caller may cancel it. Raises `RequestRefused`."""
    caller = request[CALLER]
    found = await _visible(admin_context(request), caller, request.match_info["id"])
    if found is None:
        raise RequestRefused(NO_OPERATION)
    if not operation_access.may_cancel(caller, *found):
        raise forbidden(request, Need.OPERATE)
    return (found[0],)


async def _visible(
    context: AdminContext, caller: Caller, operation_id: str
) -> tuple[Operation, Ice | None] | None:
    """What the caller sees of the operation of this id, and the ICE that has it; None for nothing."""
    operation = await context.operations.find(operation_id)
    if operation is None:
        return None
    found = None if operation.ice_name is None else await context.ices.find(operation.ice_name)
    ice = None if found is None else found.ice
    shown = operation_access.seen(caller, operation, ice)
    return None if shown is None else (shown, ice)


async def _find_logged(request: web.Request) -> tuple[Operation]:
    """The operation of the path, if the caller sees its log. Raises `RequestRefused`."""
    [operation] = await find_operation(request)
    if not operation_access.sees_contents(request[CALLER], operation):
        raise RequestRefused(NO_OPERATION)
    return (operation,)


async def show_log(request: web.Request, operation: Operation) -> web.StreamResponse:
    """Send what is kept of an operation's log."""
    return await send_parts(request, _LOG_HEADERS, _log(admin_context(request), operation.id))


async def _log(context: AdminContext, operation_id: str) -> AsyncIterator[bytes]:
    place, end = await context.operation_logs.extent(operation_id)
    while place < end:
        text, place = await context.operation_logs.read(operation_id, place)
        yield text.encode()


async def _place(request: web.Request) -> tuple[int | None]:
    """From where a stream resumes the log. Raises `RequestRefused`."""
    text = request.headers.get("Last-Event-ID")
    if text is None:
        return (None,)
    if not is_number(text):
        raise RequestRefused(invalid("Last-Event-ID", "must be the id of an event of this stream"))
    return (int(text),)


async def stream(
    request: web.Request, place: int | None, operation: Operation
) -> web.StreamResponse:
    """Stream an operation's log, states, progress and result; the stream ends with the result."""
    return await admin_context(request).streams.serve(
        request,
        request[CALLER].user,
        lambda response: _send_all(request, response, operation, place),
    )


async def _send_all(
    request: web.Request, response: EventSourceResponse, operation: Operation, place: int | None
) -> None:
    context = admin_context(request)
    if place is None:
        place, _ = await context.operation_logs.extent(operation.id)
    state: State | None = None
    waiting: Waits | None = None
    progress: bytes | None = None
    with context.node.waiters.watch(operation) as changed:
        while not context.node.waiters.closed and request.transport is not None:
            quiet = not changed.is_set()
            changed.clear()
            caller = await authenticate(request, used=False)
            visible = None if caller is None else await _visible(context, caller, operation.id)
            if caller is None or visible is None:
                return  # the caller lost their right, or the operation was deleted
            found, _ = visible
            # The log before the state: with the last state it is complete.
            if operation_access.sees_contents(caller, found):
                place = await _send_log(context, response, found.id, place)
            why = waiting
            if quiet or found.state is not state:  # a wake-up foretells a change of state, too
                why = (await waits(context.engine.fetch, [found], context.clock())).get(found.id)
            if found.state is not state or why not in (None, waiting):
                state, waiting = found.state, why
                # Without its params and result, which may be large.
                document = schemas.described(operation_schemas.OperationState, found, waits=why)
                await send_document(response, document, event="state")
            if found.progress != progress:
                progress = found.progress
                news = operation_schemas.progress_document(found)
                if news is not None:
                    await send_document(response, news, event="progress")
            if found.is_finished:
                await send_document(response, *await _documents(context, [found]), event="result")
                return
            await wait_at_most(changed, context.streams.limits.look_every)


async def _send_log(
    context: AdminContext, response: EventSourceResponse, operation_id: str, place: int
) -> int:
    """Send what was logged since `place`; returns the place after it."""
    while True:
        text, end = await context.operation_logs.read(operation_id, place)
        if not text:
            return end
        place = end - len(text.encode())
        for begin in range(0, len(text), _MAX_EVENT):
            part = text[begin : begin + _MAX_EVENT]
            place += len(part.encode())
            await send_document(response, LogDocument(part), event="log", id=str(place))
