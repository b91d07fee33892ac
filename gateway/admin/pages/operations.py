"""An ICE's operations: requested, watched while they go on, looked at, cancelled."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from client.protocol import MAX_VALUE, JsonTooComplex
from gateway.admin.access import route
from gateway.admin.api.operations import NewOperation
from gateway.admin.api.requests import Query, decode_as, find_ice
from gateway.admin.auth import actor
from gateway.admin.context import CALLER
from gateway.admin.pages.base import form, parts, render
from gateway.admin.pages.ices import form_fault
from gateway.core.audit_event import Via
from gateway.core.ice import OPERATIONS
from gateway.core.json_input import NotJson, check_syntax
from gateway.core.operation import Operation, State
from gateway.core.problems import Problem, invalid, problem
from gateway.core.roles import Need
from gateway.core.text import pretty
from gateway.services.operation_requests import OperationRequest
from gateway.services.schemas import progress_document
from gateway.store.ices import Listed
from gateway.store.operations import OperationFilter
from gateway.web.responses import RequestRefused

PAGE: Final = 20
"""Operations on one page of an ICE."""
CHANGED: Final = "operations-changed"
"""Tells the page's script that the operations are to be asked for again."""
MAX_FORM: Final = 3 * MAX_VALUE + 10_000
"""Bytes: in a form each byte of the params may be written as three."""
_SHOWN: Final = 20_000
"""Characters of JSON that a dialog shows."""
_TEXTS: Final = ("kind", "run_at", "deadline")
_IDS: Final = {name: f"operation-{name}" for name in (*_TEXTS, "params")}
"""Where on the page the faulty field is."""
WORDS: Final = {state: state.value.capitalize() for state in State}


class OperationsQuery(Query):
    """What the address says: the operation before which the page begins, by its number."""

    before: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


def routes() -> list[web.RouteDef]:
    """The addresses of this noun."""
    one = "/ices/{ice_name}/operations/{id}"
    return [
        route("GET", "/ices/{ice_name}/operations/new", ask, need=Need.OPERATE, finds=find_ice),
        route("POST", "/ices/{ice_name}/operations", run, need=Need.OPERATE, finds=find_ice),
        route("GET", one, show, need=Need.CALLER, finds=_find),
        route("GET", f"{one}/cancel", confirm, need=Need.OPERATE, finds=_find),
        route("POST", f"{one}/cancel", cancel, need=Need.OPERATE, finds=_find),
    ]


async def operations_of(request: web.Request, listed: Listed) -> dict[str, Any]:
    """What the templates need to show the operations of an ICE, newest first."""
    query = OperationsQuery.of(request)
    where = OperationFilter(ice_name=listed.ice.ice_name)
    page, more = await parts(request).operations.page(where, PAGE, query.before, brief=True)
    found = [item.operation for item in page]
    return {
        "operations": [(operation, progress_document(operation)) for operation in found],
        "unfinished": any(not operation.is_finished for operation in found),
        "before": query.before,
        "older": page[-1].number if more else None,
        "operates": request[CALLER].operates(listed.ice),
        "states": WORDS,
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
    """Request an operation; a refusal comes back into the form, which keeps what was typed."""
    fields = await form(request, MAX_FORM)
    wanted = _wanted(fields)
    if isinstance(wanted, Problem):
        return form_fault(request, wanted, _IDS, "#dialog-fault")
    made = await parts(request).services.operations.request(
        actor(request, Via.PAGE), listed.ice, wanted
    )
    if isinstance(made, Problem):
        return form_fault(request, made, _IDS, "#dialog-fault")
    context = {"heading": "Operation requested", "said": [f"{made.kind}: {made.id}"]}
    return render(request, "told.html", context, status=202, tell={CHANGED: {}})


def _wanted(fields: dict[str, str]) -> OperationRequest | Problem:
    params = fields.get("params", "").strip().encode() or b"{}"
    try:
        check_syntax(params)
    except NotJson:
        return invalid("params", "has to be JSON")
    except JsonTooComplex as error:
        return invalid("params", str(error))
    given: dict[str, object] = {name: fields[name] for name in _TEXTS if fields.get(name)}
    try:
        new = decode_as(msgspec.json.encode({**given, "params": msgspec.Raw(params)}), NewOperation)
    except RequestRefused as refusal:
        return refusal.problem
    # The same form sent again, after an answer that was lost, is the same operation; what was edited
    # meanwhile is another.
    told = msgspec.json.encode([fields.get("nonce", ""), *given.items()]) + params
    key = hashlib.sha256(told).hexdigest()
    return OperationRequest(new.kind, params, new.run_at, new.deadline, key)


async def show(request: web.Request, _: Listed, operation: Operation) -> web.StreamResponse:
    """All of one operation."""
    context = {
        "operation": operation,
        "progress": progress_document(operation),
        "values": [
            (name, *pretty(value, _SHOWN))
            for name, value in (
                ("Params", operation.params),
                ("Result", operation.result),
                ("Error", operation.error),
            )
            if value is not None
        ],
        "states": WORDS,
    }
    return render(request, "operation.html", context)


async def confirm(request: web.Request, _: Listed, operation: Operation) -> web.StreamResponse:
    """Say what cancelling does, before it is done."""
    return render(request, "operation_cancel.html", {"operation": operation})


async def cancel(request: web.Request, _: Listed, operation: Operation) -> web.StreamResponse:
    """End an operation; one that has finished meanwhile stays as it is."""
    done = await parts(request).services.operations.cancel(actor(request, Via.PAGE), operation.id)
    refused = isinstance(done, Problem)
    said = done.detail if isinstance(done, Problem) else _CANCELLED[operation.state]
    heading = "Nothing was cancelled" if refused else "Operation cancelled"
    return render(
        request,
        "told.html",
        {"heading": heading, "said": [f"{said[:1].upper()}{said[1:]}."]},
        status=409 if refused else 200,
        tell={CHANGED: {}},
    )


_CANCELLED: Final = {
    **dict.fromkeys(State, "the ICE is told to stop; it may have done a part of it"),
    State.QUEUED: "it was not sent yet",
}


async def _find(request: web.Request) -> tuple[Listed, Operation]:
    [listed] = await find_ice(request)
    operation = await parts(request).services.operations.find(request.match_info["id"])
    if operation is None or operation.ice_name != listed.ice.ice_name:
        raise RequestRefused(problem("not-found", "There is no such operation."))
    return listed, operation
