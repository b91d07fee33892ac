"""ICE Provisioning: the form, the table, and what is done to the ICEs in it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from gateway.admin.access import route, visible_ices
from gateway.admin.api.requests import Query, Text, find_ice
from gateway.admin.auth import actor
from gateway.admin.context import CALLER
from gateway.admin.pages.base import (
    MAX_FIELDS,
    PAGE,
    Page,
    form,
    parts,
    posted,
    render,
    render_table,
)
from gateway.core.accounts import fold_user
from gateway.core.audit_event import Actor, Via
from gateway.core.codes import AuditAction
from gateway.core.ice import Action, Ice, IceType, Status, actions_from, valid_name
from gateway.core.problems import Problem, invalid, problem
from gateway.core.roles import Need
from gateway.services.provisioning import MAX_BULK, BulkDone, BulkOutcome, Done, Expected, Issued
from gateway.store.ices import ORDERS, IceFilter, Listed, Order
from gateway.web.responses import MAX_BODY, RequestRefused

"""Rows of the table on one page."""
ADMINS: Final = (Action.REPROVISION, Action.REREGISTER, Action.DEREGISTER)
MAX_BULK_FIELDS: Final = MAX_BULK + MAX_FIELDS
"""Fields of a form that names ICEs."""
CHANGED: Final = "ices-changed"
"""Tells the page's script that the table is to be asked for again."""
WORDS: Final = {
    Status.PROVISIONED: "Provisioned",
    Status.REGISTERED: "Registered",
    Status.DEREGISTERED: "Deregistered",
    IceType.NORMAL: "Normal",
    IceType.CI_CD: "CI/CD",
    Action.REPROVISION: "Reprovision",
    Action.REREGISTER: "Reregister",
    Action.DEREGISTER: "Deregister",
    AuditAction.DISCONNECT: "Disconnect",
}


class TableQuery(Query):
    """What the address says of the table: filters, order, page."""

    q: Text | None = None
    status: Status | None = None
    ice_type: IceType | None = None
    user: Text | None = None
    connected: bool | None = None
    sort: str = "name"
    desc: bool = False
    page: int = 1

    def order(self) -> Order:
        """The order; an unknown one is by name."""
        return Order(self.sort if self.sort in ORDERS else "name", self.desc)

    def address(self, **changes: Any) -> str:
        """The query of another table: this one with changes."""
        wanted = {name: getattr(self, name) for name in self.__struct_fields__} | changes
        defaults = TableQuery()
        given = {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in wanted.items()
            if value is not None and value != getattr(defaults, name)
        }
        return urlencode(given)


@dataclass(frozen=True, slots=True)
class Row:
    """An ICE of the table, with what may be done to it."""

    ice: Ice
    listed: Listed
    actions: tuple[str, ...]


def row_of(listed: Listed, *, acts: bool) -> Row:
    """A row with the actions that it allows, and only those."""
    if not acts:
        return Row(listed.ice, listed, ())
    allowed: list[str] = [action for action in actions_from(listed.ice.status) if action in ADMINS]
    if listed.connection is not None:
        allowed.append(AuditAction.DISCONNECT)
    return Row(listed.ice, listed, tuple(allowed))


def routes() -> list[web.RouteDef]:
    """The addresses of this noun."""
    action = "/ices/{ice_name}/{action:reprovision|reregister|deregister|disconnect}"
    return [
        route("GET", "/", page, need=Need.CALLER),
        route("POST", "/ices", provision, need=Need.ACT),
        route("POST", "/ices/bulk", bulk, need=Need.ACT),
        route("POST", "/ices/bulk/confirm", confirm_bulk, need=Need.ACT),
        route("GET", action, confirm, need=Need.ACT, finds=find_ice),
        route("POST", action, act, need=Need.ACT, finds=find_ice),
    ]


# --- the table -----------------------------------------------------------------------------------


async def page(request: web.Request) -> web.StreamResponse:
    """The whole page, or the table alone where htmx asks for it."""
    query = TableQuery.of(request)
    context = {**await _table(request, query), "title": "ICE Provisioning"}
    return render_table(request, "ices", context)


async def _table(request: web.Request, query: TableQuery) -> dict[str, Any]:
    caller = request[CALLER]
    where = visible_ices(
        caller,
        IceFilter(
            status=query.status,
            ice_type=query.ice_type,
            provisionedto=None if query.user is None else fold_user(query.user),
            connected=query.connected,
            text=None if query.q is None else fold_user(query.q),
        ),
    )
    shown, table = Page.of(query.page), parts(request).ices
    found, total = (
        ([], 0) if where is None else await table.sorted(where, query.order(), PAGE, shown.offset)
    )
    return {
        "query": query,
        "rows": [row_of(listed, acts=caller.grants.acts) for listed in found],
        **shown.context(total),
        "missing": await _missing(request, query, total),
        "words": WORDS,
        "address": f"?{query.address()}",
    }


async def _missing(request: web.Request, query: TableQuery, total: int) -> str | None:
    """The name that was searched for, if it is one and no ICE has it."""
    name = query.q
    if total or name is None or not valid_name(name):
        return None
    listed = await parts(request).ices.find(name)
    # To a member an ICE that is not theirs does not exist.
    seen = listed is not None and request[CALLER].sees(listed.ice)
    return None if seen else name


# --- provisioning --------------------------------------------------------------------------------


async def provision(request: web.Request) -> web.StreamResponse:
    """Provision; a refusal comes back into the form, which keeps what was typed."""
    fields = await form(request)
    try:
        ice_type = IceType(fields.get("ice_type", ""))
    except ValueError:
        raise RequestRefused(problem("invalid", "Choose the ICE type: Normal or CI/CD.")) from None
    user = fields.get("provisionedto", "").strip() or None
    issued = await parts(request).services.provisioning.provision(
        actor(request, Via.PAGE),
        fields.get("ice_name", "").strip(),
        ice_type,
        user if ice_type is IceType.NORMAL else None,
    )
    if isinstance(issued, Problem):
        return form_fault(request, issued, {"ice-exists": "ice_name"})
    return issued_dialog(request, issued, "ICE provisioning successful", ended=None)


def form_fault(
    request: web.Request,
    refused: Problem,
    fields: Mapping[str, str],
    place: str = "#form-fault",
) -> web.StreamResponse:
    """A refusal said within the form; `fields` are element ids by the refusal's field or code."""
    field = refused.more.get("field", "")
    named = fields.get(field, field) or fields.get(refused.code, "")
    response = render(
        request,
        "form_fault.html",
        {"problem": refused},
        status=refused.status,
        tell={"form-fault": {"field": named}},
    )
    response.headers["HX-Retarget"] = place
    return response


def issued_dialog(
    request: web.Request, issued: Issued, heading: str, *, ended: Done | None
) -> web.StreamResponse:
    """The dialog with Ok, behind which the token is shown this once."""
    here = parts(request)
    urls = here.public_urls or (f"{request.scheme}://{request.host}",)
    context = {
        "heading": heading,
        "ice": issued.ice,
        "token": issued.token.reveal(),
        "filename": f"{issued.ice.ice_name}.token",
        "gateway_url": urls[0],
        "ended": ended,
    }
    return render(request, "issued.html", context, tell={CHANGED: {}})


# --- actions -------------------------------------------------------------------------------------


async def confirm(request: web.Request, listed: Listed) -> web.StreamResponse:
    """Say what an action will do now, before it is done."""
    action = request.match_info["action"]
    row = row_of(listed, acts=True)
    if action not in row.actions and action != AuditAction.DISCONNECT:
        return await _stale(request, action)
    return render(request, "confirm.html", {"row": row, "action": action, "words": WORDS})


async def act(request: web.Request, listed: Listed) -> web.StreamResponse:
    """Take an action on the generation that the page has shown."""
    action, fields = request.match_info["action"], await form(request)
    generation = fields.get("generation", "")
    if not re.fullmatch("[0-9]{1,18}", generation):
        raise RequestRefused(invalid("generation", "must be the number that the page has shown"))
    expected = frozenset({int(generation)})
    done = await _actions(request)[action](actor(request, Via.PAGE), listed.ice, expected)
    if isinstance(done, Problem):
        if done.code in ("stale", "wrong-status"):
            return await _stale(request, action)
        raise RequestRefused(done)
    if isinstance(done, Issued):
        return issued_dialog(request, done, f"ICE {WORDS[Action(action)].lower()}ed", ended=done)
    context = {"ice": done.ice, "action": action, "ended": done, "words": WORDS}
    return render(request, "done.html", context, tell={CHANGED: {}})


_Act = Callable[[Actor, Ice, Expected], Awaitable[Issued | Done | Problem]]


def _actions(request: web.Request) -> dict[str, _Act]:
    provisioning = parts(request).services.provisioning
    return {
        Action.REPROVISION: provisioning.reprovision,
        Action.REREGISTER: provisioning.reregister,
        Action.DEREGISTER: provisioning.deregister,
        AuditAction.DISCONNECT: provisioning.disconnect,
    }


async def _stale(request: web.Request, action: str) -> web.StreamResponse:
    """Somebody else was first: say so, and show what the ICE is now."""
    [listed] = await find_ice(request)
    row = row_of(listed, acts=True)
    context = {"row": row, "action": action, "words": WORDS}
    return render(request, "stale.html", context, status=409, tell={CHANGED: {}})


async def confirm_bulk(request: web.Request) -> web.StreamResponse:
    """Say what a bulk action will do to the ICEs that were chosen."""
    action, names = await _bulk(request)
    found = [await parts(request).ices.find(name) for name in names[:PAGE]]
    rows = [row_of(listed, acts=True) for listed in found if listed is not None]
    context = {"rows": rows, "names": names, "action": action, "words": WORDS}
    return render(request, "confirm_bulk.html", context)


async def bulk(request: web.Request) -> web.StreamResponse:
    """Deregister or disconnect the ICEs that were chosen; a result for each."""
    action, names = await _bulk(request)
    done = await parts(request).services.provisioning.bulk(actor(request, Via.PAGE), action, names)
    context = {
        "results": [_result(outcome, done) for outcome in done.outcomes],
        "action": action,
        "ended": done,
        "words": WORDS,
    }
    return render(request, "bulk_done.html", context, tell={CHANGED: {}})


def _result(outcome: BulkOutcome, done: BulkDone) -> dict[str, Any]:
    drops = [drop for drop in done.dropped if drop.ice_name == outcome.ice_name]
    return {"name": outcome.ice_name, "problem": outcome.problem, "drops": drops}


async def _bulk(request: web.Request) -> tuple[str, list[str]]:
    fields = await posted(request, MAX_BODY, MAX_BULK_FIELDS)
    action = dict(fields).get("action", "")
    names = [value for name, value in fields if name == "ice_names"]
    if len(names) > MAX_BULK:
        raise RequestRefused(invalid("ice_names", f"at most {MAX_BULK} at once"))
    if action not in (Action.DEREGISTER, AuditAction.DISCONNECT) or not names:
        raise RequestRefused(problem("invalid", "Choose ICEs, and Deregister or Disconnect."))
    return action, names
