"""The page of enrolment: the machines that wait for an ICE, and the decisions on them.

Tested in tests/gateway/admin/test_enrolment_pages.py and tests/browser/test_enrolment.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import Query, unwrap
from gateway.admin.auth import actor
from gateway.admin.context import admin_context
from gateway.admin.pages.base import (
    MAX_FIELDS,
    PAGE,
    Page,
    form,
    form_fields,
    pages_of,
    render,
    render_table,
    toast,
)
from gateway.admin.pages.ices import sentence_of
from gateway.core.accounts import fold_user
from gateway.core.audit_event import Via
from gateway.core.enrolment import ANY_USER, Enrolment, EnrolmentKey, EnrolmentState, KeyState
from gateway.core.problems import Problem, problem
from gateway.core.roles import Need
from gateway.web.responses import RequestRefused

CHANGED: Final = "enrolments-changed"
"""The event on which the page reloads the table."""
KEY_STATES: Final = {
    KeyState.GOOD: "Good",
    KeyState.REVOKED: "Revoked",
    KeyState.EXPIRED: "Expired",
    KeyState.USED_UP: "Used up",
    KeyState.DISABLED: "User disabled",
}
_DONE: Final = {"approve": "Approved", "reject": "Rejected"}


class PageQuery(Query):
    """The query of the address of a table."""

    page: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """A machine that waits, and what could keep it from its ICE."""

    enrolment: Enrolment
    key: EnrolmentKey
    key_state: KeyState
    has_user: bool
    """False if the user that it names does not exist, or is disabled."""


def routes() -> list[web.RouteDef]:
    """The routes of `/enrolment`, but for the keys."""
    one, chosen = (f"/enrolment/{each}/{{action:approve|reject}}" for each in ("of/{id}", "chosen"))
    return [
        route("GET", "/enrolment", page, need=Need.SEE_ALL),
        route("GET", one, confirm, need=Need.ACT),
        route("POST", one, decide, need=Need.ACT),
        route("POST", f"{chosen}/confirm", confirm_chosen, need=Need.ACT),
        route("POST", chosen, decide_chosen, need=Need.ACT),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The machines that wait, or only their table if htmx asks for that."""
    context = admin_context(request)
    now = context.clock()
    total = await context.enrolments.waiting(now)
    shown = Page.of(min(PageQuery.of(request).page, pages_of(total)))
    found = await context.enrolments.after(EnrolmentState.WAITING, now, PAGE, offset=shown.offset)
    tallies = {"waiting": total, "keys": await context.enrolments.count_keys()}
    content = {"title": "Enrolment", "rows": await _rows(request, found), "states": KEY_STATES}
    return render_table(request, "enrolment", content | tallies | shown.context(total))


async def _rows(request: web.Request, found: list[Enrolment]) -> list[Row]:
    context = admin_context(request)
    keys = await context.enrolments.keys({each.key_id for each in found})
    states = await key_states(request, list(keys.values()))
    users = [each.provisionedto for each in found if each.provisionedto is not None]
    enabled = await context.services.accounts.enabled_among(users)
    return [
        Row(
            each,
            keys[each.key_id],
            states[each.key_id],
            each.provisionedto is None or fold_user(each.provisionedto) in enabled,
        )
        for each in found
    ]


async def key_states(request: web.Request, keys: list[EnrolmentKey]) -> dict[str, KeyState]:
    """The present states of keys, by their ids."""
    context = admin_context(request)
    now = context.clock()
    named = [key.provisionedto for key in keys if key.provisionedto not in (None, ANY_USER)]
    disabled = await context.services.accounts.disabled_among([name for name in named if name])
    return {key.id: key.state(now, user_disabled=key.provisionedto in disabled) for key in keys}


# --- one machine ---------------------------------------------------------------------------------


async def confirm(request: web.Request) -> web.StreamResponse:
    """Ask before a decision on one machine, and say what it will do."""
    context = admin_context(request)
    found = await context.enrolments.one(request.match_info["id"], context.clock())
    enrolment = unwrap(found or problem("not-found", "There is no such enrolment any longer."))
    if enrolment.state is not EnrolmentState.WAITING:
        raise RequestRefused(problem("already-decided"))
    listed = await context.ices.find(enrolment.ice_name) if enrolment.replaces else None
    content = {"enrolment": enrolment, "listed": listed, "action": request.match_info["action"]}
    return render(request, "enrolment_ask.html", content)


async def decide(request: web.Request) -> web.StreamResponse:
    """Approve or reject one machine."""
    await form(request)
    decided = unwrap(await _decide(request, request.match_info["id"]))
    sentence = f"{decided.hostname} was rejected."
    if decided.state is EnrolmentState.APPROVED:
        sentence = f"{decided.ice_name} approved: {decided.hostname} gets it as it asks next."
    return toast(request, sentence, changed=CHANGED)


async def _decide(request: web.Request, enrolment_id: str) -> Enrolment | Problem:
    service = admin_context(request).services.enrolment_keys
    acts = {"approve": service.approve, "reject": service.reject}
    return await acts[request.match_info["action"]](actor(request, Via.PAGE), enrolment_id)


# --- the chosen machines of a page of the table --------------------------------------------------


async def confirm_chosen(request: web.Request) -> web.StreamResponse:
    """Ask before a decision on several machines: which they are, and which replace another."""
    context = admin_context(request)
    chosen = await _chosen(request)
    found = [await context.enrolments.one(each, context.clock()) for each in chosen]
    waiting = [each for each in found if each and each.state is EnrolmentState.WAITING]
    if not waiting:
        raise RequestRefused(problem("already-decided"))
    content = {"waiting": waiting, "action": request.match_info["action"]}
    return render(request, "enrolment_ask_chosen.html", content)


async def decide_chosen(request: web.Request) -> web.StreamResponse:
    """Approve or reject the chosen machines one by one; of those that are refused, say why."""
    decided: list[Enrolment] = []
    refused: list[dict[str, Any]] = []
    for each in await _chosen(request):
        outcome = await _decide(request, each)
        if not isinstance(outcome, Problem):
            decided.append(outcome)
            continue
        context = admin_context(request)
        enrolment = await context.enrolments.one(each, context.clock())
        refused.append({"enrolment": enrolment, "reason": sentence_of(outcome)})
    verb = _DONE[request.match_info["action"]]
    if not refused:
        machines = f"{len(decided)} machine{'s' * (len(decided) != 1)}"
        return toast(request, f"{verb} {machines}.", changed=CHANGED)
    content = {"verb": verb, "done": len(decided), "refused": refused}
    return render(request, "enrolment_decided.html", content, trigger={CHANGED: {}})


async def _chosen(request: web.Request) -> list[str]:
    pairs = await form_fields(request, max_fields=PAGE + MAX_FIELDS)
    chosen = [value for name, value in pairs if name == "enrolments"]
    if not 0 < len(chosen) <= PAGE:
        raise RequestRefused(problem("invalid", f"Choose machines, {PAGE} at the most."))
    return chosen
