"""The page of schedules, and the page of one: its next times, and what became of the past ones.

Tested in tests/gateway/admin/test_schedule_pages.py and tests/browser/test_schedules.py.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec
from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.requests import Query, Text, decode_as, unwrap
from gateway.admin.api.schedules import (
    NewSchedule,
    ScheduleChanges,
    ScheduleFilters,
    check_target,
    find_own_schedule,
    find_schedule,
)
from gateway.admin.auth import actor
from gateway.admin.context import CALLER, admin_context
from gateway.admin.pages.base import (
    PAGE,
    Page,
    form,
    is_fragment,
    pages_of,
    render,
    render_table,
    toast,
)
from gateway.admin.pages.ices import form_error
from gateway.admin.pages.operations import MAX_FORM, MAX_SHOWN, params_of
from gateway.core.audit_event import Via
from gateway.core.cron import Cron
from gateway.core.operation import NotValid
from gateway.core.problems import Problem, invalid
from gateway.core.roles import OPERATING, Need
from gateway.core.schedule import (
    DEFAULT_GRACE,
    DEFAULT_TIMEOUT,
    MAX_COUNTED,
    SHOWN,
    Occurrence,
    Schedule,
    SkipReason,
)
from gateway.core.schedule_access import may_schedule
from gateway.core.text import pretty
from gateway.runtime.setting_types import duration, duration_text
from gateway.services.schedule_schemas import fault_of
from gateway.web.responses import RequestRefused

CHANGED: Final = "schedules-changed"
"""The event on which the page reloads the table."""
_HISTORY: Final = 100
"""Occurrences on the page of a schedule."""
_FIELD_IDS: Final = {
    name: f"schedule_{name}"
    for name in ("name", "ice_name", "pool", "cron", "timezone", "params", "timeout", "grace")
}
"""The element of an invalid field."""
WHY: Final = {
    SkipReason.MISSED: "missed: the gateway could not request it in time, or a later one was due by then",
    SkipReason.FORBIDDEN: "the requester may not operate it any more",
    SkipReason.WRONG_STATUS: "the ICE was not registered",
    SkipReason.PAUSED: "the ICE was paused",
    SkipReason.UNFINISHED: "the operation before had not finished",
    SkipReason.QUEUE_FULL: "too much waited already",
}


class PageQuery(ScheduleFilters):
    """The query of the page's address."""

    page: int = 1


class TargetQuery(Query):
    """What a new schedule is of, if the form is opened from there."""

    ice_name: Text | None = None
    pool: Text | None = None


class TimesQuery(Query):
    """What the form asks about while a user types."""

    cron: Text | None = None
    timezone: Text | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A schedule in a table: its next occurrence, why it has none, and what became of the last one."""

    schedule: Schedule
    next: datetime | None
    fault: str | None
    last: Occurrence | None


def routes() -> list[web.RouteDef]:
    """The routes of `/schedules`."""
    one = "/schedules/{id}"
    own = [
        ("GET", f"{one}/change", ask_change),
        ("POST", f"{one}/change", change),
        ("POST", f"{one}/enable", enable),
        ("POST", f"{one}/disable", disable),
        ("POST", f"{one}/run", run),
        ("GET", f"{one}/delete", confirm),
        ("POST", f"{one}/delete", delete),
    ]
    return [
        route("GET", "/schedules", page, need=Need.USER),
        route("GET", "/new-schedule", ask, need=Need.USER),
        route("GET", "/schedule-times", explain, need=Need.USER),
        route("POST", "/schedules", create, need=Need.USER),
        route("GET", one, show, need=Need.USER, finds=find_schedule),
        *(
            route(method, path, handler, need=Need.USER, finds=find_own_schedule)
            for method, path, handler in own
        ),
    ]


async def page(request: web.Request) -> web.StreamResponse:
    """The schedules, newest first, or only their table if htmx asks for that."""
    query, caller = PageQuery.of(request), request[CALLER]
    table = admin_context(request).schedules
    where = query.filter(None if caller.grants.sees_all else caller.user)
    total = await table.count(where)
    shown = Page.of(min(query.page, pages_of(total)))
    found = await table.brief(where, PAGE, offset=shown.offset)
    last = await table.last(found)
    content = {
        "title": "Schedules",
        "query": query,
        "rows": await asyncio.to_thread(_rows, found, last),
        "why": WHY,
        "most": MAX_COUNTED,
        "makes": caller.role in OPERATING,
    }
    return render_table(request, "schedules", content | shown.context(total))


def _rows(found: Sequence[Schedule], last: dict[str, Occurrence]) -> list[Row]:
    return [Row(one, one.next, fault_of(one), last.get(one.id)) for one in found]


async def show(request: web.Request, schedule: Schedule) -> web.StreamResponse:
    """The page of one schedule, or only what may change of it."""
    context = admin_context(request)
    history = await context.schedules.occurrences(schedule.id, _HISTORY)
    listed = None if schedule.ice_name is None else await context.ices.find(schedule.ice_name)
    ice = None if listed is None else listed.ice
    fault = fault_of(schedule)
    params, complete = pretty(schedule.params, MAX_SHOWN)
    content = {
        "title": schedule.name,
        "section": "Schedules",
        "schedule": schedule,
        "words": None if fault else Cron.parse(schedule.cron, schedule.timezone).in_words(),
        "upcoming": [] if fault else _in_zone(schedule.upcoming(SHOWN), schedule.timezone),
        "fault": fault,
        "history": [one.occurrence for one in history],
        "why": WHY,
        "most": MAX_COUNTED,
        "params": params,
        "complete": complete,
        "timeout": duration_text(schedule.timeout),
        "grace": duration_text(schedule.grace),
        "operates": may_schedule(request[CALLER], ice),
    }
    name = "schedule_live.html" if is_fragment(request) else "schedule.html"
    return render(request, name, content)


def _in_zone(moments: Iterable[datetime], timezone: str) -> list[tuple[datetime, str]]:
    """Each moment, and its text in a time zone."""
    zone = ZoneInfo(timezone)
    return [(one, f"{one.astimezone(zone):%a %Y-%m-%d %H:%M %Z}") for one in moments]


async def explain(request: web.Request) -> web.StreamResponse:
    """What a cron expression says, in words, and its next times; or what is wrong with it."""
    query = TimesQuery.of(request)
    content: dict[str, Any] = {"words": "", "upcoming": [], "fault": ""}
    timezone = query.timezone or "UTC"
    try:
        cron = Cron.parse(query.cron or "", timezone)
    except NotValid as fault:
        content["fault"] = f"{fault.field}: {fault}" if query.cron else ""
    else:
        content["words"] = cron.in_words()
        upcoming = itertools.islice(cron.all_after(admin_context(request).clock()), SHOWN)
        content["upcoming"] = _in_zone(upcoming, timezone)
    return render(request, "schedule_times.html", content)


async def ask(request: web.Request) -> web.StreamResponse:
    """The form of a new schedule."""
    target = TargetQuery.of(request)
    return _form(request, None, target.ice_name, target.pool)


async def ask_change(request: web.Request, schedule: Schedule) -> web.StreamResponse:
    """The form of a schedule as it is."""
    return _form(request, schedule, schedule.ice_name, schedule.pool)


def _form(
    request: web.Request, schedule: Schedule | None, ice_name: str | None, pool: str | None
) -> web.StreamResponse:
    content = {
        "schedule": schedule,
        "ice_name": ice_name,
        "pool": pool,
        "params": "{}" if schedule is None else schedule.params.decode(),
        "timeout": duration_text(DEFAULT_TIMEOUT if schedule is None else schedule.timeout),
        "grace": duration_text(DEFAULT_GRACE if schedule is None else schedule.grace),
    }
    return render(request, "schedule_form.html", content)


async def create(request: web.Request) -> web.StreamResponse:
    """Make a schedule; a refusal appears in the form."""
    fields = await form(request, MAX_FORM)
    service = admin_context(request).services.schedules
    by = actor(request, Via.PAGE)
    try:
        given = _given(fields, ("ice_name", "pool"))
        asked = decode_as(msgspec.json.encode(given), NewSchedule).asked()
        prepared: Schedule = unwrap(service.prepare(by, asked))
        await check_target(request, prepared)
        made: Schedule = unwrap(await service.create(by, prepared))
    except RequestRefused as refusal:
        return _refused(request, refusal.problem, fields)
    return toast(request, f"The schedule {made.name} is made.", changed=CHANGED)


async def change(request: web.Request, schedule: Schedule) -> web.StreamResponse:
    """Change a schedule; a refusal appears in the form."""
    fields = await form(request, MAX_FORM)
    service = admin_context(request).services.schedules
    try:
        changes = decode_as(msgspec.json.encode(_given(fields)), ScheduleChanges).asked()
        unwrap(await service.change(actor(request, Via.PAGE), schedule.id, changes))
    except RequestRefused as refusal:
        return _refused(request, refusal.problem, fields)
    return toast(request, f"The schedule {schedule.name} is changed.", changed=CHANGED)


def _given(fields: dict[str, str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """What the form says, as the API takes it. Raises `RequestRefused`."""
    given: dict[str, Any] = {
        name: fields.get(name, "").strip() for name in ("name", "cron", "timezone")
    }
    given |= {name: fields[name].strip() for name in optional if fields.get(name, "").strip()}
    for name in ("timeout", "grace"):
        try:
            given[name] = int(duration(fields.get(name, "").strip()))
        except ValueError:
            raise RequestRefused(
                invalid(name, "needs a number with s, m, h or d, such as 10m")
            ) from None
    return given | {"params": msgspec.Raw(params_of(fields))}


def _refused(request: web.Request, refused: Problem, fields: dict[str, str]) -> web.StreamResponse:
    of = "pool" if fields.get("pool") else "ice_name"
    targets = {"not-registered": _FIELD_IDS["ice_name"], "not-found": _FIELD_IDS[of]}
    return form_error(request, refused, _FIELD_IDS | targets, "#dialog-fault")


async def enable(request: web.Request, schedule: Schedule) -> web.StreamResponse:
    """Let a schedule request operations, in the caller's name."""
    return await _switch(request, schedule, enabled=True)


async def disable(request: web.Request, schedule: Schedule) -> web.StreamResponse:
    """Let a schedule request nothing."""
    return await _switch(request, schedule, enabled=False)


async def _switch(request: web.Request, schedule: Schedule, *, enabled: bool) -> web.StreamResponse:
    await form(request)
    service = admin_context(request).services.schedules
    unwrap(await service.change(actor(request, Via.PAGE), schedule.id, {"enabled": enabled}))
    became = "enabled" if enabled else "disabled"
    return toast(request, f"The schedule {schedule.name} is {became}.", changed=CHANGED)


async def run(request: web.Request, schedule: Schedule) -> web.StreamResponse:
    """Request an operation of a schedule now."""
    await form(request)
    service = admin_context(request).services.schedules
    made = unwrap(await service.run(actor(request, Via.PAGE), schedule.id))
    return toast(request, f"Operation {made.id} is requested.", changed=CHANGED)


async def confirm(request: web.Request, schedule: Schedule) -> web.StreamResponse:
    """Ask before deleting a schedule."""
    return render(request, "schedule_delete.html", {"schedule": schedule})


async def delete(request: web.Request, schedule: Schedule) -> web.StreamResponse:
    """Delete a schedule, and go to the others."""
    await form(request)
    service = admin_context(request).services.schedules
    unwrap(await service.delete(actor(request, Via.PAGE), schedule.id))
    return web.Response(status=204, headers={"HX-Redirect": "./schedules"})
