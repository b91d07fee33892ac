"""The page ICE Provisioning: the form, the table of ICEs, and the actions on one of them.

Tested in tests/gateway/admin/test_ice_list.py and tests/browser/test_actions.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.admin.access import route, visible_ices, visible_pools
from gateway.admin.api.requests import find_ice
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.admin.pages.base import (
    PAGE,
    Page,
    form,
    gateway_url,
    is_table,
    pages_of,
    render,
    render_table,
)
from gateway.admin.pages.ice_filter import ATTENTION, UNSEEN, TableQuery, tallies
from gateway.core.audit_event import AuditAction, Via
from gateway.core.ice import Action, Ice, IceType, Status, actions_from, valid_name
from gateway.core.problems import Problem, invalid, problem
from gateway.core.roles import Need, Role
from gateway.core.start_commands import run_commands
from gateway.services.provisioning import Done, Issued
from gateway.store.ice_filter import IceFilter
from gateway.store.ice_listing import NO_ICES, Listed
from gateway.web.responses import RequestRefused

_MAX_CHIPS: Final = 6
"""Labels that a row shows at most; fewer if they are long."""
_MAX_CHIP_TEXT: Final = 100
ADMIN_ACTIONS: Final = (Action.REPROVISION, Action.REREGISTER, Action.DEREGISTER)
_FILTER_FIELDS: Final = {
    "label": "filter-labels",
    "version_below": "filter-version",
    "pool": "filter-pool",
    "q": "filter-q",
}
"""The element of an invalid filter, by the problem's field."""
CHANGED: Final = "ices-changed"
"""The event on which the page reloads the table."""
LABELS: Final[dict[str, str]] = {
    Status.PROVISIONED: "Provisioned",
    Status.REGISTERED: "Registered",
    Status.DEREGISTERED: "Deregistered",
    IceType.NORMAL: "Normal",
    IceType.CI_CD: "CI/CD",
    Action.REPROVISION: "Reprovision",
    Action.REREGISTER: "Reregister",
    Action.DEREGISTER: "Deregister",
    AuditAction.DISCONNECT: "Disconnect",
    AuditAction.LABEL: "Label",
    AuditAction.PAUSE: "Pause",
    AuditAction.RESUME: "Resume",
}
FIELDS: Final = {
    "ice_name": "ICE name",
    "ice_type": "ICE type",
    "provisionedto": "User",
    "ices": "ICEs",
    "ices.to": "Next user",
    "label": "Labels",
    "labels": "Labels",
    "remove": "Labels to remove",
    "version_below": "Version below",
    "q": "Search",
    "name": "Name",
    "name_prefix": "Name prefix",
    "max_uses": "Machines",
    "role": "Role",
    "password": "Password",
    "user": "Owner",
    "ice": "ICE",
    "pool": "Pool",
    "accounts": "May change accounts",
    "new": "New password",
}
"""The labels of fields, by the field of a problem."""


@dataclass(frozen=True, slots=True)
class Row:
    """An ICE of the table, with the actions that the caller may take on it."""

    listed: Listed
    actions: tuple[str, ...]

    @property
    def ice(self) -> Ice:
        """The ICE itself."""
        return self.listed.ice

    @property
    def chips(self) -> list[str]:
        """The first labels as `KEY=VALUE`; a page of long ones stays small."""
        shown: list[str] = []
        for key, value in self.listed.labels.items():
            pair = f"{key}={value}"
            if len(shown) == _MAX_CHIPS or len(pair) + sum(map(len, shown)) > _MAX_CHIP_TEXT:
                break
            shown.append(pair)
        return shown


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
        route("POST", "/ices/owner", add_owner, need=Need.ACT),
        route("GET", action, confirm, need=Need.ACT, finds=find_ice),
        route("POST", action, act, need=Need.ACT, finds=find_ice),
    ]


# --- the table -----------------------------------------------------------------------------------


async def page(request: web.Request) -> web.StreamResponse:
    """The page, or only its table if htmx asks for that."""
    try:
        query = TableQuery.of(request)
        context = await _table(request, query)
    except RequestRefused as refused:
        if not _by_filter(request):
            raise
        response = form_error(request, refused.problem, _FILTER_FIELDS, "#filter-fault")
        response.headers["HX-Push-Url"] = "false"
        return response
    corrected = query.page > context["pages"]
    if corrected:
        query = msgspec.structs.replace(query, page=context["number"])
    if corrected and not is_table(request):
        raise web.HTTPFound(f"./?{query.address()}")
    if not is_table(request):
        pools = visible_pools(request)
        context["pools"] = [] if pools is None else await pools.names()
    response = render_table(
        request, "ices", context | {"query": query, "title": "ICE Provisioning"}
    )
    by_itself = request.headers.get("HX-Trigger") == "table"
    if is_table(request) and (corrected or not by_itself):
        # The address bar shows the filter as the fields do: labels one by one, an existing page.
        address = msgspec.structs.replace(query, new=None).address()
        header = "HX-Replace-Url" if by_itself else "HX-Push-Url"
        response.headers[header] = f"./?{address}" if address else "./"
    return response


def _by_filter(request: web.Request) -> bool:
    return is_table(request) and request.headers.get("HX-Trigger") == "filter"


async def _table(request: web.Request, query: TableQuery) -> dict[str, Any]:
    caller, now = request[CALLER], admin_context(request).clock()
    where = visible_ices(caller, await query.filter(now, visible_pools(request)))
    table = admin_context(request).ices
    everything = visible_ices(caller, IceFilter())
    counts = NO_ICES if everything is None else await table.counts(everything, now)
    needing = 0
    if everything is not None and any(counts.attention.values()):
        needing = await table.count(replace(everything, needs_attention=True, now=now))
    total = 0 if where is None else await table.count(where)
    shown = Page.of(min(query.page, pages_of(total)))
    found: list[Listed] = []
    if where is not None and total:
        found = await table.page(where, PAGE, order=query.order(), offset=shown.offset)
    new = None if query.new is None else await table.find(query.new)
    if new is not None and not caller.sees(new.ice):
        new = None
    rows = [
        table_row(listed, acts=caller.grants.acts)
        for listed in ([] if new is None else [new]) + found
    ]
    if new is not None:
        rows = rows[:1] + [row for row in rows[1:] if row.ice.ice_name != new.ice.ice_name]
    return {
        "query": query,
        "rows": rows,
        "new": None if new is None else new.ice.ice_name,
        **shown.context(total),
        "everything": counts.total,
        "tallies": tallies(counts, needing),
        "attention": ATTENTION,
        "unseen": UNSEEN,
        "now": now,
        "missing": await _missing(request, query, total),
        "labels": LABELS,
        "waiting": await _waiting(request),
        "address": f"?{msgspec.structs.replace(query, page=shown.number, new=None).address()}",
        "oob": is_table(request),
        "announced": request.headers.get("HX-Trigger") != "table",
    }


async def _waiting(request: web.Request) -> int:
    """How many machines wait for an admin, for a caller who may know."""
    if not request[CALLER].grants.sees_all:
        return 0
    context = admin_context(request)
    return await context.enrolments.waiting(context.clock())


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
        missing = user if await _is_missing_user(request, issued, user) else None
        return form_error(request, issued, {"ice-exists": "ice_name"}, add_user=missing)
    return issued_dialog(request, issued, "ICE provisioning successful", ended=None)


async def _is_missing_user(request: web.Request, refused: Problem, user: str | None) -> bool:
    """Whether it was refused because there is no user of this name."""
    if refused.more.get("field") != "provisionedto" or user is None:
        return False
    return await admin_context(request).services.accounts.user(user) is None


async def add_owner(request: web.Request) -> web.StreamResponse:
    """Add the user that the form names, as a member without a password."""
    name = (await form(request)).get("provisionedto", "").strip()
    accounts = admin_context(request).services.accounts
    user = await accounts.add_user(actor(request, Via.PAGE), name, Role.MEMBER, None)
    if isinstance(user, Problem) and user.code != "user-exists":
        return form_error(request, user, {"name": "provisionedto"})
    return render(request, "owner_added.html", {"name": name}, trigger={"owner-added": {}})


def form_error(
    request: web.Request,
    refused: Problem,
    fields: Mapping[str, str],
    place: str = "#form-fault",
    *,
    add_user: str | None = None,
) -> web.StreamResponse:
    """A refusal shown in the form; `fields` has element ids by the problem's field or code.

    `add_user` is the name of a user that the form offers to add.
    """
    field = refused.more.get("field", "")
    element = fields.get(field, field) or fields.get(refused.code, "")
    response = render(
        request,
        "form_error.html",
        {"sentence": sentence_of(refused), "add_user": add_user},
        status=refused.status,
        trigger={"form-fault": {"field": element}},
    )
    response.headers["HX-Retarget"] = place
    return response


def sentence_of(refused: Problem) -> str:
    """What a refusal says, with the label of the field in place of its name."""
    field, detail = refused.more.get("field", ""), refused.detail
    if field and detail.startswith(f"{field}: "):
        label = FIELDS.get(field, field.replace("_", " ").capitalize())
        return f"{label}: {detail.removeprefix(f'{field}: ')}"
    return detail[:1].upper() + detail[1:]


def issued_dialog(
    request: web.Request, issued: Issued, heading: str, *, ended: Done | None
) -> web.StreamResponse:
    """The dialog that, after Ok, shows the token once."""
    context = {
        "heading": heading,
        "ice": issued.ice,
        "token": issued.token.reveal(),
        "filename": f"{issued.ice.ice_name}.token",
        "commands": run_commands(gateway_url(request), issued.ice.ice_name, with_token=True),
        "ended": ended,
    }
    changed = {"new": issued.ice.ice_name} if ended is None else {}
    return render(request, "issued.html", context, trigger={CHANGED: changed})


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
    user = fields.get("provisionedto", "").strip()
    renews = user and action in (Action.REPROVISION, Action.REREGISTER)
    owner = (user,) if renews else ()
    done = await actions[action](actor(request, Via.PAGE), listed.ice, expected, *owner)
    if isinstance(done, Problem):
        if done.code in ("stale", "wrong-status"):
            return await _stale(request, action)
        if done.code == "owner-disabled" or "field" in done.more:
            elements = {"provisionedto": "new-owner", "owner-disabled": "new-owner"}
            return form_error(request, done, elements, "#dialog-fault")
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
