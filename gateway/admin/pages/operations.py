"""The operations on an ICE's page: request, list, show and cancel them.

Tested in tests/gateway/admin/test_operation_pages.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import replace
from typing import Any, Final

import msgspec
from aiohttp import web

from client.protocol import MAX_VALUE, JsonTooComplex
from gateway.admin.access import route, visible_operations
from gateway.admin.api.operations import NewOperation, find_cancellable, find_operation
from gateway.admin.api.requests import Number, Query, decode_as, find_ice, unwrap
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.admin.pages.base import form, notice, render
from gateway.admin.pages.ices import form_error
from gateway.core import operation_access
from gateway.core.audit_event import Via
from gateway.core.ice import OPERATIONS, fold
from gateway.core.json_input import NotJson, check_syntax
from gateway.core.junit import report_of
from gateway.core.operation import Operation, State
from gateway.core.problems import Problem, invalid
from gateway.core.roles import Need
from gateway.core.text import pretty
from gateway.services.operation_requests import NO_OPERATION, OperationRequest
from gateway.services.schemas import progress_document
from gateway.store.ice_listing import Listed
from gateway.store.operations import Numbered, OperationFilter
from gateway.web.responses import RequestRefused

PAGE: Final = 20
"""Operations on one page of an ICE."""
CHANGED: Final = "operations-changed"
"""The event on which the page reloads the operations."""
MAX_FORM: Final = 3 * MAX_VALUE + 10_000
"""Bytes; a form may encode each byte of the params as three."""
_SHOWN: Final = 20_000
"""Characters of JSON that a dialog shows."""
_MAX_INLINE: Final = 64 * 1024
"""Bytes of a result that are read within 10 ms, so in the event loop."""
_TEXTS: Final = ("kind", "run_at", "deadline")
_FIELD_IDS: Final = {name: f"operation-{name}" for name in (*_TEXTS, "params")}
"""The element of an invalid field."""
LABELS: Final = {state: state.value.capitalize() for state in State}


class OperationsQuery(Query):
    """The query of the page's address: the number of the operation before which the page starts."""

    before: Number | None = None


def routes() -> list[web.RouteDef]:
    """The routes of an ICE's operations."""
    one = "/ices/{ice_name}/operations/{id}"
    return [
        route("GET", "/ices/{ice_name}/operations/new", ask, need=Need.OPERATE, finds=find_ice),
        route("POST", "/ices/{ice_name}/operations", run, need=Need.OPERATE, finds=find_ice),
        route("GET", one, show, need=Need.CALLER, finds=_find),
        route("GET", f"{one}/cancel", confirm, need=Need.CALLER, finds=_find_cancellable),
        route("POST", f"{one}/cancel", cancel, need=Need.CALLER, finds=_find_cancellable),
    ]


async def operations_of(request: web.Request, listed: Listed) -> dict[str, Any]:
    """The variables of the templates that show the operations of an ICE, newest first."""
    query, address = OperationsQuery.of(request), f"ices/{listed.ice.ice_name}"
    found = await operations_page(
        request, OperationFilter(ice_name=listed.ice.ice_name), query.before, PAGE
    )
    older = found.pop("next")
    return {
        **found,
        "operates": request[CALLER].operates(listed.ice),
        "newest": None if query.before is None else address,
        "older": None if older is None else f"{address}?before={older}",
    }


async def operations_page(
    request: web.Request, wanted: OperationFilter, before: int | None, limit: int
) -> dict[str, Any]:
    """The variables of the table of the operations that the caller may see; `next` is where the next page begins.

    `unfinished` says whether the table may change without an event in the audit log.
    """
    where = visible_operations(request[CALLER], wanted)
    page: list[Numbered] = []
    more = unfinished = False
    if where is not None:
        operations = admin_context(request).operations
        page, more = await operations.page(where, limit, before, brief=True)
        unfinished = any(not item.operation.is_finished for item in page)
        if where.state is not None and not unfinished:
            # An operation that is not shown may come into the filter's state.
            unfinished = await operations.any_unfinished(replace(where, state=None), before)
    found = [operation_access.listed(request[CALLER], item.operation) for item in page]
    return {
        "operations": [(operation, progress_document(operation)) for operation in found],
        "unfinished": unfinished,
        "before": before,
        "next": page[-1].number if more else None,
        "states": LABELS,
    }


async def ask(request: web.Request, listed: Listed) -> web.StreamResponse:
    """The form for a new operation."""
    context = {
        "ice": listed.ice,
        "kinds": [kind.value for kind in OPERATIONS[listed.ice.ice_type]],
        "nonce": secrets.token_hex(16),
    }
    return render(request, "operation_form.html", context)


async def run(request: web.Request, listed: Listed) -> web.StreamResponse:
    """Request an operation; a refusal appears in the form, which keeps its input."""
    fields = await form(request, MAX_FORM)
    operations = admin_context(request).services.operations
    try:
        made: Operation = unwrap(
            await operations.request(actor(request, Via.PAGE), listed.ice, _wanted(fields))
        )
    except RequestRefused as refusal:
        return form_error(request, refusal.problem, _FIELD_IDS, "#dialog-fault")
    sentence = f"{made.kind}: {made.id}"
    return notice(request, "Operation requested", sentence, changed=CHANGED, status=202)


def _wanted(fields: dict[str, str]) -> OperationRequest:
    """The operation that the form asks for. Raises `RequestRefused`."""
    params = fields.get("params", "").strip().encode() or b"{}"
    try:
        check_syntax(params)
    except NotJson:
        raise RequestRefused(invalid("params", "has to be JSON")) from None
    except JsonTooComplex as error:
        raise RequestRefused(invalid("params", str(error))) from None
    given: dict[str, object] = {name: fields[name] for name in _TEXTS if fields.get(name)}
    new = decode_as(msgspec.json.encode({**given, "params": msgspec.Raw(params)}), NewOperation)
    # The same form sent again, after a lost answer, is the same operation; an edited form is a new one.
    content = msgspec.json.encode([fields.get("nonce", ""), *given.items()]) + params
    key = hashlib.sha256(content).hexdigest()
    return OperationRequest(new.kind, params, new.run_at, new.deadline, key)


async def show(request: web.Request, operation: Operation) -> web.StreamResponse:
    """Show one operation with its params, result and error."""
    return render(request, "operation.html", await details(operation))


async def details(operation: Operation) -> dict[str, Any]:
    """The variables of the templates that show one operation."""
    large = len(operation.result or b"") > _MAX_INLINE
    report = (
        await asyncio.to_thread(report_of, operation.result)
        if large
        else report_of(operation.result)
    )
    return {
        "operation": operation,
        "progress": progress_document(operation),
        "report": report,
        "values": [
            (name, *pretty(value, _SHOWN))
            for name, value in (
                ("Params", operation.params),
                ("Result", operation.result),
                ("Error", operation.error),
            )
            if value is not None
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


async def _find(request: web.Request) -> tuple[Operation]:
    return _of_this_ice(request, *await find_operation(request))


async def _find_cancellable(request: web.Request) -> tuple[Operation]:
    return _of_this_ice(request, *await find_cancellable(request))


def _of_this_ice(request: web.Request, operation: Operation) -> tuple[Operation]:
    if fold(operation.ice_name or "") != fold(request.match_info["ice_name"]):
        raise RequestRefused(NO_OPERATION)
    return (operation,)
