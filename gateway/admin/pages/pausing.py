"""Pausing and resuming one ICE on its page, by admins and by the ICE's tagged user.

Tested in tests/gateway/admin/test_pause_pages.py and tests/browser/test_pausing.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web
from msgspec import UNSET

from gateway.admin.access import route
from gateway.admin.api.ices import NewPause
from gateway.admin.api.requests import find_ice, unwrap
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.admin.pages.base import form, render, toast
from gateway.admin.pages.ices import CHANGED, form_error
from gateway.core.audit_event import Via
from gateway.core.consent import kinds_in_order
from gateway.core.ice import Ice, IceType
from gateway.core.pause import Pause, forbids, wrong_status
from gateway.core.problems import Problem, invalid
from gateway.core.roles import Need, Role
from gateway.services.pausing import PauseOrder
from gateway.store.ice_listing import Listed
from gateway.web.responses import RequestRefused

PAUSE_FIELDS: Final = {"until": "pause-until", "note": "pause-note"}
"""The elements of the form, by the problem's field."""


def routes() -> list[web.RouteDef]:
    """The routes of an ICE's pause."""
    one = "/ices/{ice_name}"
    return [
        route("GET", f"{one}/pause", ask, need=Need.PAUSE, finds=find_ice),
        route("POST", f"{one}/pause", pause, need=Need.PAUSE, finds=find_ice),
        route("POST", f"{one}/resume", resume, need=Need.PAUSE, finds=find_ice),
    ]


def pause_of(request: web.Request, listed: Listed) -> dict[str, Any]:
    """The variables of the template that shows a pause: what holds, what the caller may do, what others may send."""
    caller, ice = request[CALLER], listed.ice
    paused = listed.paused(admin_context(request).clock())
    by_admin = caller.role is Role.ADMIN
    pauses = caller.pauses(ice) and wrong_status(ice.ice_name, ice.status) is None
    return {
        "paused": paused,
        "pauses": pauses and forbids(ice.ice_name, paused, by_admin=by_admin) is None,
        "others": _others(listed) if ice.ice_type is IceType.NORMAL else None,
    }


def _others(listed: Listed) -> str:
    """What others than the tagged user may send, in words."""
    if listed.accepts is UNSET:
        return "not known yet"
    if listed.accepts is None:
        return "everything"
    return ", ".join(kinds_in_order(listed.accepts)) or "nothing"


async def ask(request: web.Request, listed: Listed) -> web.StreamResponse:
    """The form for a pause."""
    paused = listed.paused(admin_context(request).clock())
    return pause_form(request, f"Pause {listed.ice.ice_name}", ice=listed.ice, paused=paused)


def pause_form(
    request: web.Request,
    heading: str,
    *,
    ice: Ice | None = None,
    paused: Pause | None = None,
    typed: int | None = None,
) -> web.StreamResponse:
    """The form for the pause of an ICE, or of the chosen ones, whose number the admin may have to type."""
    context = {"heading": heading, "ice": ice, "paused": paused, "typed": typed}
    return render(request, "pause.html", context)


async def pause(request: web.Request, listed: Listed) -> web.StreamResponse:
    """Pause the ICE; a refusal appears in the form, which keeps its input."""
    by_admin = request[CALLER].role is Role.ADMIN
    try:
        order = order_of(await form(request), by_admin=by_admin)
        unwrap(await _set(request, order, listed))
    except RequestRefused as refusal:
        return form_error(request, refusal.problem, PAUSE_FIELDS, "#dialog-fault")
    return toast(request, f"Paused {listed.ice.ice_name}.", changed=CHANGED)


def order_of(fields: Mapping[str, str], *, by_admin: bool) -> PauseOrder:
    """The pause that the form asks for. Raises `RequestRefused`."""
    if "note" not in fields:
        raise RequestRefused(invalid("note", "is missing from the form"))
    note = fields["note"].replace("\r\n", "\n")
    return NewPause(note, fields.get("until") or None).order(by_admin=by_admin)


async def resume(request: web.Request, listed: Listed) -> web.StreamResponse:
    """End the pause of the ICE."""
    await form(request)
    order = PauseOrder(by_admin=request[CALLER].role is Role.ADMIN, resume=True)
    unwrap(await _set(request, order, listed))
    return toast(request, f"Resumed {listed.ice.ice_name}.", changed=CHANGED)


async def _set(request: web.Request, order: PauseOrder, listed: Listed) -> Problem | None:
    bulk = admin_context(request).services.bulk
    return await bulk.pause_one(actor(request, Via.PAGE), listed.ice, order)
