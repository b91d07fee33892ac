"""The operations on the page of an ICE or a pool: request, list, show and cancel them.

Tested in tests/gateway/admin/test_operation_pages.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
from aiohttp import web

from client.protocol import MAX_VALUE, JsonTooComplex, OperationKind
from gateway.admin.access import route, visible_operations
from gateway.admin.api.operations import (
    NewOperation,
    find_cancellable,
    find_operable_pool,
    find_operation,
)
from gateway.admin.api.requests import Number, Query, decode_as, find_ice, unwrap
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, AdminContext, admin_context
from gateway.admin.pages.base import form, notice, render
from gateway.admin.pages.ices import form_error
from gateway.core import operation_access
from gateway.core.audit_event import Via
from gateway.core.ice import OPERATIONS
from gateway.core.json_input import NotJson, check_syntax
from gateway.core.junit import report_of
from gateway.core.operation import Operation, State, Waits, in_words
from gateway.core.pool import Pool
from gateway.core.problems import Problem, invalid
from gateway.core.roles import Caller, Need
from gateway.core.text import pretty
from gateway.services.operation_requests import OperationRequest
from gateway.services.operation_schemas import ProgressDocument, progress_document
from gateway.store.ice_listing import Listed
from gateway.store.operations import Numbered, OperationFilter
from gateway.store.waits import waits
from gateway.web.responses import RequestRefused

PAGE: Final = 20
"""Operations on the page of an ICE or a pool."""
CHANGED: Final = "operations-changed"
"""The event on which the page reloads the operations."""
MAX_FORM: Final = 3 * MAX_VALUE + 10_000
"""Bytes; a form may encode each byte of the params as three."""
MAX_SHOWN: Final = 20_000
"""Characters of JSON that a dialog or a page shows."""
_MAX_INLINE: Final = 64 * 1024
"""Bytes of a result that are read within 10 ms, so in the event loop."""
_TEXTS: Final = ("kind", "run_at", "deadline")
_FIELD_IDS: Final = {name: f"operation-{name}" for name in (*_TEXTS, "params")}
"""The element of an invalid field."""
LABELS: Final = {state: state.value.capitalize() for state in State}


class OperationsQuery(Query):
    """The query of the page's address: the number of the operation before which the page starts."""

    before: Number | None = None


@dataclass(frozen=True, slots=True)
class OperationRow:
    """An operation in the table; `waits` says in words why it is not sent."""

    operation: Operation
    progress: ProgressDocument | None
    waits: str | None
    cancellable: bool


def routes() -> list[web.RouteDef]:
    """The routes of the operations of an ICE or a pool."""
    of_ice, of_pool, one = (
        "/ices/{ice_name}/operations",
        "/pools/{name}/operations",
        "/operations/{id}",
    )
    operates_pool: dict[str, Any] = {"need": Need.CALLER, "finds": find_operable_pool}
    cancels: dict[str, Any] = {"need": Need.CALLER, "finds": find_cancellable}
    return [
        route("GET", f"{of_ice}/new", ask, need=Need.OPERATE, finds=find_ice),
        route("POST", of_ice, run, need=Need.OPERATE, finds=find_ice),
        route("GET", f"{of_pool}/new", ask_in_pool, **operates_pool),
        route("POST", of_pool, run_in_pool, **operates_pool),
        route("GET", f"{one}/details", show, need=Need.CALLER, finds=find_operation),
        route("GET", f"{one}/cancel", confirm, **cancels),
        route("POST", f"{one}/cancel", cancel, **cancels),
    ]


async def operations_of_ice(request: web.Request, listed: Listed) -> dict[str, Any]:
    """The variables of the templates that show the operations of an ICE, newest first."""
    ice, operates = listed.ice, request[CALLER].operates(listed.ice)
    where, address = OperationFilter(ice_name=ice.ice_name), f"ices/{ice.ice_name}"
    return await _operations_of(request, "ice", where, address, operates=operates)


async def operations_of_pool(request: web.Request, pool: Pool) -> dict[str, Any]:
    """The variables of the templates that show the operations of a pool, newest first."""
    operates = operation_access.operates_pools(request[CALLER])
    where, address = OperationFilter(pool=pool.name), f"pools/{pool.name}"
    return await _operations_of(request, "pool", where, address, operates=operates)


async def _operations_of(
    request: web.Request, of: str, where: OperationFilter, address: str, *, operates: bool
) -> dict[str, Any]:
    query = OperationsQuery.of(request)
    found = await operations_page(request, where, query.before, PAGE, operates=operates)
    older = found.pop("next")
    return {
        **found,
        "of": of,
        "operates": operates,
        "newest": None if query.before is None else address,
        "older": None if older is None else f"{address}?before={older}",
    }


async def operations_page(
    request: web.Request,
    wanted: OperationFilter,
    before: int | None,
    limit: int,
    *,
    operates: bool,
) -> dict[str, Any]:
    """The variables of the table of the operations that the caller may see; `next` is where the next page begins.

    `operates` says whether the caller may cancel operations of ICEs. `unfinished` says whether the table may change
    without an event in the audit log.
    """
    caller, context = request[CALLER], admin_context(request)
    where = visible_operations(caller, wanted)
    page: list[Numbered] = []
    more = unfinished = False
    if where is not None:
        operations = context.operations
        if where.state is not None:
            # An operation that is not shown may come into the filter's state. Asked for first: one that finishes between
            # the two reads would otherwise never be shown.
            unfinished = await operations.any_unfinished(replace(where, state=None), before)
        page, more = await operations.page(where, limit, before, brief=True)
        unfinished = unfinished or any(not item.operation.is_finished for item in page)
    found = [operation_access.listed(caller, item.operation) for item in page]
    why = await _waits(context, found)
    operates_pools = operation_access.operates_pools(caller)
    return {
        "operations": [
            OperationRow(
                each,
                progress_document(each),
                why.get(each.id),
                not each.is_finished and (operates if each.pool is None else operates_pools),
            )
            for each in found
        ],
        "schedules": await _schedule_names(context, caller, found),
        "unfinished": unfinished,
        "before": before,
        "next": page[-1].number if more else None,
        "states": LABELS,
    }


async def _waits(context: AdminContext, operations: Sequence[Operation]) -> dict[str, str]:
    """In words why operations wait, by id; the page says until when one of `run-at` waits."""
    pools = {each.id: each.pool for each in operations if each.state is State.QUEUED}
    if not pools:
        return {}
    found = await waits(context.engine.fetch, operations, context.clock())
    return {
        operation_id: in_words(why, of_pool=pools[operation_id] is not None)
        for operation_id, why in found.items()
        if why is not Waits.RUN_AT
    }


async def _schedule_names(
    context: AdminContext, caller: Caller, operations: Sequence[Operation]
) -> dict[str, str]:
    """The names of the schedules of operations that the caller may see, by id."""
    ids = {
        each.schedule
        for each in operations
        if each.schedule is not None and operation_access.sees_contents(caller, each)
    }
    return await context.schedules.names(sorted(ids)) if ids else {}


async def ask(request: web.Request, listed: Listed) -> web.StreamResponse:
    """The form for a new operation of an ICE."""
    ice = listed.ice
    return _ask(request, f"at {ice.ice_name}", f"ices/{ice.ice_name}", OPERATIONS[ice.ice_type])


async def ask_in_pool(request: web.Request, pool: Pool) -> web.StreamResponse:
    """The form for a new operation of a pool."""
    kinds = OperationKind if pool.ice_type is None else OPERATIONS[pool.ice_type]
    return _ask(request, f"in the pool {pool.name}", f"pools/{pool.name}", kinds)


def _ask(
    request: web.Request, place: str, address: str, kinds: Iterable[OperationKind]
) -> web.StreamResponse:
    context = {
        "place": place,
        "address": address,
        "kinds": [kind.value for kind in kinds],
        "nonce": secrets.token_hex(16),
    }
    return render(request, "operation_form.html", context)


async def run(request: web.Request, listed: Listed) -> web.StreamResponse:
    """Request an operation of an ICE; a refusal appears in the form, which keeps its input."""
    service = admin_context(request).services.operations
    by = actor(request, Via.PAGE)
    return await _run(request, lambda wanted: service.request(by, listed.ice, wanted))


async def run_in_pool(request: web.Request, pool: Pool) -> web.StreamResponse:
    """Request an operation of a pool; a refusal appears in the form, which keeps its input."""
    service = admin_context(request).services.operations
    by = actor(request, Via.PAGE)
    return await _run(request, lambda wanted: service.request_of_pool(by, pool.name, wanted))


async def _run(
    request: web.Request,
    request_one: Callable[[OperationRequest], Awaitable[Operation | Problem]],
) -> web.StreamResponse:
    fields = await form(request, MAX_FORM)
    try:
        made: Operation = unwrap(await request_one(_wanted(fields)))
    except RequestRefused as refusal:
        return form_error(request, refusal.problem, _FIELD_IDS, "#dialog-fault")
    sentence = f"{made.kind}: {made.id}"
    return notice(request, "Operation requested", sentence, changed=CHANGED, status=202)


def params_of(fields: Mapping[str, str]) -> bytes:
    """The parameters in the form, as JSON. Raises `RequestRefused`."""
    params = fields.get("params", "").strip().encode() or b"{}"
    try:
        check_syntax(params)
    except NotJson:
        raise RequestRefused(invalid("params", "has to be JSON")) from None
    except JsonTooComplex as error:
        raise RequestRefused(invalid("params", str(error))) from None
    return params


def _wanted(fields: dict[str, str]) -> OperationRequest:
    """The operation that the form asks for. Raises `RequestRefused`."""
    params = params_of(fields)
    given: dict[str, object] = {name: fields[name] for name in _TEXTS if fields.get(name)}
    new = decode_as(msgspec.json.encode({**given, "params": msgspec.Raw(params)}), NewOperation)
    # The same form sent again, after a lost answer, is the same operation; an edited form is a new one.
    content = msgspec.json.encode([fields.get("nonce", ""), *given.items()]) + params
    key = hashlib.sha256(content).hexdigest()
    return OperationRequest(new.kind, params, new.run_at, new.deadline, key)


async def show(request: web.Request, operation: Operation) -> web.StreamResponse:
    """Show one operation with its params, result and error."""
    return render(request, "operation.html", await details(request, operation))


async def details(request: web.Request, operation: Operation) -> dict[str, Any]:
    """The variables of the templates that show one operation.

    `contents` is False for a caller who does not see what goes in and what comes out.
    """
    context, caller = admin_context(request), request[CALLER]
    contents = operation_access.sees_contents(caller, operation)
    large = len(operation.result or b"") > _MAX_INLINE
    report = (
        await asyncio.to_thread(report_of, operation.result)
        if large
        else report_of(operation.result)
    )
    return {
        "operation": operation,
        "progress": progress_document(operation),
        "waits": (await _waits(context, [operation])).get(operation.id),
        "schedules": await _schedule_names(context, caller, [operation]),
        "contents": contents,
        "report": report,
        "values": [
            (name, *pretty(value, MAX_SHOWN))
            for name, value in (
                ("Params", operation.params),
                ("Result", operation.result),
                ("Error", operation.error),
            )
            if value is not None and contents
        ],
        "states": LABELS,
    }


async def confirm(request: web.Request, operation: Operation) -> web.StreamResponse:
    """Ask before cancelling an operation."""
    return render(request, "operation_cancel.html", {"operation": operation})


async def cancel(request: web.Request, operation: Operation) -> web.StreamResponse:
    """Cancel an operation, unless it has finished meanwhile."""
    operations = admin_context(request).services.operations
    done = await operations.cancel(actor(request, Via.PAGE), operation.id)
    if isinstance(done, Problem):
        sentence = f"{done.detail[:1].upper()}{done.detail[1:]}."
        return notice(request, "Nothing was cancelled", sentence, changed=CHANGED, status=409)
    if operation.state is State.QUEUED:
        sentence = "It had not been sent."
    else:
        sentence = "The gateway asks the ICE to stop; the ICE may have done a part of it."
    return notice(request, "Operation cancelled", sentence, changed=CHANGED)
