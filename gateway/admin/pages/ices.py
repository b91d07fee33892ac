"""The page ICE Provisioning: the form, the table of ICEs, and the actions on them.

Tested in tests/gateway/admin/test_pages.py and tests/browser/test_actions.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from aiohttp import web

from gateway.admin.access import route, visible_ices
from gateway.admin.api.ices import IceFilters
from gateway.admin.api.requests import Text, find_ice, unwrap
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.admin.pages.base import (
    MAX_FIELDS,
    PAGE,
    Page,
    form,
    form_fields,
    render,
    render_table,
)
from gateway.core.accounts import fold_user
from gateway.core.audit_event import AuditAction, Via
from gateway.core.ice import Action, Ice, IceType, Status, actions_from, valid_name
from gateway.core.problems import Problem, invalid, problem
from gateway.core.roles import Need
from gateway.services.bulk_actions import MAX_BULK, BulkDone, BulkOutcome, Target
from gateway.services.provisioning import Done, Issued
from gateway.store.ice_listing import IceFilter, Listed, Order, SortKey
from gateway.web.responses import RequestRefused

ADMIN_ACTIONS: Final = (Action.REPROVISION, Action.REREGISTER, Action.DEREGISTER)
MAX_BULK_FIELDS: Final = MAX_BULK + MAX_FIELDS
"""Maximum fields of a form that lists ICEs."""
CHANGED: Final = "ices-changed"
"""The event on which the page reloads the table."""
LABELS: Final = {
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


class TableQuery(IceFilters):
    """The query of the page's address: filters, order and page of the table."""

    user: Text | None = None
    sort: str = "name"
    desc: bool = False
    page: int = 1

    def filter(self, now: datetime) -> IceFilter:
        """The filter at `now`; the page's field names the owner `user`."""
        owner = None if self.user is None else fold_user(self.user)
        return replace(super().filter(now), provisionedto=owner)

    def order(self) -> Order:
        """The order; by name if the address names an unknown one."""
        by = SortKey(self.sort) if self.sort in set(SortKey) else SortKey.NAME
        return Order(by, self.desc)


@dataclass(frozen=True, slots=True)
class Row:
    """An ICE of the table, with the actions that the caller may take on it."""

    listed: Listed
    actions: tuple[str, ...]

    @property
    def ice(self) -> Ice:
        """The ICE itself."""
        return self.listed.ice


def table_row(listed: Listed, *, acts: bool) -> Row:
    """The row of an ICE; `acts` says whether the caller may take actions."""
    if not acts:
        return Row(listed, ())
    allowed: list[str] = [each for each in actions_from(listed.ice.status) if each in ADMIN_ACTIONS]
    if listed.connection is not None:
        allowed.append(AuditAction.DISCONNECT)
    return Row(listed, tuple(allowed))


def routes() -> list[web.RouteDef]:
    """The routes of ICE Provisioning."""
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
    """The page, or only its table if htmx asks for that."""
    query = TableQuery.of(request)
    context = {**await _table(request, query), "title": "ICE Provisioning"}
    return render_table(request, "ices", context)


async def _table(request: web.Request, query: TableQuery) -> dict[str, Any]:
    caller = request[CALLER]
    where = visible_ices(caller, query.filter(admin_context(request).clock()))
    shown, table = Page.of(query.page), admin_context(request).ices
    found: list[Listed] = []
    total = 0
    if where is not None:
        found = await table.page(where, PAGE, order=query.order(), offset=shown.offset)
        total = await table.count(where)
    return {
        "query": query,
        "rows": [table_row(listed, acts=caller.grants.acts) for listed in found],
        **shown.context(total),
        "missing": await _missing(request, query, total),
        "labels": LABELS,
        "address": f"?{query.address()}",
    }


async def _missing(request: web.Request, query: TableQuery, total: int) -> str | None:
    """The search text, if it is a valid name and the caller sees no ICE with it."""
    name = query.q
    if total or name is None or not valid_name(name):
        return None
    listed = await admin_context(request).ices.find(name)
    visible = listed is not None and request[CALLER].sees(listed.ice)
    return None if visible else name


# --- provisioning --------------------------------------------------------------------------------


async def provision(request: web.Request) -> web.StreamResponse:
    """Provision an ICE; a refusal appears in the form, which keeps its input."""
    fields = await form(request)
    try:
        ice_type = IceType(fields.get("ice_type", ""))
    except ValueError:
        raise RequestRefused(problem("invalid", "Choose the ICE type: Normal or CI/CD.")) from None
    user = fields.get("provisionedto", "").strip() or None
    issued = await admin_context(request).services.provisioning.provision(
        actor(request, Via.PAGE),
        fields.get("ice_name", "").strip(),
        ice_type,
        user if ice_type is IceType.NORMAL else None,
    )
    if isinstance(issued, Problem):
        return form_error(request, issued, {"ice-exists": "ice_name"})
    return issued_dialog(request, issued, "ICE provisioning successful", ended=None)


def form_error(
    request: web.Request,
    refused: Problem,
    fields: Mapping[str, str],
    place: str = "#form-fault",
) -> web.StreamResponse:
    """A refusal shown in the form; `fields` has element ids by the problem's field or code."""
    field = refused.more.get("field", "")
    element = fields.get(field, field) or fields.get(refused.code, "")
    response = render(
        request,
        "form_error.html",
        {"problem": refused},
        status=refused.status,
        trigger={"form-fault": {"field": element}},
    )
    response.headers["HX-Retarget"] = place
    return response


def issued_dialog(
    request: web.Request, issued: Issued, heading: str, *, ended: Done | None
) -> web.StreamResponse:
    """The dialog that, after Ok, shows the token once."""
    urls = admin_context(request).public_urls or (f"{request.scheme}://{request.host}",)
    context = {
        "heading": heading,
        "ice": issued.ice,
        "token": issued.token.reveal(),
        "filename": f"{issued.ice.ice_name}.token",
        "gateway_url": urls[0],
        "ended": ended,
    }
    return render(request, "issued.html", context, trigger={CHANGED: {}})


# --- actions -------------------------------------------------------------------------------------


async def confirm(request: web.Request, listed: Listed) -> web.StreamResponse:
    """Ask before an action, and say what it will do."""
    action = request.match_info["action"]
    row = table_row(listed, acts=True)
    if action not in row.actions and action != AuditAction.DISCONNECT:
        return await _stale(request, action)
    return render(request, "confirm.html", {"row": row, "action": action, "labels": LABELS})


async def act(request: web.Request, listed: Listed) -> web.StreamResponse:
    """Take an action on the generation that the page showed."""
    action, fields = request.match_info["action"], await form(request)
    generation = fields.get("generation", "")
    if not re.fullmatch("[0-9]{1,18}", generation):
        raise RequestRefused(invalid("generation", "must be the number that the page showed"))
    expected = frozenset({int(generation)})
    actions = admin_context(request).services.provisioning.actions
    done = await actions[action](actor(request, Via.PAGE), listed.ice, expected)
    if isinstance(done, Problem):
        if done.code in ("stale", "wrong-status"):
            return await _stale(request, action)
        raise RequestRefused(done)
    if isinstance(done, Issued):
        return issued_dialog(request, done, f"ICE {LABELS[Action(action)].lower()}ed", ended=done)
    context = {"ice": done.ice, "action": action, "ended": done, "labels": LABELS}
    return render(request, "done.html", context, trigger={CHANGED: {}})


async def _stale(request: web.Request, action: str) -> web.StreamResponse:
    """Say that the ICE has changed since the page showed it, and show its present status."""
    [listed] = await find_ice(request)
    row = table_row(listed, acts=True)
    context = {"row": row, "action": action, "labels": LABELS}
    return render(request, "stale.html", context, status=409, trigger={CHANGED: {}})


async def confirm_bulk(request: web.Request) -> web.StreamResponse:
    """Ask before a bulk action, and list the chosen ICEs."""
    action, names = await _bulk(request)
    found = [await admin_context(request).ices.find(name) for name in names[:PAGE]]
    rows = [table_row(listed, acts=True) for listed in found if listed is not None]
    context = {"rows": rows, "names": names, "action": action, "labels": LABELS}
    return render(request, "confirm_bulk.html", context)


async def bulk(request: web.Request) -> web.StreamResponse:
    """Deregister or disconnect the chosen ICEs; show a result for each."""
    action, names = await _bulk(request)
    targets = [Target(name) for name in names]
    done = unwrap(
        await admin_context(request).services.bulk.act(actor(request, Via.PAGE), action, targets)
    )
    context = {
        "results": [_result(outcome, done) for outcome in done.outcomes],
        "action": action,
        "ended": done,
        "labels": LABELS,
    }
    return render(request, "bulk_done.html", context, trigger={CHANGED: {}})


def _result(outcome: BulkOutcome, done: BulkDone) -> dict[str, Any]:
    drops = [drop for drop in done.dropped if drop.ice_name == outcome.ice_name]
    return {"name": outcome.ice_name, "problem": outcome.problem, "drops": drops}


async def _bulk(request: web.Request) -> tuple[str, list[str]]:
    fields = await form_fields(request, max_fields=MAX_BULK_FIELDS)
    action = dict(fields).get("action", "")
    names = [value for name, value in fields if name == "ice_names"]
    if len(names) > MAX_BULK:
        raise RequestRefused(invalid("ice_names", f"at most {MAX_BULK} at once"))
    if action not in (Action.DEREGISTER, AuditAction.DISCONNECT) or not names:
        raise RequestRefused(problem("invalid", "Choose ICEs, and Deregister or Disconnect."))
    return action, names
