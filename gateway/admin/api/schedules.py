"""`/schedules`: make, list, show, change, delete and run schedules, and list what became of their occurrences.

Tested in tests/gateway/admin/api/test_schedules.py.
"""

from __future__ import annotations

from typing import Annotated, cast

import msgspec
from aiohttp import web

from gateway.admin.access import route
from gateway.admin.api.operations import created
from gateway.admin.api.requests import (
    DEFAULT_LIMIT,
    Limit,
    Query,
    Text,
    body_as,
    decode_cursor,
    encode_cursor,
    no_members,
    number_of,
    split_page,
    unwrap,
)
from gateway.admin.auth import actor, forbidden
from gateway.admin.context import CALLER, admin_context
from gateway.core.cron import MAX_CRON
from gateway.core.ice import Ice
from gateway.core.problems import invalid, problem
from gateway.core.roles import Need
from gateway.core.schedule import (
    DEFAULT_GRACE,
    DEFAULT_TIMEOUT,
    MAX_NAME,
    MAX_SECONDS,
    Changes,
    Schedule,
)
from gateway.core.schedule_access import may_schedule, sees
from gateway.services import schedule_schemas
from gateway.services.pools import no_pool
from gateway.services.schedules import NO_SCHEDULE, WantedSchedule
from gateway.store.schedules import ScheduleFilter
from gateway.web.responses import RequestRefused, json_response, no_content

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
Cron = Annotated[str, msgspec.Meta(max_length=MAX_CRON)]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=MAX_SECONDS)]


class NewSchedule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of POST /schedules: of one ICE or one pool."""

    name: Name
    ice_name: Text | None = None
    pool: Text | None = None
    params: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    cron: Cron
    timezone: Text = "UTC"
    timeout: Seconds = DEFAULT_TIMEOUT
    grace: Seconds = DEFAULT_GRACE
    enabled: bool = True

    def asked(self) -> WantedSchedule:
        """The schedule to make."""
        given = msgspec.structs.asdict(self) | {"params": bytes(self.params)}
        return WantedSchedule(**given)


class ScheduleChanges(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of PATCH /schedules/{id}: what to change; the ICE or pool stays."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    cron: Cron | msgspec.UnsetType = msgspec.UNSET
    timezone: Text | msgspec.UnsetType = msgspec.UNSET
    timeout: Seconds | msgspec.UnsetType = msgspec.UNSET
    grace: Seconds | msgspec.UnsetType = msgspec.UNSET
    enabled: bool | msgspec.UnsetType = msgspec.UNSET

    def asked(self) -> Changes:
        """What is named. Raises `RequestRefused`."""
        values = msgspec.structs.asdict(self).items()
        given = {name: value for name, value in values if value is not msgspec.UNSET}
        if not given:
            raise RequestRefused(invalid("body", "names nothing to change"))
        if "params" in given:
            given["params"] = bytes(given["params"])
        return cast("Changes", given)


class ScheduleFilters(Query):
    """Which schedules to list: `q` is a part of the name, or of that of the ICE or pool."""

    ice_name: Text | None = None
    pool: Text | None = None
    q: Text | None = None

    def filter(self, owner: str | None = None) -> ScheduleFilter:
        """The filter; `owner` is the user whose ICEs they are for."""
        return ScheduleFilter(self.ice_name, self.pool, owner, self.q)


class ScheduleQuery(ScheduleFilters):
    """Query parameters of GET /schedules."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Text | None = None


class OccurrenceQuery(Query):
    """Query parameters of GET /schedules/{id}/occurrences."""

    limit: Limit = DEFAULT_LIMIT
    cursor: Text | None = None


def routes() -> list[web.RouteDef]:
    """The routes of `/schedules`."""
    one, need = "/schedules/{id}", Need.USER
    return [
        route("GET", "/schedules", listing, need=need, reads=_query),
        route("POST", "/schedules", create, need=need, reads=_wanted),
        route("GET", one, show, need=need, finds=find_schedule),
        route("PATCH", one, change, need=need, reads=_changes, finds=find_own_schedule),
        route("DELETE", one, delete, need=need, finds=find_own_schedule),
        route("POST", f"{one}/run", run, need=need, reads=no_members, finds=find_own_schedule),
        route(
            *("GET", f"{one}/occurrences", list_occurrences),
            need=need,
            reads=_occurrence_query,
            finds=find_schedule,
        ),
    ]


async def _query(request: web.Request) -> tuple[ScheduleQuery, str | None]:
    query = ScheduleQuery.of(request)
    return query, decode_cursor(query.cursor)


async def _wanted(request: web.Request) -> tuple[Schedule]:
    service = admin_context(request).services.schedules
    asked = (await body_as(request, NewSchedule)).asked()
    return (unwrap(service.prepare(actor(request), asked)),)


async def _changes(request: web.Request) -> tuple[Changes]:
    asked = (await body_as(request, ScheduleChanges)).asked()
    return (unwrap(admin_context(request).services.schedules.checked(asked)),)


async def _occurrence_query(request: web.Request) -> tuple[OccurrenceQuery, int | None]:
    query = OccurrenceQuery.of(request)
    return query, number_of(query.cursor)


async def find_schedule(request: web.Request) -> tuple[Schedule | None]:
    """The schedule of the path, if the caller may see it. Raises `RequestRefused`."""
    schedule, _ = await _found(request)
    return (schedule,)


async def find_own_schedule(request: web.Request) -> tuple[Schedule | None]:
    """The schedule of the path, if the caller may operate its ICE or pool. Raises `RequestRefused`."""
    schedule, ice = await _found(request)
    if schedule is not None and not may_schedule(request[CALLER], ice):
        raise forbidden(request, Need.OPERATE)
    return (schedule,)


async def _found(request: web.Request) -> tuple[Schedule | None, Ice | None]:
    caller = request[CALLER]
    if caller.is_confined:  # nothing is shown, whatever the id
        return None, None
    schedule = await admin_context(request).schedules.find(request.match_info["id"])
    if schedule is None:
        raise RequestRefused(NO_SCHEDULE)
    ice = await _ice(request, schedule.ice_name)
    if not sees(caller, schedule, ice):
        raise RequestRefused(NO_SCHEDULE)
    return schedule, ice


async def _ice(request: web.Request, name: str | None) -> Ice | None:
    listed = None if name is None else await admin_context(request).ices.find(name)
    return None if listed is None else listed.ice


async def listing(request: web.Request, query: ScheduleQuery, place: str | None) -> web.Response:
    """List schedules, newest first."""
    caller, table = request[CALLER], admin_context(request).schedules
    where = query.filter(None if caller.grants.sees_all else caller.user)
    page, more = await table.page(where, query.limit, place)
    items = await schedule_schemas.schedule_documents(table, page)
    following = encode_cursor(page[-1].place) if more else None
    return json_response(schedule_schemas.SchedulePage(items, following))


async def create(request: web.Request, new: Schedule) -> web.Response:
    """Make a schedule."""
    await check_target(request, new)
    service = admin_context(request).services.schedules
    made = unwrap(await service.create(actor(request), new))
    document = schedule_schemas.schedule_document(made, None)
    location = {"Location": f"{request.path}/{made.id}"}
    return json_response(document, status=201, headers=location)


async def check_target(request: web.Request, new: Schedule) -> None:
    """Refuse a caller who may not operate the ICE or pool of a new schedule. Raises `RequestRefused`."""
    caller, pools = request[CALLER], admin_context(request).pools
    ice = await _ice(request, new.ice_name)
    if new.pool is None:
        if ice is None or not caller.sees(ice):
            raise RequestRefused(problem("not-registered"))
    # Those who see no pools are refused whether or not there is this one.
    elif caller.grants.sees_all and await pools.find(new.pool) is None:
        raise RequestRefused(no_pool(new.pool))
    if not may_schedule(caller, ice):
        raise forbidden(request, Need.OPERATE)


async def show(request: web.Request, schedule: Schedule) -> web.Response:
    """Show a schedule."""
    return await _answer(request, schedule)


async def _answer(request: web.Request, schedule: Schedule) -> web.Response:
    table = admin_context(request).schedules
    [document] = await schedule_schemas.schedule_documents(table, [schedule])
    return json_response(document)


async def change(request: web.Request, changes: Changes, schedule: Schedule) -> web.Response:
    """Change a schedule."""
    service = admin_context(request).services.schedules
    done: Schedule = unwrap(await service.change(actor(request), schedule.id, changes))
    return await _answer(request, done)


async def delete(request: web.Request, schedule: Schedule) -> web.Response:
    """Delete a schedule and its history; its operations stay."""
    unwrap(await admin_context(request).services.schedules.delete(actor(request), schedule.id))
    return no_content()


async def run(request: web.Request, schedule: Schedule) -> web.Response:
    """Request an operation of a schedule now, even if it is disabled."""
    service = admin_context(request).services.schedules
    token = request[CALLER].token
    return await created(request, unwrap(await service.run(actor(request), schedule.id, token)), 0)


async def list_occurrences(
    request: web.Request, query: OccurrenceQuery, before: int | None, schedule: Schedule
) -> web.Response:
    """List what became of the newest 1,000 occurrences, newest first."""
    table = admin_context(request).schedules
    found = await table.occurrences(schedule.id, query.limit + 1, before)
    page, last = split_page(found, query.limit)
    cursor = None if last is None else encode_cursor(str(last.number))
    return json_response(schedule_schemas.occurrence_page(page, cursor))
